"""Where every rank is: memory that its parent reads at any time, also when the rank was killed."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

SLOT: Final = 512
_HEAD: Final = struct.Struct("<Qddq")
_RECORDS: Final = (8, 8 + (SLOT - 8) // 2)
_NAME_BYTES: Final = (SLOT - 8) // 2 - _HEAD.size
_FOREVER: Final = float("inf")


@dataclass(frozen=True)
class Progress:
    """Where a rank is.

    Attributes:
        step: its name; empty between checks.
        number: how many steps the rank has begun: who has begun fewer is behind.
        begin, deadline: seconds on CLOCK_MONOTONIC, which all processes of a host share.
    """

    step: str = ""
    number: int = 0
    begin: float = 0.0
    deadline: float = _FOREVER


@dataclass(frozen=True)
class Plant:
    """A fault to plant: the rank sends itself the signal when it first comes to that step.

    ``limit_s``, where it is not 0, is then that step's time limit.
    """

    rank: int
    step: str
    signal: int
    limit_s: float = 0.0


class ProgressBoard:
    """The places of all ranks of a pool, in a file that all of them map."""

    def __init__(self, path: Path, world_size: int) -> None:
        """Map the file, making it where it is not yet."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, world_size * SLOT)
            self._memory = mmap.mmap(descriptor, world_size * SLOT)
        finally:
            os.close(descriptor)

    def read(self, rank: int) -> Progress:
        """Return where a rank is."""
        start = rank * SLOT
        at = start + _RECORDS[self._memory[start] & 1]
        number, begin, deadline, size = _HEAD.unpack_from(self._memory, at)
        name = self._memory[at + _HEAD.size : at + _HEAD.size + size]
        return Progress(name.decode(errors="replace"), number, begin, deadline or _FOREVER)

    def write(self, rank: int, place: Progress) -> None:
        """Say where a rank is.

        The other of two records is written, then one byte says that it holds: a rank that is
        killed half-way leaves a whole record.
        """
        start = rank * SLOT
        other = self._memory[start] & 1 ^ 1
        at = start + _RECORDS[other]
        name = place.step.encode()[:_NAME_BYTES]
        _HEAD.pack_into(self._memory, at, place.number, place.begin, place.deadline, len(name))
        self._memory[at + _HEAD.size : at + _HEAD.size + len(name)] = name
        self._memory[start] = other


class Writes(Protocol):
    """Takes down where a rank is."""

    def write(self, rank: int, place: Progress) -> None:
        """Say where a rank is."""


class Steps:
    """One rank's steps. Without a board nobody watches: for ranks in the caller's own process.

    ``limit_s`` holds for steps that name none; ``most_s``, where it is not 0, for every step.
    """

    def __init__(
        self,
        rank: int,
        board: Writes | None = None,
        limit_s: float = 90.0,
        most_s: float = 0.0,
        plant: Plant | None = None,
    ) -> None:
        self._rank, self._board = rank, board
        self._limit_s, self._most_s = limit_s, most_s
        self._plant = plant if plant and plant.rank == rank else None
        self._place = Progress()
        self.failed_in = ""
        """The innermost step that the last error came out of."""
        self._error: BaseException | None = None
        self.names: dict[str, None] = {}
        """Every step so far, in the order of its first time."""

    @contextmanager
    def step(self, name: str, limit_s: float = 0.0) -> Iterator[None]:
        """Be in a step, which must end within its time limit; steps may lie within others."""
        outer = self._place
        plant = self._plant if self._plant and self._plant.step == name else None
        limit = (plant and plant.limit_s) or self._most_s or limit_s or self._limit_s
        now = time.monotonic()
        # Not later than what it lies in: that one's limit holds on.
        deadline = min(now + limit, outer.deadline)
        self._go(Progress(name, outer.number + 1, now, deadline))
        self.names[name] = None
        if plant:
            self._plant = None
            os.kill(os.getpid(), plant.signal)
        try:
            yield
        except BaseException as error:
            if error is not self._error:
                self._error, self.failed_in = error, name
            raise
        finally:
            self._go(Progress(outer.step, self._place.number, outer.begin, outer.deadline))

    def rest(self) -> None:
        """Be in no step: between checks."""
        self._go(Progress(number=self._place.number))

    def _go(self, place: Progress) -> None:
        self._place = place
        if self._board:
            self._board.write(self._rank, place)
