"""A swap of files in an environment that happens as a whole, or not at all.

Files to remove are renamed into a folder of the swap, new ones are staged in another and renamed
into place; a journal, on disk before the first rename, says which renames were meant. Whatever
stops the process, the next one reads the journal and puts the old state back. (Write-ahead undo
log: rename(2) is atomic, so each step either happened or did not.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = ".tdstack-swap"


class SwapError(Exception):
    """The swap did not happen; the old state is back. The message says why."""


@dataclass(frozen=True)
class Step:
    """One rename: `target` to `kept` when it goes out, `kept` to `target` when it comes in."""

    out: bool
    target: str
    kept: str


def pending(site: Path) -> bool:
    """Return whether a swap in this folder of packages was interrupted."""
    return (site / FOLDER / "journal").exists()


def recover(site: Path) -> bool:
    """Put the old state back after an interruption; return whether there was one.

    Raises: SwapError when another process is at it, or a file cannot be moved back.
    """
    folder = site / FOLDER
    if not folder.exists():
        return False
    with _locked(site):
        return _recover(folder)


@contextlib.contextmanager
def staging(site: Path) -> Iterator[Path]:
    """Give an empty folder on the file system of `site` for new files; hold the swap's lock.

    What is in it at the end goes away with it. An earlier, interrupted swap is undone first.
    Raises: SwapError when another process holds the lock or something cannot be written.
    """
    with _locked(site):
        folder = site / FOLDER
        _recover(folder)
        try:
            (folder / "new").mkdir(parents=True)
            yield folder / "new"
        except OSError as error:  # a full disk while files are staged, a missing right
            raise SwapError(f"{error.filename or site}: {error.strerror}") from error
        finally:
            if not pending(site):
                shutil.rmtree(folder, ignore_errors=True)


def swap(
    site: Path,
    outs: Sequence[Path],
    ins: Mapping[Path, Path],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Remove `outs` and put the staged files or folders `ins` (target -> staged) in place.

    To be called within staging(). `check` looks at the result; if it raises, the old state is
    back before the error goes on. A folder that stood in for both keeps nothing of the old.
    Raises: SwapError when a rename fails; what `check` raises.
    """
    folder = site / FOLDER
    (folder / "old").mkdir(exist_ok=True)
    steps = [Step(True, str(path), str(folder / "old" / str(n))) for n, path in enumerate(outs)]
    steps += [Step(False, str(target), str(staged)) for target, staged in ins.items()]
    _same_file_system(site, steps)
    _write_journal(folder, steps)
    try:
        for step in steps:
            _do(step)
        check()
    except BaseException as error:
        _undo(folder)
        if isinstance(error, OSError):
            raise SwapError(f"{error.filename}: {error.strerror}; the old state is back") from error
        raise
    # Without its journal the swap is done: from here on an interruption only leaves rubbish.
    (folder / "journal").unlink()
    _sync(folder)


def _do(step: Step) -> None:
    source, target = (step.target, step.kept) if step.out else (step.kept, step.target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not step.out and os.path.lexists(target):
        raise FileExistsError(17, "is there already and would be overwritten", target)
    os.rename(source, target)


def _undo(folder: Path) -> None:
    steps = [Step(**row) for row in json.loads((folder / "journal").read_text())]
    for step in reversed(steps):
        if step.out and os.path.lexists(step.kept):
            os.makedirs(os.path.dirname(step.target), exist_ok=True)
            os.rename(step.kept, step.target)
        elif not step.out and not os.path.lexists(step.kept) and os.path.lexists(step.target):
            os.rename(step.target, step.kept)
    (folder / "journal").unlink()
    _sync(folder)


def _recover(folder: Path) -> bool:
    interrupted = (folder / "journal").exists()
    try:
        if interrupted:
            _undo(folder)
    except (OSError, ValueError, TypeError) as error:
        raise SwapError(f"an interrupted swap in {folder} cannot be undone: {error}") from error
    shutil.rmtree(folder, ignore_errors=True)
    return interrupted


def _write_journal(folder: Path, steps: Sequence[Step]) -> None:
    draft = folder / "journal.new"
    with draft.open("w") as stream:
        json.dump([step.__dict__ for step in steps], stream)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(folder / "journal")
    _sync(folder)


def _same_file_system(site: Path, steps: Sequence[Step]) -> None:
    own = site.stat().st_dev
    for step in steps:
        place = Path(step.target).parent
        while not place.exists():
            place = place.parent
        if place.stat().st_dev != own:
            raise SwapError(
                f"{place} is on another file system than {site}: a rename between them is no "
                "single step"
            )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(site: Path) -> Iterator[None]:
    try:
        handle = os.open(site, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SwapError(f"{site}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SwapError(f"another process changes {site} right now; try again") from error
        yield
    finally:
        os.close(handle)
