"""Bandwidth of every ordered pair of GPUs, by copies into a peer's symmetric memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from smoke_tests.measure.timing import Timer, take_turns

BYTES = 256 * 2**20
ROUNDS = 10


def measure_pairs(
    rank: int,
    peers: Sequence[torch.Tensor],
    own: torch.Tensor,
    timer: Timer,
    gather: Callable[[Any], list[Any]],
) -> dict[tuple[int, int], float]:
    """Return 10^9 bytes a second for every (source, destination), the same on all ranks.

    One pair at a time: nothing else is on the links. ``peers`` are every rank's buffers as this
    process sees them, ``own`` is what it sends, of the same size.

    Raises: RuntimeError, on every rank, naming the pairs that cannot copy.
    """
    found: dict[tuple[int, int], float] = {}
    bad = []
    for source in range(len(peers)):
        for target in range(len(peers)):
            if source == target:
                continue
            rate, problem = 0.0, ""
            if rank == source:
                try:
                    rate = _rate(peers[target], own, timer)
                except Exception as error:  # the others must not wait in vain
                    problem = f"rank {source} -> rank {target}: {type(error).__name__}: {error}"
            rate, problem = gather((rate, problem))[source]  # also the barrier between two pairs
            if problem:
                bad.append(problem)
            else:
                found[source, target] = rate
    if bad:
        raise RuntimeError("; ".join(bad))
    return found


def _rate(target: torch.Tensor, own: torch.Tensor, timer: Timer) -> float:
    def copy() -> None:
        target.copy_(own)

    take_turns(timer, {"copy": copy}, 2, _nothing)
    us = take_turns(timer, {"copy": copy}, ROUNDS, _nothing)["copy"]
    return own.numel() * own.element_size() / statistics.median(us) / 1e3


def _nothing() -> None:
    pass


def symmetric_buffers(group: Any, device: torch.device, nbytes: int = BYTES) -> list[torch.Tensor]:
    """Return every rank's buffer [nbytes] as this process sees it. Collective."""
    import torch.distributed._symmetric_memory as symmetric_memory

    own = symmetric_memory.empty(nbytes, dtype=torch.uint8, device=device)
    handle = symmetric_memory.rendezvous(own, group)
    return [
        own if rank == handle.rank else handle.get_buffer(rank, (nbytes,), torch.uint8)
        for rank in range(handle.world_size)
    ]
