"""Looks after one rank from beside its work: is it in time, are the others alive, has one failed?

A thread, which runs while the main thread waits in a collective. What it finds first, or what
another rank has found, ends the rank: nobody is left to wait for a rank that will not come.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smoke_tests import steps
from smoke_tests.board import Board, BoardLostError, Failure
from smoke_tests.place import Place

BEATS: Final = "SMOKE_BEATS"
"""The variable that names a folder of this host in which each rank leaves its process's number."""
BEAT_S: Final = 0.5
SILENT_S: Final = 10.0
"""A rank that has not been heard for so long counts as lost."""


class Progress:
    """How far this rank is. Its main thread writes, its watch reads.

    It is the board of the rank's `Steps`: each of them waits for other ranks.
    """

    def __init__(self) -> None:
        self.step, self.check = -1, "start"
        self._place, self._deadline = steps.Progress(), float("inf")
        self._main = threading.main_thread().ident

    def begin(self, step: int, check: str, limit_s: float) -> None:
        """Enter a check, which must be over within its limit."""
        self.step, self.check = step, check
        self._deadline = time.monotonic() + limit_s

    def done(self) -> None:
        """Leave the check; what comes next has no limit of its own."""
        self._deadline = float("inf")

    def write(self, rank: int, place: steps.Progress) -> None:
        """Take down the step within the check."""
        self._place = place

    @property
    def in_check(self) -> bool:
        """Whether a check runs."""
        return self._deadline < float("inf")

    @property
    def deadline(self) -> float:
        """When the check, or the step that it is in, must be over; monotonic."""
        return min(self._deadline, self._place.deadline) if self.in_check else float("inf")

    @property
    def steps(self) -> int:
        """How many steps the rank has begun: who has begun fewer is behind."""
        return self._place.number

    def where(self) -> str:
        """Return check, step, and the innermost function of smoke_tests with its line."""
        frame = sys._current_frames().get(self._main or 0)
        folder = str(Path(__file__).parent)
        while frame and not frame.f_code.co_filename.startswith(folder):
            frame = frame.f_back
        at = f", at {frame.f_code.co_name}:{frame.f_lineno}" if frame else ""
        step = f", {self._place.step}" if self._place.step else ""
        return f"{self.check}{step}{at}"


@dataclass(frozen=True)
class Sibling:
    """A process of this host, told from a later one that got its number."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Sibling:
        """Return a running process."""
        return cls(pid, _stat(pid)[19])

    @property
    def gone(self) -> bool:
        """Whether it has ended; one that nobody has waited for yet has."""
        try:
            fields = _stat(self.pid)
        except OSError:
            return True
        return fields[0] in "ZX" or fields[19] != self.started

    def kill(self) -> None:
        """End it."""
        if not self.gone:
            os.kill(self.pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    # The name of the program stands in brackets, and may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Watch(threading.Thread):
    """One rank's watch. ``end`` gets what was found, and does not return."""

    def __init__(
        self,
        place: Place,
        board: Board,
        progress: Progress,
        siblings: dict[int, Sibling],
        end: Callable[[Failure], None],
        silent_s: float = SILENT_S,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._place, self._board, self._progress = place, board, progress
        self._siblings, self._end, self._silent_s = siblings, end, silent_s
        self._agent = os.getppid()
        self._over = threading.Event()
        # Rank 0 listens to all, all listen to rank 0: the number of questions grows with the ranks.
        everyone = range(place.world_size)
        self._listens = [r for r in (everyone if place.rank == 0 else [0]) if r != place.rank]
        self._heard: dict[int, tuple[int, float]] = {}
        self._signals = _signals()

    def stop(self) -> None:
        """End the watch itself: the rank has come to its end."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look twice a second."""
        beat = 0
        while not self._over.is_set():
            beat += 1
            self._touch()
            try:
                failure = self._look(beat)
            except BoardLostError as error:
                failure = self._store_lost(error)
            if failure:
                self._end(failure)
                return
            select.select([self._signals], [], [], BEAT_S)

    def _touch(self) -> None:
        """Show `smoke_tests.launch` that this process runs: it ends one that has been stopped."""
        if folder := os.environ.get(BEATS):
            with contextlib.suppress(OSError):
                own = Sibling.of(os.getpid())
                Path(folder, str(self._place.rank)).write_text(f"{own.pid} {own.started}")

    def _look(self, beat: int) -> Failure | None:
        step, place = self._progress.step, self._place
        if os.getppid() != self._agent:
            text = f"torchrun of node {place.node} is gone"
            return self._first(Failure("died", step, dict.fromkeys(place.node_ranks, text)))
        self._board.post(f"beat/{place.rank}", [beat, self._progress.where(), step])
        if known := self._board.read("failure"):
            return Failure.of(known)
        if gone := {r: "its process is gone" for r, s in self._siblings.items() if s.gone}:
            return self._first(Failure("died", step, gone))
        if signalled := self._signalled():
            return self._first(Failure("died", step, {place.rank: f"was told to end: {signalled}"}))
        if time.monotonic() > self._progress.deadline:
            return self._first(Failure("hung", step))
        return self._silent(step)

    def _silent(self, step: int) -> Failure | None:
        now = time.monotonic()
        beats = self._board.read_all(f"beat/{rank}" for rank in self._listens)
        silent = {}
        for rank, (beat, _, _) in zip(self._listens, beats, strict=True):
            before = self._heard.get(rank)
            if before is None or before[0] != beat:
                self._heard[rank] = (beat, now)
            elif now - before[1] > self._silent_s:
                silent[rank] = f"has not been heard for {self._silent_s:g} s"
        return self._first(Failure("hung", step, silent)) if silent else None

    def _first(self, failure: Failure) -> Failure:
        """Tell all; return what was told first."""
        return Failure.of(self._board.first("failure", failure.as_dict()))

    def _store_lost(self, error: BoardLostError) -> Failure:
        place = self._place
        if os.getppid() != self._agent:
            text, node = f"torchrun of node {place.node} is gone", place.node
        else:
            text = f"torchrun of node 0 keeps the store and does not answer: {error}".splitlines()[
                0
            ]
            node = 0
        first = node * place.local_size
        ranks = dict.fromkeys(range(first, first + place.local_size), text)
        return Failure("died", self._progress.step, ranks)

    def _signalled(self) -> str:
        try:
            received = self._signals.recv(64)
        except BlockingIOError:
            return ""
        return ", ".join(sorted({signal.Signals(number).name for number in received}))


def _signals() -> socket.socket:
    """Return a socket that gets the numbers of signals to end, whatever the main thread is at."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading
