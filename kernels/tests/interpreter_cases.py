"""Cases for the kernel in Triton's interpreter: ``TRITON_INTERPRET=1 interpreter_cases.py NAME``.

fp16 only: the interpreter's tl.dot on bf16 is wrong. Several ranks in one process would wait for
each other, so here a peer is either prefilled memory, absent, or another process.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

from gemm_allreduce.launch import launch_one_shot
from gemm_allreduce.layout import (
    ARRIVALS_WORD,
    EPOCH_WORD,
    STATUS_FIELDS,
    STATUS_WORD,
    HeapLayout,
)
from gemm_allreduce.variants import Variant
from gemm_allreduce.virtual_ranks import VirtualRanks, launch_virtual_ranks

HALF = torch.float16
FEATURES = 64
SPIN_LIMIT = 200_000


def small_variant(world_size: int) -> Variant:
    return Variant("fp16", world_size, 16, 32, 32, 1, 4)


def guarded(values: torch.Tensor) -> torch.Tensor:
    """Copy into the middle of NaNs: an unmasked read beyond the end poisons the result."""
    pad = 4096
    buffer = torch.full((values.numel() + 2 * pad,), float("nan"), dtype=values.dtype)
    view = buffer[pad : pad + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def integers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return guarded(torch.randint(-3, 4, shape, generator=generator).to(HALF))


def exact_partial(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rounded partial of integer inputs; exact in fp64, hence in fp32 in any order."""
    return (x.double() @ weight.double().T).to(HALF)


