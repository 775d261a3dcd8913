"""Epochs, flags, and peers that are ahead, behind or absent, in Triton's interpreter."""

from __future__ import annotations

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
    integers,
    kinds_of,
    lamport,
    one_shot,
    sum_in_rank_order,
    two_shot,
)

from gemm_allreduce.layout import (
    CELL_LATE,
    EMPTY,
    EPOCH_WORD,
    GAVE_UP_WORD,
    PARTIAL_LATE,
    REFRESH_CALLS,
    RESULT_LATE,
    STATUS_WORD,
    HeapLayout,
)

TOP, BOTTOM = 2**31 - 1, -(2**31)
FOREVER = 2**30
"""Polls: a wait of so many would outlast the test's time limit."""


def int32(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def call_once(rank: OneRank, call: int, comm_ctas: int, epoch: int, tokens: int) -> None:
    """Make one call of a two-rank group, the peer's part done before; check y and the epoch."""
    x, weight = integers(call, tokens, 24), integers(call + 50, FEATURES, 24)
    other = integers(call + 90, tokens, FEATURES)
    partials = [exact_partial(x, weight), other]
    expected = sum_in_rank_order(partials)
    rank.deliver_peers(partials, expected, epoch)
    y = rank(x, weight, comm_ctas=comm_ctas, spin_limit=3)
    assert torch.equal(y, expected), (call, epoch)
    assert rank.epoch == epoch
    assert rank.status(0) == HEALTHY, rank.status(0)


def case_epochs() -> None:
    """Calls in a row, algorithm and M changing: one heap, slots alternate, flags hold the epoch."""
    kinds = kinds_of(2)
    rank = OneRank(kinds[0].variant)
    for call, tokens in enumerate((1, 16, 33, 64, 17, 5, 48, 2, 64, 1, 33, 16), 1):
        kind = kinds[(call // 2) % len(kinds)] if call % 2 else kinds[0]
        rank.variant = kind.variant
        other = rank.slots(0)[(call + 1) & 1].clone()
        call_once(rank, call, kind.comm_ctas, call, tokens)
        assert torch.equal(bits(rank.slots(0)[(call + 1) & 1]), bits(other)), "the other slot"
        sent = rank.slots(1)[call & 1, 0, 0].isnan()
        assert not (sent and kind.variant.algorithm == "one_shot"), "nothing in this call's slot"
        if kind.variant.algorithm == "lamport":
            assert rank.cells(1)[call & 1, 0, 0] != EMPTY, "nothing in this call's cell"
            rank.cells(1)[:] = EMPTY  # as the peer does
        assert (rank.cells(1) == EMPTY).all(), "another cell"
        assert (rank.cells(0) == EMPTY).all(), "what was summed was not emptied"
        tiles = rank.tiles(tokens, FEATURES)
        if kind.variant.split == 2 or kind.variant.algorithm == "one_shot":
            assert (rank.partial_flags(1)[:tiles, 0] == call).all()
        assert (rank.partial_flags(1)[tiles:, 0] != call).all(), "flags of tiles beyond M"


def case_wrap() -> None:
    """The epoch wraps around int32 and around zero."""
    for kind in kinds_of(2):
        for first in (2**31 - 3, -3):
            rank = OneRank(kind.variant, first_epoch=first)
            for call in range(1, 6):
                call_once(rank, call, kind.comm_ctas, int32(first + call), 1 + 16 * (call % 2))


def case_every_launch_is_one_epoch() -> None:
    """Launches of different numbers of CTAs in a row, also where the epoch wraps around."""
    x, weight = integers(1, 1, 16), integers(2, 192, 16)
    expected = exact_partial(x, weight)
    for variant in (one_shot(1), direct()):
        for first in (0, TOP - 1, -3):
            rank = OneRank(variant, max_features=192, first_epoch=first)
            for call, ctas in enumerate((1, 3, 2), 1):
                assert torch.equal(rank(x, weight, ctas=ctas), expected)
                assert rank.epoch == int32(first + call), (variant.name, first, ctas)


def case_a_tile_that_is_late_among_others() -> None:
    """One-shot: a CTA sends all of its tiles, and sums those whose partials have come before."""
    features = 256
    x, weight = integers(1, 5, 24), integers(2, features, 24)
    partials = [exact_partial(x, weight), integers(3, 5, features)]
    expected = sum_in_rank_order(partials)
    rank = OneRank(one_shot(2), max_features=features)
    rank.deliver_peers(partials, expected, 1)
    rank.partial_flags(0)[2, 1] = 0
    y = rank(x, weight, ctas=1, spin_limit=3)
    record = {"code": PARTIAL_LATE, "rank": 0, "tile": 2, "source": 1, "seen": 0, "expected": 1}
    assert rank.status(0) == rank.host_status(0) == record
    assert torch.equal(y[:, :128], expected[:, :128]) and y[:, 128:].isnan().all()
    assert (rank.partial_flags(1)[:4, 0] == 1).all(), "a tile was not sent"


def case_a_cell_that_is_late_among_others() -> None:
    """The record says what lacks; tiles before it are summed; what has come late stays there."""
    features = 256
    x, weight = integers(1, 5, 24), integers(2, features, 24)
    partials = [exact_partial(x, weight), integers(3, 5, features)]
    expected = sum_in_rank_order(partials)
    rank = OneRank(lamport(2), max_features=features)
    rank.deliver_peers(partials, expected, 1)
    late = rank.cells(0)[1, 1].view(-1, 16, 64)[2, :5, 7:10]
    late[:] = EMPTY
    y = rank(x, weight, ctas=1, spin_limit=3)
    record = {"code": CELL_LATE, "rank": 0, "tile": 2, "source": 1, "seen": 15, "expected": 1}
    assert rank.status(0) == rank.host_status(0) == record
    assert torch.equal(y[:, :128], expected[:, :128]) and y[:, 128:].isnan().all()
    tiles = rank.cells(0)[1].view(2, -1, 16, 64)[:, :4, :5]
    assert (tiles[:, :2] == EMPTY).all() and (tiles[0, 2] != EMPTY).all()
    sent = rank.cells(1)[1, 0].view(-1, 16, 64)[:4]
    assert (sent[:, :5] != EMPTY).all() and (sent[:, 5:] == EMPTY).all(), "a tile was not sent"


def case_large_one_shot_calls_leave_cells_empty() -> None:
    """Their last tiles lie where cells are; a call without flags then finds nothing old there."""
    tokens = HeapLayout(2, 1, 1).small_tokens - 3
    rank = OneRank(one_shot(2), max_tokens=tokens, max_features=256)
    x, weight = integers(1, tokens, 24), integers(2, 248, 24)
    for call, (variant, rows) in enumerate(
        ((one_shot(2), tokens), (lamport(2), 64), (one_shot(2), tokens - 64), (lamport(2), 17)), 1
    ):
        rank.variant = variant
        partials = [exact_partial(x[:rows], weight), integers(call + 9, rows, 248)]
        expected = sum_in_rank_order(partials)
        rank.deliver_peers(partials, expected, call)
        reached = (rank.cells(0) != EMPTY).any()
        assert reached == (variant.algorithm == "lamport" or rows == tokens), "of no use"
        assert torch.equal(rank(x[:rows], weight, spin_limit=3), expected), (call, rows)
        assert (rank.cells(0) == EMPTY).all(), (call, rows)


def case_minus_zero_is_sent_as_zero() -> None:
    """-0.0 stands for what has not come; a partial may hold it, from underflow or given."""
    rank = OneRank(lamport(2))
    tiny = torch.full((3, FEATURES), -(2.0**-24), dtype=HALF)
    x, weight = torch.zeros(3, 16, dtype=HALF), torch.zeros(FEATURES, 16, dtype=HALF)
    x[:, 0], weight[:, 0] = -(2.0**-14), 2.0**-14
    partial = (x.float() @ weight.float().T).to(HALF)
    assert (bits(partial) == EMPTY).all(), "no underflow to -0.0"
    rank.deliver_peers([partial, tiny], tiny, 1)
    assert torch.equal(rank(x, weight, spin_limit=3), tiny)
    assert rank.status(0) == HEALTHY
    assert (rank.cells(1)[1, 0].view(-1, 16, 64)[0, :3] == 0).all()


def case_the_mark_of_a_rank_that_gave_up() -> None:
    """It counts from the next call on: CTAs that begin after it was set must agree with others."""
    x, weight = torch.ones(17, 32, dtype=HALF), torch.ones(FEATURES, 32, dtype=HALF)
    five = torch.full((17, FEATURES), 5.0, dtype=HALF)
    for kind in kinds_of(2):
        for epoch in (1, 0, TOP):
            mark = int32(2 * epoch + 1)
            for given, healthy in (
                (mark, True),
                (int32(mark - 2), False),
                (int32(mark + 2), False),
            ):
                rank = OneRank(kind.variant, first_epoch=int32(epoch - 1))
                rank.deliver_peers([five, five], five + 32, epoch)
                rank.words(0)[STATUS_WORD] = PARTIAL_LATE
                rank.words(0)[GAVE_UP_WORD] = given
                y = rank(x, weight, comm_ctas=kind.comm_ctas, spin_limit=3)
                same = (y == 37).all() if healthy else y.isnan().all()
                assert same, (str(kind), epoch, given)
                assert rank.words(0)[GAVE_UP_WORD] == given
                sent = (rank.all_flags(1) == epoch).any() or (rank.cells(1) != EMPTY).any()
                assert bool(sent) == healthy, (str(kind), epoch)


EPOCHS = ((1, 2), (-1, 0), (0, 1), (TOP, BOTTOM), (BOTTOM, BOTTOM + 1))
"""A call's epoch, and the next one."""


def case_peer_ahead() -> None:
    """A peer one call ahead counts as arrived, one call behind does not; modulo 2**32."""
    ones = torch.ones(2, 16, dtype=HALF), torch.ones(FEATURES, 16, dtype=HALF)
    five = torch.full((2, FEATURES), 5.0, dtype=HALF)
    for kind in kinds_of(2):
        if kind.variant.algorithm == "lamport":
            continue  # no flag tells of partials
        for epoch, ahead in EPOCHS:
            behind = int32(epoch - 1)
            for flag in (ahead, behind):
                rank = OneRank(kind.variant, first_epoch=behind)
                rank.deliver_peers([five, five], five + 16, epoch)
                rank.partial_flags(0)[:, 1] = flag
                y = rank(*ones, comm_ctas=kind.comm_ctas, spin_limit=3)
                assert rank.epoch == epoch
                if flag == ahead:
                    assert rank.status(0) == HEALTHY, (str(kind), epoch, rank.status(0))
                    assert (y == 21).all(), (str(kind), epoch)
                else:
                    status = rank.status(0)
                    assert (status["seen"], status["expected"]) == (behind, epoch), status
                    assert y.isnan().all(), (str(kind), epoch)


def case_owner_ahead() -> None:
    """The same for the flags of results: rank 1's units are late or not."""
    ones = torch.ones(2, 16, dtype=HALF), torch.ones(FEATURES, 16, dtype=HALF)
    five = torch.full((2, FEATURES), 5.0, dtype=HALF)
    for kind in kinds_of(2):
        if kind.variant.split == 1:
            continue  # the only tile is rank 0's
        for epoch, ahead in EPOCHS:
            behind = int32(epoch - 1)
            for flag in (ahead, behind):
                rank = OneRank(kind.variant, first_epoch=behind)
                rank.deliver_peers([five, five], five + 16, epoch)
                rank.result_flags(0)[1] = flag
                y = rank(*ones, comm_ctas=kind.comm_ctas, spin_limit=3)
                if flag == ahead:
                    assert rank.status(0) == HEALTHY, rank.status(0)
                    assert (y == 21).all()
                else:
                    status = dict(code=RESULT_LATE, rank=0, tile=0, source=1)
                    assert rank.status(0) == status | {"seen": behind, "expected": epoch}
                    assert y.isnan().all()


def check_refresh(kind: Kind, epoch: int) -> int:
    """Make a call with flags that have rested for long; return which word was lifted."""
    rank = OneRank(kind.variant, first_epoch=int32(epoch - 1))
    flags = rank.all_flags(0)
    old = int32(epoch - 2**30 - 1)
    flags[:] = old
    call_once(rank, 1, kind.comm_ctas, epoch, 16)
    lifted = (flags == int32(epoch - 1)).nonzero().flatten().tolist()
    assert set(flags.tolist()) <= {old, int32(epoch - 1), epoch}
    assert len(lifted) == 1, f"{kind}, {epoch}: lifted {lifted}"
    flags[:] = int32(epoch - 2**30 + 1)  # half as old as what is dangerous: left alone
    rank.words(0)[EPOCH_WORD] = int32(epoch - 1)
    call_once(rank, 1, kind.comm_ctas, epoch, 16)
    assert set(flags.tolist()) - {epoch} == {int32(epoch - 2**30 + 1)}
    return int(lifted[0])


def case_refresh() -> None:
    """A flag is lifted before it is so old that it looks set, one word in so many calls."""
    for kind in kinds_of(2):
        words = len(OneRank(kind.variant).all_flags(0))
        for step in (words // 4, 2**24 + 3 * words // 4, 2**26 - words // 4):
            first, second = (
                check_refresh(kind, int32((step + more) * REFRESH_CALLS)) for more in (0, 1)
            )
            assert second == (first + 1) % words, f"{kind}: word {second} after word {first}"
    rank = OneRank(one_shot(2), first_epoch=REFRESH_CALLS * 20)
    rank.partial_flags(0)[20:] = int32(-(2**30) - 7)
    call_once(rank, 1, 0, REFRESH_CALLS * 20 + 1, 16)
    assert (rank.partial_flags(0)[20:] == int32(-(2**30) - 7)).all(), "not in every call"


def case_peer_further_ahead_keeps_its_flag() -> None:
    """The refresh never takes back what a peer has set for the next call."""
    for kind in kinds_of(2):
        epoch = REFRESH_CALLS * 9
        rank = OneRank(kind.variant, first_epoch=epoch - 1)
        flags = rank.all_flags(0)
        flags[:] = epoch + 1
        call_once(rank, 1, kind.comm_ctas, epoch, 16)
        assert set(flags.tolist()) - {epoch} == {epoch + 1}


def check_silent(rank: OneRank, x: torch.Tensor, weight: torch.Tensor, comm_ctas: int) -> None:
    """A rank that gave up: waits no more, sends no more, and keeps the first record."""
    record, epoch = rank.status(rank.rank), rank.epoch
    before = rank.heaps.clone()
    w = rank.world_size
    for variant in (rank.variant, one_shot(w), lamport(w)):  # any later call, of any algorithm
        rank.variant = variant
        epoch += 1
        comm = comm_ctas if variant.algorithm == "two_shot" else 0
        y = rank(x, weight, comm_ctas=comm, spin_limit=FOREVER)
        assert y.isnan().all()
        assert rank.epoch == epoch
        for peer in range(rank.world_size):
            if peer != rank.rank:
                same = torch.equal(bits(rank.heaps[peer]), bits(before[peer]))
                assert same, "a rank that gave up must leave its peers alone"
    assert rank.status(rank.rank) == rank.host_status(rank.rank) == record


def case_absent_peer() -> None:
    """A partial that never comes: y is NaN, a record in heap and host copy, then silence."""
    x, weight = torch.ones(17, 32, dtype=HALF), torch.ones(FEATURES, 32, dtype=HALF)
    partial = torch.full((17, FEATURES), 32.0, dtype=HALF)
    for world_size, absent in ((2, 1), (4, 2)):
        for kind in kinds_of(world_size):
            rank = OneRank(kind.variant)
            for peer in range(1, world_size):
                if peer != absent:
                    rank.deliver_partial(peer, 0, partial, 1)
                    rank.deliver_results(peer, 0, partial * world_size, 1)
            wanted = OneRank(kind.variant)
            columns = torch.full((17, rank.variant.tile.block_n), 32.0, dtype=HALF)
            wanted.deliver_partial(0, absent, columns, 1)
            # One CTA: a second one would find that the rank gave up, and send nothing at all.
            y = rank(x, weight, ctas=1, comm_ctas=kind.comm_ctas, spin_limit=50)
            assert y.isnan().all(), str(kind)
            record = {"code": PARTIAL_LATE, "rank": 0, "tile": 0, "source": absent}
            record |= {"seen": 0, "expected": 1}
            if kind.variant.algorithm == "lamport":
                record |= {"code": CELL_LATE, "seen": kind.variant.tile.area}
            assert rank.status(0) == rank.host_status(0) == record, (str(kind), rank.status(0))
            assert rank.status(absent) == HEALTHY
            assert rank.words(0)[GAVE_UP_WORD] == 2 * 1 + 1, "the mark names the call"
            # Partials do not depend on the peer, results do: none may leave.
            same = torch.equal(bits(rank.heaps[absent]), bits(wanted.heaps[absent]))
            assert same, f"{kind}: not the partial alone was sent"
            assert rank.epoch == 1
            check_silent(rank, x, weight, kind.comm_ctas)


def case_late_unit() -> None:
    """Two-shot: units whose partials have come are sent, those behind the late one are not."""
    x, weight = torch.ones(64, 32, dtype=HALF), integers(1, 512, 32)
    partials = [exact_partial(x, weight), torch.ones(64, 512, dtype=HALF)]
    for split in (False, True):
        rank = OneRank(two_shot(2, split=split), max_features=512)
        rank.deliver_peers(partials, sum_in_rank_order(partials), 1)
        rank.partial_flags(0)[1, 1] = 0  # of rank 0's units the second: tile 2, or 1 if split
        y = rank(x, weight, spin_limit=50)
        late = 1 if split else 2
        record = {"code": PARTIAL_LATE, "rank": 0, "tile": late, "source": 1}
        assert rank.status(0) == record | {"seen": 0, "expected": 1}, rank.status(0)
        flags = rank.result_flags(1)
        assert flags[0] == 1 and (flags[1:] == 0).all(), flags[:8]
        assert y.isnan().all(), "this CTA knew of the failure before it copied"
        check_silent(rank, x, weight, 0)


def case_absent_owner() -> None:
    """Two-shot: a result that never comes. This rank's own results have left by then."""
    x, weight = torch.ones(17, 32, dtype=HALF), torch.ones(FEATURES, 32, dtype=HALF)
    for kind in kinds_of(2):
        if kind.variant.algorithm != "two_shot":
            continue
        me = 1 - (kind.variant.split - 1)  # without split the only tile is rank 0's
        columns = torch.full((17, kind.variant.tile.block_n), 32.0, dtype=HALF)
        rank = OneRank(kind.variant, me)
        rank.deliver_partial(1 - me, me, columns, 1)
        y = rank(x, weight, comm_ctas=kind.comm_ctas, spin_limit=50)
        assert y.isnan().all(), str(kind)
        record = {"code": RESULT_LATE, "rank": me, "tile": 0, "source": 1 - me}
        record |= {"seen": 0, "expected": 1}
        assert rank.status(me) == rank.host_status(me) == record, (str(kind), rank.status(me))
        assert rank.status(1 - me) == HEALTHY
        wanted = OneRank(kind.variant, me)
        wanted.deliver_partial(me, 1 - me, columns, 1)
        wanted.deliver_results(me, 1 - me, columns * 2, 1)
        same = torch.equal(bits(rank.heaps[1 - me]), bits(wanted.heaps[1 - me]))
        assert same, f"{kind}: what the peer waits for was not sent"
        check_silent(rank, x, weight, kind.comm_ctas)


def case_absent_owner_among_several() -> None:
    """Two-shot: the record names the owner of the unit that is late, not of another one."""
    x, weight = torch.ones(32, 32, dtype=HALF), torch.ones(512, 32, dtype=HALF)
    partial = torch.full((32, 512), 32.0, dtype=HALF)
    for split in (False, True):
        rank = OneRank(two_shot(4, split=split), max_features=512)
        rank.deliver_peers([partial] * 4, partial * 4, 1)
        tile, owner = (1, 2) if split else (2, 2)
        rank.result_flags(0)[tile * rank.variant.split + (owner if split else 0)] = 0
        y = rank(x, weight, spin_limit=50)
        record = {"code": RESULT_LATE, "rank": 0, "tile": tile, "source": owner}
        assert rank.status(0) == record | {"seen": 0, "expected": 1}, rank.status(0)
        columns = slice(tile * 128, None)
        assert y[:, columns].isnan().all() and (y[:, : tile * 128] == 128).all()
