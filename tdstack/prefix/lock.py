"""One verb at a time in a prefix; what a killed one left goes first, and empty folders last."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tdstack.errors import HostError, UsageError
from tdstack.prefix.place import Prefix
from tdstack.prefix.switch import recover


@contextmanager
def locked(prefix: Prefix, *, make: bool) -> Iterator[None]:
    """Hold the prefix against other processes and hosts, after undoing what a killed one left.

    With `make` the folder becomes a prefix if it is none. If it holds no version at the end,
    everything that was made for it is removed again.
    Raises: UsageError for a folder of something else; HostError when another process holds it, or
    it cannot be written.
    """
    if make and not prefix.is_ours:
        _make(prefix)
    prefix.require_ours()
    with _held(prefix):
        recover(prefix)
        clear(prefix)
        try:
            yield
        finally:
            clear(prefix)
            if not prefix.version_keys():
                remove_rest(prefix)


def clear(prefix: Prefix) -> None:
    """Remove what is neither a version nor ours to keep: half a version, half a removal."""
    for folder in (prefix.staging, prefix.trash):
        shutil.rmtree(folder, ignore_errors=True)
    for draft in (*prefix.own.glob("*.new"), prefix.root / ".activate.new"):
        draft.unlink(missing_ok=True)


def remove_rest(prefix: Prefix) -> None:
    """Remove what an install made beside versions, and the folders that it made, if empty."""
    made = [Path(str(m)) for m in _list(prefix.read_marker()["made"])]
    for link in (prefix.current, prefix.previous, prefix.root / "activate"):
        link.unlink(missing_ok=True)
    shutil.rmtree(prefix.modules, ignore_errors=True)
    for folder in (prefix.modules.parent, prefix.versions):
        with suppress(OSError):  # not empty: somebody else's file is in it
            folder.rmdir()
    for path in prefix.own.iterdir():
        if path != prefix.marker:
            path.unlink()
    # Last: without it nobody would know that the rest is ours.
    prefix.marker.unlink()
    prefix.own.rmdir()
    for folder in reversed(made):
        try:
            folder.rmdir()
        except OSError:
            return


def _make(prefix: Prefix) -> None:
    root = prefix.root
    with _written(root):
        if root.is_dir() and any(p.name != prefix.own.name for p in root.iterdir()):
            raise UsageError(
                "the prefix's place is taken by something else",
                where=str(root),
                expected="a prefix of tdstack, an empty folder, or nothing",
                remedy="name another folder with --prefix DIR",
            )
        made = [p for p in (root, *root.parents) if not p.exists()][::-1]
        root.mkdir(parents=True, exist_ok=True)
        prefix.own.mkdir(exist_ok=True)
        if not prefix.is_ours:  # another process may be as far
            prefix.write_marker(made)


@contextmanager
def _held(prefix: Prefix) -> Iterator[None]:
    path = prefix.own / "lock"
    with _written(path):
        # For writing: over NFS an exclusive lock needs that.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise HostError(
                    "the prefix's file system knows no locks, so that two installs could meet",
                    where=str(path),
                    got=error.strerror or str(error),
                    remedy="mount it with locks (Lustre: -o flock), or install elsewhere",
                ) from error
            who = os.read(handle, 100).decode(errors="replace").strip()
            raise HostError(
                "another install, or an uninstall, is at work in this prefix",
                where=str(path),
                got=who,
                remedy="wait for its end and run the verb again",
            ) from error
        if not _names(path, handle):
            raise HostError(
                "the prefix was removed meanwhile", where=str(path), remedy="run the verb again"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _names(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            "the prefix cannot be written",
            where=str(error.filename or path),
            got=error.strerror or str(error),
            remedy="name a folder that you may write with --prefix DIR",
        ) from error


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
