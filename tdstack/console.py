"""What a person sees: everything on stderr, data alone on stdout.

On a terminal long work shows bars; elsewhere it prints plain lines, so that logs stay
readable.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from tdstack.errors import TdstackError
from tdstack.lock.model import LockedFile

err = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line for people."""
    err.print(text, markup=False)


def warn(text: str) -> None:
    """Print a warning that must not be missed."""
    err.print(f"[bold yellow]warning:[/] {_escaped(text)}")


def emit_json(data: object) -> None:
    """Print data for machines on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, sort_keys=True) + "\n")
    sys.stdout.flush()


def show_error(error: TdstackError) -> None:
    """Print what happened, where, what was expected and what to do."""
    head, *rest = str(error).splitlines()
    err.print(f"[bold red]error:[/] {_escaped(head)}")
    for line in rest:
        err.print(line, markup=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; off a terminal its cells are never cut."""
    drawn = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold", no_wrap=not err.is_terminal)
    for row in rows:
        drawn.add_row(*(_escaped(cell) for cell in row))
    if err.is_terminal:
        err.print(drawn)
    else:
        Console(stderr=True, highlight=False, width=220).print(drawn)


def megabytes(size: int | None) -> str:
    """Render a size in bytes as 10^6 bytes."""
    return "" if size is None else f"{size / 1e6:,.1f} MB"


class FetchProgress:
    """Shows the files of a fetch; a context manager."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._done = 0
        self._total = total
        self._bars: Progress | None = None
        if err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self._bars = Progress(*columns, TransferSpeedColumn(), console=err, transient=True)

    def __enter__(self) -> FetchProgress:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def start(self, file: LockedFile, done: int) -> None:
        """Note that a file is being read, `done` bytes of it from an earlier try."""
        if self._bars:
            with self._lock:
                task = self._bars.add_task(_escaped(file.name[-48:]), total=file.size)
                self._bars.update(task, completed=done)
                self._tasks[file.sha256] = task
        elif done:
            say(f"  resuming {file.name} at {megabytes(done)}")

    def advance(self, file: LockedFile, amount: int) -> None:
        """Note that `amount` more bytes of a file are there."""
        if self._bars and file.sha256 in self._tasks:
            self._bars.advance(self._tasks[file.sha256], amount)

    def finish(self, file: LockedFile, origin: str) -> None:
        """Note that a file is whole and checked."""
        with self._lock:
            self._done += 1
            if self._bars and file.sha256 in self._tasks:
                self._bars.remove_task(self._tasks.pop(file.sha256))
            # One line a package would bury the log under Debian's small files.
            if not self._bars and (file.size > 20_000_000 or self._done == self._total):
                say(f"  {self._done}/{self._total} {file.name} {megabytes(file.size)}")


class Stopwatch:
    """Names the steps of a verb and how long each took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def step(self, name: str) -> _Step:
        """Return a context manager that adds its wall time to step `name`."""
        return _Step(self, name)


class _Step:
    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._begin = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = time.monotonic() - self._begin
        self._watch.seconds[self._name] = self._watch.seconds.get(self._name, 0.0) + spent


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