def sum_in_rank_order(partials: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(partials[0], dtype=torch.float32)
    for partial in partials:
        total = total + partial.float()
    return total.to(HALF)


class OneRank:
    """One real (not virtual) rank of a group whose heaps are plain memory of this process."""

    def __init__(self, world_size: int, rank: int, heaps: torch.Tensor | None = None) -> None:
        self.variant = small_variant(world_size)
        self.layout = HeapLayout(world_size, 48, FEATURES, 16, 32)
        self.rank = rank
        if heaps is None:
            heaps = torch.zeros(world_size, self.layout.total_bytes, dtype=torch.uint8)
        self.heaps = heaps
        self.table = torch.tensor([heap.data_ptr() for heap in heaps], dtype=torch.int64)

    def words(self, rank: int) -> torch.Tensor:
        return self.heaps[rank].view(torch.int32)

    def flags(self, rank: int) -> torch.Tensor:
        """[tiles, source] of a rank's heap."""
        start = self.layout.flags_offset // 4
        end = start + self.layout.max_tiles * self.variant.world_size
        return self.words(rank)[start:end].view(self.layout.max_tiles, -1)

    def slots(self, rank: int) -> torch.Tensor:
        """[slot, source, M, N] of a rank's heap."""
        start = self.layout.slots_offset // 2
        shape = (2, self.variant.world_size, self.layout.max_tokens, FEATURES)
        count = 2 * self.variant.world_size * self.layout.source_stride
        return self.heaps[rank].view(HALF)[start : start + count].view(shape)

    def status(self, rank: int) -> dict[str, int]:
        record = self.words(rank)[STATUS_WORD : STATUS_WORD + len(STATUS_FIELDS)].tolist()
        return dict(zip(STATUS_FIELDS, record, strict=True))

    def __call__(
        self, x: torch.Tensor, weight: torch.Tensor, ctas: int, spin_limit: int = SPIN_LIMIT
    ) -> torch.Tensor:
        out = torch.full((x.shape[0], FEATURES), float("nan"), dtype=HALF)
        launch_one_shot(
            self.variant,
            self.layout,
            x,
            weight,
            out,
            self.table,
            rank=self.rank,
            ctas=ctas,
            spin_limit=spin_limit,
            virtual=False,
        )
        return out


def tails() -> None:
    """M and K tails, one and several tiles per CTA: exact on integers, nothing read beyond."""
    generator = torch.Generator().manual_seed(1)
    for tokens, depth, ctas in ((1, 32, 2), (16, 100, 2), (17, 131, 3), (33, 31, 1), (48, 64, 6)):
        x = integers(generator, tokens, depth)
        weight = integers(generator, FEATURES, depth)
        x_before, weight_before = x.clone(), weight.clone()
        rank = OneRank(1, 0)
        rank.slots(0).fill_(7)
        y = rank(x, weight, ctas)
        expected = exact_partial(x, weight)
        assert torch.equal(y, expected), (tokens, depth, ctas, (y - expected).abs().max())
        assert torch.equal(x, x_before) and torch.equal(weight, weight_before)
        slot = rank.slots(0)[1, 0]
        assert torch.equal(slot[:tokens], expected)
        assert (slot[tokens:] == 7).all(), "rows beyond M were written"
        assert (rank.slots(0)[0] == 7).all(), "the other slot was written"


def random_bound() -> None:
    """Random inputs against fp64: one rounding to fp16 plus fp32 accumulation over K."""
    generator = torch.Generator().manual_seed(2)
    for tokens, depth in ((5, 100), (33, 257)):
        x = guarded(torch.randn(1, tokens, depth, generator=generator).to(HALF))
        weight = guarded(torch.randn(1, FEATURES, depth, generator=generator).to(HALF))
        y = VirtualRanks(
            1, dtype=HALF, device="cpu", max_features=FEATURES, variant=small_variant(1)
        )(x, weight)[0]
        exact = x[0].double() @ weight[0].double().T
        magnitude = x[0].double().abs() @ weight[0].double().abs().T
        bound = exact.abs() * 2**-11 + magnitude * depth * 2**-23 + 2**-25
        assert ((y.double() - exact).abs() <= bound).all(), (tokens, depth)


def epochs() -> None:
    """Calls in a row with changing M: the epoch advances, slots alternate, the other stays."""
    generator = torch.Generator().manual_seed(3)
    rank = OneRank(1, 0)
    rank.slots(0).fill_(float("nan"))
    for call in range(1, 7):
        tokens, depth = (1, 16, 33, 48, 17, 5)[call - 1], 40 + call
        x, weight = integers(generator, tokens, depth), integers(generator, FEATURES, depth)
        other = rank.slots(0)[(call + 1) & 1].clone()
        expected = exact_partial(x, weight)
        assert torch.equal(rank(x, weight, ctas=2), expected), call
        assert torch.equal(rank.slots(0)[call & 1, 0, :tokens], expected), call
        unchanged = rank.slots(0)[(call + 1) & 1]
        assert torch.equal(unchanged.view(torch.int16), other.view(torch.int16)), call
        assert rank.words(0)[EPOCH_WORD] == call
        assert rank.words(0)[ARRIVALS_WORD] == 0
        tiles = -(-tokens // 16) * (FEATURES // 32)
        assert (rank.flags(0)[:tiles] == call).all(), call
        assert rank.status(0)["code"] == 0


def wrap() -> None:
    """The epoch wraps around int32 and around zero."""
    generator = torch.Generator().manual_seed(4)
    for first in (2**31 - 3, -3):
        ranks = VirtualRanks(
            1,
            dtype=HALF,
            device="cpu",
            max_features=FEATURES,
            variant=small_variant(1),
            first_epoch=first,
        )
        for call in range(1, 6):
            x, weight = integers(generator, 1, 4, 32), integers(generator, 1, FEATURES, 32)
            y = ranks(x, weight, spin_limit=3)
            ranks.check()
            assert torch.equal(y[0], exact_partial(x[0], weight[0])), (first, call)
            assert ranks.epochs() == [(first + call + 2**31) % 2**32 - 2**31]


def prefill(rank: OneRank, source: int, slot: int, partial: torch.Tensor, flag: int) -> None:
    rank.slots(rank.rank)[slot, source, : partial.shape[0]] = partial
    rank.flags(rank.rank)[:, source] = flag


def rank_order() -> None:
    """Each rank of four sums in rank order 0..3, with values for which the order shows."""
    ones = torch.ones(3, FEATURES, dtype=HALF)
    partials = [ones * 60000, ones * 2**-9, ones * -60000, ones * 2**-9]
    expected = sum_in_rank_order(partials)
    assert not torch.equal(expected, sum_in_rank_order(partials[::-1]))
    for me in range(4):
        rank = OneRank(4, me)
        for source, partial in enumerate(partials):
            if source != me:
                prefill(rank, source, slot=1, partial=partial, flag=1)
        x = torch.zeros(3, 16, dtype=HALF)
        x[:, 0] = 1
        weight = torch.zeros(FEATURES, 16, dtype=HALF)
        weight[:, 0] = partials[me][0]
        assert torch.equal(rank(x, weight, ctas=1), expected), me
        assert rank.status(me)["code"] == 0
        for peer in range(4):
            assert torch.equal(rank.slots(peer)[1, me, :3], partials[me]), (me, peer)
            assert (rank.flags(peer)[:2, me] == 1).all(), (me, peer)


def peer_ahead() -> None:
    """A peer one call ahead counts as arrived, one call behind does not; modulo 2**32."""
    top, bottom = 2**31 - 1, -(2**31)
    partial = torch.full((2, FEATURES), 5.0, dtype=HALF)
    x, weight = torch.ones(2, 16, dtype=HALF), torch.ones(FEATURES, 16, dtype=HALF)
    for epoch, ahead in ((1, 2), (-1, 0), (0, 1), (top, bottom), (bottom, bottom + 1)):
        behind = top if epoch == bottom else epoch - 1
        for flag in (ahead, behind):
            rank = OneRank(2, 0)
            rank.words(0)[EPOCH_WORD] = behind
            prefill(rank, source=1, slot=epoch & 1, partial=partial, flag=flag)
            y = rank(x, weight, ctas=2, spin_limit=3)
            assert rank.words(0)[EPOCH_WORD] == epoch
            if flag == ahead:
                assert rank.status(0)["code"] == 0, (epoch, rank.status(0))
                assert (y == 21).all(), epoch
            else:
                status = rank.status(0)
                assert (status["seen"], status["expected"]) == (behind, epoch), status
                assert y.isnan().all(), epoch


def absent_peer() -> None:
    """A flag that never comes: NaN and a status record; afterwards the rank no longer pushes."""
    rank = OneRank(2, 0)
    x, weight = torch.ones(17, 32, dtype=HALF), torch.ones(FEATURES, 32, dtype=HALF)
    started = time.monotonic()
    y = rank(x, weight, ctas=1, spin_limit=500)
    seconds = time.monotonic() - started
    assert seconds < 60, f"the wait took {seconds} s"
    assert y.isnan().all()
    expected = {"code": 1, "rank": 0, "tile": 0, "source": 1, "seen": 0, "expected": 1}
    assert rank.status(0) == expected, rank.status(0)
    assert rank.status(1)["code"] == 0
    assert (rank.slots(1)[1, 0, :17] == 32).all(), "publishing does not depend on the peer"
    assert (rank.flags(1)[:4, 0] == 1).all() and (rank.flags(1)[:, 1] == 0).all()
    assert rank.words(0)[EPOCH_WORD] == 1 and rank.words(0)[ARRIVALS_WORD] == 0

    before = rank.heaps[1].clone()
    prefill(rank, source=1, slot=0, partial=torch.ones(17, FEATURES, dtype=HALF), flag=2)
    # It waits no more either: with this limit it would outlast the test's time limit.
    assert rank(x, weight, ctas=2, spin_limit=2**30).isnan().all()
    assert torch.equal(rank.heaps[1], before), "a rank that gave up must leave its peers alone"
    assert rank.status(0) == expected
    assert rank.words(0)[EPOCH_WORD] == 2 and rank.words(0)[ARRIVALS_WORD] == 0

    ranks = VirtualRanks(
        1, dtype=HALF, device="cpu", max_features=FEATURES, variant=small_variant(1)
    )
    ranks.heaps.view(torch.int32)[0, STATUS_WORD : STATUS_WORD + 6] = torch.tensor(
        [1, 0, 7, 1, 4, 5], dtype=torch.int32
    )
    try:
        ranks.check()
    except TimeoutError as error:
        assert "rank 0 gave up waiting for rank 1 at tile 7" in str(error), error
        assert "its flag is 4, expected 5" in str(error), error
    else:
        raise AssertionError("check() did not raise")


def refusals() -> None:
    """Bad input is a ValueError before anything runs; the next call works."""
    ranks = VirtualRanks(
        1, dtype=HALF, device="cpu", max_features=FEATURES, max_tokens=16, variant=small_variant(1)
    )
    x, weight = torch.ones(1, 4, 16, dtype=HALF), torch.ones(1, FEATURES, 16, dtype=HALF)
    bad: list[Callable[[], object]] = [
        lambda: ranks(x[0], weight),
        lambda: ranks(x.float(), weight),
        lambda: ranks(x[:, :, :8], weight),
        lambda: ranks(x, weight[:, :16].contiguous()),
        lambda: ranks(x, weight[:, :48].contiguous()),
        lambda: ranks(torch.ones(1, 17, 16, dtype=HALF), weight),
        lambda: ranks(x[:, :0], weight),
        lambda: ranks(x, torch.ones(1, 2 * FEATURES, 16, dtype=HALF)),
        lambda: ranks(x, weight, torch.empty(1, 4, FEATURES)),
        lambda: VirtualRanks(1, dtype=torch.float32, device="cpu", max_features=FEATURES),
    ]
    for number, call in enumerate(bad):
        try:
            call()
        except ValueError:
            continue
        raise AssertionError(f"input {number} was not refused")
    assert ranks.epochs() == [0]
    y = ranks(x, weight)
    ranks.check()
    assert (y == 16).all() and ranks.epochs() == [1]
    try:
        launch_virtual_ranks(torch.ones(2, 4, 16, dtype=HALF), torch.ones(2, 128, 16, dtype=HALF))
    except RuntimeError as error:
        assert "one process per rank" in str(error)
    else:
        raise AssertionError("two virtual ranks in the interpreter were not refused")


CALLS = ((1, 40), (16, 131), (33, 64), (48, 33), (17, 96), (5, 31), (16, 40), (2, 64))


def payload(rank: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, depth = CALLS[call]
    generator = torch.Generator().manual_seed(100 * call + rank)
    return integers(generator, tokens, depth), integers(generator, FEATURES, depth)


def run_rank(path: str, rank: int, world_size: int) -> None:
    """One process of two_processes; its results go to a file beside the heaps."""
    torch.set_num_threads(1)
    layout = OneRank(world_size, rank).layout
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), world_size * layout.total_bytes)
    heaps = torch.frombuffer(memory, dtype=torch.uint8).view(world_size, layout.total_bytes)
    me = OneRank(world_size, rank, heaps)
    results = []
    for call in range(len(CALLS)):
        if call % 4 == 2 * rank:  # each rank late in turn
            time.sleep(0.3)
        results.append(me(*payload(rank, call), ctas=2))
        assert me.status(rank)["code"] == 0, me.status(rank)
    assert me.words(rank)[EPOCH_WORD] == len(CALLS)
    torch.save(results, f"{path}.{rank}")


def two_processes() -> None:
    """Two ranks in two processes over shared memory: exact, and bit-equal on both."""
    world_size = 2
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "heaps")
        Path(path).write_bytes(bytes(world_size * OneRank(world_size, 0).layout.total_bytes))
        processes = [
            context.Process(target=run_rank, args=(path, rank, world_size), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + 120
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        assert codes == [0, 0], f"exit codes {codes} (None: did not end in time)"
        results = [torch.load(f"{path}.{rank}") for rank in range(world_size)]
    for call in range(len(CALLS)):
        partials = [exact_partial(*payload(rank, call)) for rank in range(world_size)]
        expected = sum_in_rank_order(partials)
        for rank in range(world_size):
            assert torch.equal(results[rank][call], expected), (call, rank)


if __name__ == "__main__":
    name = sys.argv[1]
    globals()[name]()
    print(f"{name} passed")
