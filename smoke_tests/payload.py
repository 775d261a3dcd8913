"""Payloads that say which pair of ranks they are of, and a walk over every ordered pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

WORDS = 1 << 16
"""int32 words of a payload: its word number is in the lower half of each, its pair in the upper."""
EMPTY = -1

Direction = Literal["put", "get"]


def payload(source: int, target: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return int32 [WORDS] of a pair; ranks up to 126, so that no word is EMPTY."""
    return torch.arange(WORDS, dtype=torch.int32, device=device) | _tag(source, target) << 16


def _tag(source: int, target: int) -> int:
    return (source + 1) << 7 | (target + 1)


def verdict(received: torch.Tensor, source: int, target: int) -> str:
    """Return what is wrong with a payload of a pair, or nothing."""
    wrong = received != payload(source, target, received.device)
    count = int(wrong.sum())
    if not count:
        return ""
    first = int(wrong.nonzero()[0])
    word = int(received[first])
    what = f"{count} of {WORDS} words are wrong, the first is word {first}: "
    tag = word >> 16
    a, b = (tag >> 7) - 1, (tag & 127) - 1
    if word == EMPTY:
        return what + "nothing came"
    if word & 0xFFFF == first and a >= 0 and b >= 0:
        return what + f"it is what rank {a} sends to rank {b}"
    return what + f"{word & 0xFFFFFFFF:#010x}"


def ordered_pairs(world_size: int) -> Iterator[tuple[int, int]]:
    """Yield every (source, target), a rank with itself left out."""
    for source in range(world_size):
        for target in range(world_size):
            if source != target:
                yield source, target


def bad_pairs(
    direction: Direction,
    rank: int,
    world_size: int,
    gather: Callable[[Any], list[Any]],
    inbox: torch.Tensor,
    outbox: torch.Tensor,
    move: Callable[[int], None],
    synchronize: Callable[[], None],
    step: Callable[[str], AbstractContextManager[None]],
) -> list[str]:
    """Move a payload between every ordered pair; return a line for each that is bad.

    The same on every rank. One pair at a time, and every inbox is looked at: what arrives at
    another rank is found too.

    Args:
        direction: ``put``: the source moves, into the target's inbox. ``get``: the target moves,
            out of the source's outbox, into its own inbox.
        rank, world_size, gather: of the processes; gather is a barrier as well.
        inbox, outbox: int32 [WORDS], this rank's.
        move: takes the peer's rank.
        synchronize: waits for the device.
        step: is entered for a move, and given the pair's name: where a rank hangs.
    """
    bad: list[str] = []
    arrow = "->" if direction == "put" else "<-"
    for source, target in ordered_pairs(world_size):
        mover, peer = (source, target) if direction == "put" else (target, source)
        pair = f"rank {mover} {arrow} rank {peer}"
        inbox.fill_(EMPTY)
        if rank == source:
            outbox.copy_(payload(source, target, outbox.device))
        synchronize()
        gather(None)
        problem = ""
        if rank == mover:
            try:
                with step(pair):
                    move(peer)
                    synchronize()
            except Exception as error:  # the others wait for this rank
                problem = f"{type(error).__name__}: {error}"
        gather(None)
        if rank == target:
            problem = problem or verdict(inbox, source, target)
        elif not problem and bool((inbox != EMPTY).any()):
            problem = f"rank {rank} got something"
        found = list(dict.fromkeys(text for text in gather(problem) if text))
        if found:
            bad.append(f"{pair}: {'; '.join(found)}")
    return bad
