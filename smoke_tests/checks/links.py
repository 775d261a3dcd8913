"""Between every ordered pair of ranks: a payload that names its pair. A bad pair is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from smoke_tests.checks.registry import check
from smoke_tests.payload import EMPTY, WORDS, Direction, bad_pairs, payload, verdict
from smoke_tests.ranks import Ranks

LATE_CYCLES = 20_000_000
"""About 10 ms of a GPU's clock."""


def _require_pairs(
    ranks: Ranks,
    direction: Direction,
    inbox: torch.Tensor,
    outbox: torch.Tensor,
    move: Callable[[int], None],
) -> None:
    bad = bad_pairs(
        direction,
        ranks.rank,
        ranks.world_size,
        ranks.gather,
        inbox,
        outbox,
        move,
        partial(torch.cuda.synchronize, ranks.device),
        ranks.step,
    )
    assert not bad, "\n".join(bad)


def _count(ranks: Ranks) -> str:
    return f"{ranks.world_size * (ranks.world_size - 1)} pairs"


@check("symmetric", least_ranks=2, own_gpu=True)
def symmetric_memory_reaches_every_pair(ranks: Ranks) -> str:
    """A kernel's stores into a peer's memory arrive, and its loads from there see what is there."""
    import torch.distributed._symmetric_memory as symmetric_memory

    assert ranks.group is not None
    both = symmetric_memory.empty(2 * WORDS, dtype=torch.int32, device=ranks.device)
    handle = symmetric_memory.rendezvous(both, ranks.group)
    inbox, outbox = both[:WORDS], both[WORDS:]

    def of(peer: int) -> torch.Tensor:
        view: torch.Tensor = handle.get_buffer(peer, (2 * WORDS,), torch.int32)
        return view

    # Sums with zero: a copy would be the copy engines', not a kernel's loads and stores.
    def store(peer: int) -> None:
        torch.add(outbox, 0, out=of(peer)[:WORDS])

    def load(peer: int) -> None:
        torch.add(of(peer)[WORDS:], 0, out=inbox)

    _require_pairs(ranks, "put", inbox, outbox, store)
    _require_pairs(ranks, "get", inbox, outbox, load)
    ranks.gather(None)
    return _count(ranks)


@dataclass(frozen=True)
class _Nvshmem:
    """NVSHMEM's host interface on the current stream. ``pes``: of every rank."""

    core: Any
    pes: list[int]
    inbox_buffer: Any
    outbox_buffer: Any
    inbox: torch.Tensor
    outbox: torch.Tensor

    def stream(self) -> Any:
        return self.core.NvshmemStream(torch.cuda.current_stream())

    def put(self, peer: int) -> None:
        stream = self.stream()
        self.core.put(self.inbox_buffer, self.outbox_buffer, self.pes[peer], stream=stream)
        self.core.quiet(stream=stream)

    def get(self, peer: int) -> None:
        stream = self.stream()
        self.core.get(self.inbox_buffer, self.outbox_buffer, self.pes[peer], stream=stream)
        self.core.quiet(stream=stream)


@contextmanager
def _nvshmem(ranks: Ranks) -> Iterator[_Nvshmem]:
    """Start NVSHMEM as the kernels do, with an inbox and an outbox."""
    import nvshmem.core as core

    transport = ranks.connect()
    pes = ranks.gather(int(core.my_pe()))
    buffers = [core.buffer(WORDS * 4) for _ in range(2)]
    inbox, outbox = (
        torch.utils.dlpack.from_dlpack(buffer).view(torch.uint8)[: WORDS * 4].view(torch.int32)
        for buffer in buffers
    )
    yield _Nvshmem(core, pes, buffers[0], buffers[1], inbox, outbox)
    ranks.synchronize()
    ranks.gather(None)
    del inbox, outbox
    for buffer in buffers:
        core.free(buffer)
    transport.close()


@check("nvshmem", least_ranks=2, own_gpu=True)
def nvshmem_put_reaches_every_pair(ranks: Ranks) -> str:
    """A put from the host, on a stream, arrives at its target and nowhere else."""
    with _nvshmem(ranks) as shmem:
        _require_pairs(ranks, "put", shmem.inbox, shmem.outbox, shmem.put)
    return _count(ranks)


@check("nvshmem", least_ranks=2, own_gpu=True)
def nvshmem_get_reaches_every_pair(ranks: Ranks) -> str:
    """A get fetches what its source has, and writes nowhere else."""
    with _nvshmem(ranks) as shmem:
        _require_pairs(ranks, "get", shmem.inbox, shmem.outbox, shmem.get)
    return _count(ranks)


@check("nvshmem", least_ranks=2, own_gpu=True)
def nvshmem_barrier_waits_for_puts(ranks: Ranks) -> str:
    """Each rank late in turn: behind a barrier everybody's put is there, with no other wait."""
    w, rank = ranks.world_size, ranks.rank
    bad = []
    with _nvshmem(ranks) as shmem:
        for late in range(w):
            for distance in range(1, w):
                source, target = (rank - distance) % w, (rank + distance) % w
                shmem.inbox.fill_(EMPTY)
                shmem.outbox.copy_(payload(rank, target, ranks.device))
                ranks.synchronize()
                ranks.gather(None)
                if rank == late:
                    torch.cuda._sleep(LATE_CYCLES)  # type: ignore[no-untyped-call]
                stream = shmem.stream()
                shmem.core.put(
                    shmem.inbox_buffer, shmem.outbox_buffer, shmem.pes[target], stream=stream
                )
                shmem.core.barrier_all(stream=stream)
                seen = shmem.inbox.clone()
                with ranks.step(f"barrier, rank {late} late"):
                    torch.cuda.synchronize(ranks.device)
                wrong = verdict(seen, source, rank)
                text = f"rank {source} -> rank {rank}, rank {late} late: {wrong}" if wrong else ""
                bad += [found for found in ranks.gather(text) if found]
    assert not bad, "\n".join(bad)
    return f"{w} ranks late in turn"
