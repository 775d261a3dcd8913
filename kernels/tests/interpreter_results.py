"""What the kernels compute, send and leave alone, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import torch
from interpreter_rank import (
    FEATURES,
    HALF,
    HEALTHY,
    Kind,
    OneRank,
    bits,
    direct,
    exact_partial,
    guarded,
    integers,
    kinds_of,
    one_shot,
    sum_in_rank_order,
    two_shot,
)

from gemm_allreduce.layout import EMPTY, EPOCH_WORD, HeapLayout

SHAPES = ((1, 8, 8), (16, 64, 104), (17, 72, 136), (33, 264, 24), (64, 200, 64))
"""M, N and K: with and without rows, columns and depth beyond the last tile's."""


def inputs(seed: int, tokens: int, features: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    return integers(seed, tokens, depth), integers(seed + 1, features, depth)


def case_tails() -> None:
    """Exact on integers, nothing read or written beyond M, N and K, inputs unchanged."""
    for kind in kinds_of(1, every=True):
        most = HeapLayout(1, 1, 1).most_tokens(kind.variant.algorithm)
        for seed, (tokens, features, depth) in enumerate(SHAPES):
            for ctas in (2, 5) if tokens <= (most or tokens) else ():
                x, weight = inputs(seed, tokens, features, depth)
                before = x.clone(), weight.clone()
                rank = OneRank(kind.variant, max_features=features)
                y = rank(x, weight, ctas=ctas, comm_ctas=kind.comm_ctas)
                expected = exact_partial(x, weight)
                assert torch.equal(y, expected), (str(kind), tokens, features, depth, ctas)
                assert torch.equal(x, before[0]) and torch.equal(weight, before[1])
                assert rank.status(0) == HEALTHY
                check_parts(rank, expected, str(kind))


def check_parts(rank: OneRank, expected: torch.Tensor, what: str) -> None:
    """Each part that the call uses holds y, NaN where there are no rows; the others are untouched.

    Columns beyond N may hold anything: a unit is sent whole, and read only up to N.
    """
    tokens, features = expected.shape
    slots, receive, result = rank.free_slots(0), rank.receive(0), rank.result(0)
    used, unused = [receive[0], result], [slots]
    assert (rank.cells(0) == EMPTY).all(), f"{what}: cells were not emptied"
    if rank.variant.algorithm == "one_shot":
        used, unused = [slots[1, 0]], [slots[0], receive, result]
        if rank.tiles(tokens, features) * rank.variant.tile.area > slots.shape[-1]:
            used = []  # it reaches into the cells, which are empty again
    elif rank.variant.algorithm == "lamport":
        used, unused = [], [slots, receive, result]
    elif rank.variant.algorithm == "direct":
        used, unused = [], [slots, receive, result]
        words = rank.words(0)[: rank.layout.slots // 4].clone()
        words[EPOCH_WORD] -= 1
        assert not words.any(), f"{what}: it has no protocol but the count of launches"
    columns = rank.variant.tile.block_n
    rows = torch.ones(tokens, -(-features // columns) * columns, dtype=HALF)
    no_rows = rank.to_units(rows).reshape(-1).isnan()
    for part in used:
        assert torch.equal(rank.from_units(part, tokens, features), expected), what
        assert part[: no_rows.numel()][no_rows].isnan().all(), f"{what}: rows beyond M were sent"
        assert part[no_rows.numel() :].isnan().all(), f"{what}: tiles beyond the last were sent"
    for part in unused:
        assert part.isnan().all(), f"{what}: another part was written"


def case_random_bound() -> None:
    """Random inputs against fp64: one rounding to fp16 plus fp32 accumulation over K."""
    generator = torch.Generator().manual_seed(2)
    for kind in kinds_of(1, every=True):
        most = HeapLayout(1, 1, 1).most_tokens(kind.variant.algorithm)
        for tokens, depth in ((5, 104), (min(33, most or 33), 264)):
            x = guarded(torch.randn(tokens, depth, generator=generator).to(HALF))
            weight = guarded(torch.randn(FEATURES, depth, generator=generator).to(HALF))
            y = OneRank(kind.variant)(x, weight, comm_ctas=kind.comm_ctas)
            exact = x.double() @ weight.double().T
            magnitude = x.double().abs() @ weight.double().abs().T
            bound = exact.abs() * 2**-11 + magnitude * depth * 2**-23 + 2**-25
            assert ((y.double() - exact).abs() <= bound).all(), (str(kind), tokens, depth)


def case_rank_order() -> None:
    """Each rank of four sums in rank order 0..3, with values for which the order shows."""
    values = [60000.0, 2**-9, -60000.0, 2**-9]
    # As many rows and columns that every rank owns units, whatever a unit is.
    tokens, features = 32, 512
    partials = [torch.full((tokens, features), value, dtype=HALF) for value in values]
    expected = sum_in_rank_order(partials)
    assert not torch.equal(expected, sum_in_rank_order(partials[::-1]))
    x = torch.zeros(tokens, 16, dtype=HALF)
    x[:, 0] = 1
    for kind in kinds_of(4):
        for me in range(4):
            rank = OneRank(kind.variant, me, max_features=features)
            rank.deliver_peers(partials, expected, 1)
            weight = torch.zeros(features, 16, dtype=HALF)
            weight[:, 0] = values[me]
            y = rank(x, weight, comm_ctas=kind.comm_ctas)
            assert torch.equal(y, expected), (str(kind), me)
            own = OneRank(kind.variant, me, max_features=features)
            own.deliver_results(me, me, expected, 1)
            sent = own.result_flags(me) == 1
            assert torch.equal(rank.result_flags(me)[sent], own.result_flags(me)[sent])
            assert rank.status(me) == HEALTHY


def case_what_is_sent() -> None:
    """A peer's heap afterwards is, bit for bit, what the protocol says, and no more."""
    features = 256  # whole tiles: what is sent of columns beyond N is nobody's business
    for world_size in (2, 4):
        for kind in kinds_of(world_size):
            most = HeapLayout(world_size, 1, 1).most_tokens(kind.variant.algorithm)
            for tokens in (1, min(33, most or 33)):  # with split also units without a single row
                for me in {world_size // 2 - 1, world_size - 1}:
                    check_sent(kind, me, tokens, features)


def check_sent(kind: Kind, me: int, tokens: int, features: int) -> None:
    world_size = kind.variant.world_size
    operands = [inputs(10 * rank, tokens, features, 48) for rank in range(world_size)]
    partials = [exact_partial(x, weight) for x, weight in operands]
    expected = sum_in_rank_order(partials)
    rank = OneRank(kind.variant, me, max_features=features)
    rank.deliver_peers(partials, expected, 1)
    wanted = OneRank(kind.variant, me, max_features=features)
    for peer in range(world_size):
        wanted.deliver_partial(me, peer, partials[me], 1)
        wanted.deliver_results(me, peer, expected, 1)
    y = rank(*operands[me], comm_ctas=kind.comm_ctas)
    what = (str(kind), me, tokens)
    assert torch.equal(y, expected), what
    for peer in range(world_size):
        if peer != me:
            assert torch.equal(bits(rank.heaps[peer]), bits(wanted.heaps[peer])), (*what, peer)


def case_extras() -> None:
    """Bias and residual, alone and together, once; in place too; not read when not given."""
    tokens, features = 35, 72
    operands = [inputs(10 * rank, tokens, features, 24) for rank in range(2)]
    partials = [exact_partial(x, weight) for x, weight in operands]
    # Fractions, so that the final rounding shows whether the sum was rounded before.
    bias = guarded((torch.arange(features) / 64 - 0.5).to(HALF))
    residual = guarded((torch.arange(tokens * features) % 509 / 128).to(HALF).view(tokens, -1))
    for kind in kinds_of(2):
        for extras in ({}, {"bias": bias}, {"residual": residual},
                       {"bias": bias, "residual": residual}):  # fmt: skip
            for me in (0, 1):
                expected = sum_in_rank_order(partials, **extras)
                for in_place in {False, "residual" in extras}:
                    given = dict(extras)
                    out = None
                    if in_place:
                        out = given["residual"] = guarded(residual)
                    rank = OneRank(kind.variant, me, max_features=features)
                    rank.deliver_peers(partials, expected, 1)
                    y = rank(*operands[me], comm_ctas=kind.comm_ctas, out=out, **given)
                    assert torch.equal(y, expected), (str(kind), list(extras), me, in_place)


def case_int8() -> None:
    """Exact up to the scales; the depth ends within a vector of 16, scales within a tile."""
    for kind in kinds_of(2, "int8"):
        for tokens, features, depth in ((1, 8, 16), (17, 72, 80), (33, 136, 272)):
            operands, partials = [], []
            for rank in range(2):
                x = integers(rank, tokens, depth, dtype=torch.int8, largest=127)
                weight = integers(rank + 5, features, depth, dtype=torch.int8, largest=127)
                # Powers of two: a product of them and of integers needs no rounding before fp16.
                x_scale = guarded(2.0 ** -(torch.arange(tokens) % 5 + rank))
                weight_scale = guarded(2.0 ** -(torch.arange(features) % 3 + 8))
                operands.append((x, weight, x_scale, weight_scale))
                product = x.double() @ weight.double().T
                partials.append((product * x_scale[:, None] * weight_scale[None, :]).to(HALF))
            expected = sum_in_rank_order(partials)
            for me in (0, 1):
                rank = OneRank(kind.variant, me, max_features=features)
                rank.deliver_peers(partials, expected, 1)
                x, weight, x_scale, weight_scale = operands[me]
                scales = {"x_scale": x_scale, "weight_scale": weight_scale}
                y = rank(x, weight, comm_ctas=kind.comm_ctas, **scales)
                assert torch.equal(y, expected), (str(kind), tokens, features, depth, me)
                assert rank.status(me) == HEALTHY


def case_algorithms_agree() -> None:
    """The same bits from every kind of kernel, with partials that round."""
    generator = torch.Generator().manual_seed(8)
    x = guarded(torch.randn(19, 72, generator=generator).to(HALF))
    weight = guarded(torch.randn(FEATURES, 72, generator=generator).to(HALF))
    own = OneRank(one_shot(1))(x, weight)
    others = [torch.randn(19, FEATURES, generator=generator).to(HALF) for _ in range(3)]
    expected = sum_in_rank_order([others[0], own, *others[1:]])
    for kind in kinds_of(4):
        rank = OneRank(kind.variant, 1)
        rank.deliver_peers([others[0], own, *others[1:]], expected, 1)
        assert torch.equal(rank(x, weight, comm_ctas=kind.comm_ctas), expected), str(kind)


def case_more_blocks_of_rows_than_a_group() -> None:
    """Tiles go through 8 blocks of rows at a time, then through what is left: each once."""
    tokens, features = 300, 136
    x, weight = inputs(1, tokens, features, 16)
    partials = [exact_partial(x, weight), integers(3, tokens, features)]
    kinds = (one_shot(2), two_shot(2, split=False), two_shot(2, split=True))
    for variant in (*kinds, replace(kinds[0], early=512)):  # early: the same, but for its start
        rows = 147 if variant.algorithm == "one_shot" else tokens  # 10 blocks of 16, or of 32
        expected = sum_in_rank_order([partial[:rows] for partial in partials])
        rank = OneRank(variant, max_tokens=tokens, max_features=features)
        rank.deliver_peers([partial[:rows] for partial in partials], expected, 1)
        assert torch.equal(rank(x[:rows], weight), expected), variant.name
    rank = OneRank(direct(), max_tokens=tokens, max_features=features)
    assert torch.equal(rank(x, weight), partials[0])


def case_bulk_copies_and_tiles_in_halves() -> None:
    """What differs from other kernels only within a rank: heaps and results are the same."""
    kinds = [kind for kind in kinds_of(2, every=True) if kind.variant.tile.bulk]
    assert len(kinds) == 6 and any(kind.variant.tile.block_n == 256 for kind in kinds)
    for kind in kinds:
        check_sent(kind, 1, 33, 512)


def case_direct_is_as_exact_as_float64() -> None:
    """Bias, residual, and 8-bit operands with scales; M, N and K end within tiles."""
    for bulk, block_n in ((False, 64), (True, 64), (False, 256), (True, 256)):
        for operand, depth in (("fp16", 48), ("int8", 80)):
            tokens, features = 19, 264
            kind = HALF if operand == "fp16" else torch.int8
            x = integers(1, tokens, depth, dtype=kind)
            weight = integers(2, features, depth, dtype=kind)
            exact, scales = x.double() @ weight.double().T, {}
            if operand == "int8":
                scales["x_scale"] = guarded(2.0 ** -(torch.arange(tokens) % 5))
                scales["weight_scale"] = guarded(2.0 ** -(torch.arange(features) % 3))
                exact = exact * scales["x_scale"][:, None] * scales["weight_scale"][None, :]
            bias, residual = integers(3, features), integers(4, tokens, features)
            variant = direct(operand, bulk=bulk, block_n=block_n)  # type: ignore[arg-type]
            for extras in ({}, {"bias": bias, "residual": residual}, {"residual": residual}):
                rank = OneRank(variant, max_features=features)
                y = rank(x, weight, ctas=2, **scales, **extras)
                wanted = exact.to(HALF).double()
                for extra in extras.values():
                    wanted = wanted + extra.double()
                assert torch.equal(y, wanted.to(HALF)), (variant.name, list(extras))


def case_given_partials() -> None:
    """Without a product: the same bits as the sum in rank order, of any values."""
    generator = torch.Generator().manual_seed(5)
    tokens, features = 35, 264
    partials = [torch.randn(tokens, features, generator=generator).to(HALF) for _ in range(4)]
    expected = sum_in_rank_order(partials)
    unused = torch.full((features, 8), float("nan"), dtype=HALF)
    for kind in kinds_of(4):
        rank = OneRank(replace(kind.variant, product=False), 2, max_features=features)
        rank.deliver_peers(partials, expected, 1)
        y = rank(guarded(partials[2]), unused, comm_ctas=kind.comm_ctas)
        assert torch.equal(y, expected), str(kind)
        for peer in (0, 1, 3):
            wanted = OneRank(rank.variant, 2, max_features=features)
            wanted.deliver_partial(2, peer, partials[2], 1)
            flags = wanted.partial_flags(peer) == 1
            assert (rank.partial_flags(peer)[flags] == 1).all(), str(kind)
