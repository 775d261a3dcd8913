"""Tells how far a compilation is: on a terminal one line that is rewritten, elsewhere few lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, TextIO

PACE_S: Final = 10.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts what is done, by architecture, and writes it."""

    def __init__(
        self,
        totals: Mapping[str, int],
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`totals`: how many cubins each architecture has to get."""
        self._totals = dict(totals)
        self._done = dict.fromkeys(totals, 0)
        self._bytes = dict.fromkeys(totals, 0)
        self._reused = dict.fromkeys(totals, 0)
        self._failed = dict.fromkeys(totals, 0)
        self._stream = stream
        self._clock = clock
        self._started = self._last = clock()
        self._open_line = False
        self._terminal = stream.isatty()

    def say(self, message: str) -> None:
        """Write a line, above the one that is being rewritten."""
        self._clear()
        print(message, file=self._stream, flush=True)
        self._last = self._clock()

    def count(self, arch: str, size: int | None, *, reused: bool) -> None:
        """Count one cubin of `size` bytes; None for one that failed."""
        self._done[arch] += 1
        self._bytes[arch] += size or 0
        self._reused[arch] += reused
        self._failed[arch] += size is None
        if self._done[arch] == self._totals[arch]:
            failed = f"{self._failed[arch]} FAILED, " if self._failed[arch] else ""
            self.say(
                f"{arch}: {self._totals[arch]} cubins, {failed}{self._reused[arch]} reused, "
                f"{self._bytes[arch] / 1e6:.2f} MB, after {self._elapsed()}"
            )
        elif self._terminal:
            self._clear()
            self._stream.write(self._state())
            self._stream.flush()
            self._open_line = True
        elif self._clock() - self._last >= PACE_S:
            self.say(self._state())

    def close(self) -> None:
        """Leave no half line behind."""
        self._clear()

    def _state(self) -> str:
        done, total = sum(self._done.values()), sum(self._totals.values())
        open_archs = [
            f"{arch} {n} of {self._totals[arch]}"
            for arch, n in self._done.items()
            if 0 < n < self._totals[arch]
        ]
        return f"{done} of {total} cubins, {', '.join(open_archs)}, {self._elapsed()}"

    def _elapsed(self) -> str:
        return f"{self._clock() - self._started:.0f} s"

    def _clear(self) -> None:
        if self._open_line:
            self._stream.write("\r\x1b[K")
            self._open_line = False
