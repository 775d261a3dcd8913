"""The content-addressed store: every file under the name of its own sha256.

A file gets its name only after its bytes were hashed, by one atomic rename, so that two
verbs at once can share a store and an interruption leaves at most a partial file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tdstack.errors import HostError, IntegrityError
from tdstack.lock.model import LockedFile


def default_cache() -> Path:
    """Return the user's cache folder for tdstack (TDSTACK_CACHE overrides it)."""
    if override := os.environ.get("TDSTACK_CACHE"):
        return Path(override).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tdstack"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_of(path: Path) -> LockedFile:
    """Return a file on disk as a lock would name it."""
    return LockedFile(name=path.name, sha256=sha256_of(path), size=path.stat().st_size)


@dataclass(frozen=True)
class Store:
    """A store under `root`. All methods are safe beside other processes."""

    root: Path

    def __post_init__(self) -> None:
        try:
            for name in ("blobs", "partial", "quarantine", "locks", "work", "cubins"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                "the cache folder cannot be written",
                where=str(self.root),
                got=str(error),
                remedy="set TDSTACK_CACHE to a folder that you may write",
            ) from error

    def path(self, file: LockedFile) -> Path:
        """Return where the file lies once it is there."""
        return self.root / "blobs" / file.sha256

    def partial(self, file: LockedFile) -> Path:
        """Return where an unfinished download of the file lies."""
        return self.root / "partial" / file.sha256

    def has(self, file: LockedFile) -> bool:
        """Return whether the file is there (by name and size; `verify` reads its bytes)."""
        try:
            return self.path(file).stat().st_size == file.size
        except OSError:
            return False

    def work(self) -> Path:
        """Return the folder for files in the making, on the same file system as the blobs."""
        return self.root / "work"

    def cubins(self) -> Path:
        """Return the cache of the kernels' compiler, which may be removed at any time."""
        return self.root / "cubins"

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the store's lock `name` against other processes."""
        with (self.root / "locks" / name).open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield an empty folder that is removed at the end, and hold the lock `name` meanwhile.

        What a killed process left of it goes first.
        """
        with self.locked(name):
            folder = self.work() / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def admit(self, candidate: Path, file: LockedFile, *, origin: str, move: bool) -> Path:
        """Check `candidate` against the lock and give it its name.

        With `move` the candidate is ours to keep or to quarantine; otherwise it is copied.
        Raises: IntegrityError when the bytes are not the file's.
        """
        ours = candidate
        if not move:
            # A copy, not a link, and hashed only then: who owns the candidate may write to it.
            ours = self.root / "partial" / f"{file.sha256}.{os.getpid()}"
            shutil.copyfile(candidate, ours)
        if (got := sha256_of(ours)) != file.sha256:
            if move:
                raise self.mismatch(file, got, origin=origin, kept=self._quarantine(ours, got))
            ours.unlink()
            raise self.mismatch(file, got, origin=origin, kept=candidate)
        return ours.replace(self.path(file))

    def verify(self, file: LockedFile) -> Path:
        """Return the file's path after reading all its bytes.

        Raises: IntegrityError when the stored bytes rotted (they are quarantined); HostError
        when the file is not there.
        """
        path = self.path(file)
        try:
            got = sha256_of(path)
        except FileNotFoundError as error:
            raise HostError(
                f"{file.name} is not in the store", where=str(path), remedy="run `invoke fetch`"
            ) from error
        if got != file.sha256:
            raise self.mismatch(file, got, origin=str(path), kept=self._quarantine(path, got))
        return path

    @staticmethod
    def mismatch(file: LockedFile, got: str, *, origin: str, kept: Path) -> IntegrityError:
        """Build the error for bytes that are not those of the lock."""
        return IntegrityError(
            f"{file.name} is not the file that the lock names",
            where=origin,
            expected=f"sha256 {file.sha256}",
            got=f"sha256 {got}",
            remedy=f"the bytes are kept as {kept}; run `invoke fetch` again, and do not trust the "
            "source if it happens twice",
        )

    def _quarantine(self, path: Path, got: str) -> Path:
        target = self.root / "quarantine" / f"{path.name.split('.')[0]}-got-{got[:12]}"
        path.replace(target)
        return target
