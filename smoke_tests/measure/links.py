"""Bandwidth of every ordered pair of GPUs: copies, and a kernel's stores and loads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args

import torch

from smoke_tests.measure.timing import Timer, take_turns

BYTES = 256 * 2**20
ROUNDS = 10


How = Literal["copy", "store", "load"]
"""By a copy engine; by a kernel that stores into the peer's memory; by one that loads from it."""
HOW: Final[tuple[How, ...]] = get_args(How)


def measure_pairs(
    rank: int,
    peers: Sequence[torch.Tensor],
    own: torch.Tensor,
    timer: Timer,
    gather: Callable[[Any], list[Any]],
    how: How = "copy",
) -> dict[tuple[int, int], float]:
    """Return 10^9 bytes a second for every (source, destination), the same on all ranks.

    One pair at a time: nothing else is on the links. ``peers`` are every rank's buffers, int32, as
    this process sees them; ``own`` is its own, of the same size, to send from or load into.

    Raises: RuntimeError, on every rank, naming the pairs that cannot copy.
    """
    found: dict[tuple[int, int], float] = {}
    bad = []
    for source in range(len(peers)):
        for target in range(len(peers)):
            if source == target:
                continue
            rate, problem = 0.0, ""
            mover, peer = (target, source) if how == "load" else (source, target)
            if rank == mover:
                try:
                    rate = _rate(peers[peer], own, timer, how)
                except Exception as error:  # the others must not wait in vain
                    problem = f"rank {source} -> rank {target}: {type(error).__name__}: {error}"
            rate, problem = gather((rate, problem))[mover]  # also the barrier between two pairs
            if problem:
                bad.append(problem)
            else:
                found[source, target] = rate
    if bad:
        raise RuntimeError("; ".join(bad))
    return found


def _rate(theirs: torch.Tensor, own: torch.Tensor, timer: Timer, how: How) -> float:
    def body() -> None:
        if how == "copy":
            theirs.copy_(own)
        elif how == "store":  # sums with zero: a copy would be a copy engine's
            torch.add(own, 0, out=theirs)
        else:
            torch.add(theirs, 0, out=own)

    take_turns(timer, {how: body}, 2, _nothing)
    us = take_turns(timer, {how: body}, ROUNDS, _nothing)[how]
    return own.numel() * own.element_size() / statistics.median(us) / 1e3


def _nothing() -> None:
    pass


def symmetric_buffers(group: Any, device: torch.device, nbytes: int = BYTES) -> list[torch.Tensor]:
    """Return every rank's buffer, int32 of nbytes, as this process sees it. Collective."""
    import torch.distributed._symmetric_memory as symmetric_memory

    count = nbytes // 4
    own = symmetric_memory.empty(count, dtype=torch.int32, device=device)
    handle = symmetric_memory.rendezvous(own, group)
    return [
        own if rank == handle.rank else handle.get_buffer(rank, (count,), torch.int32)
        for rank in range(handle.world_size)
    ]
