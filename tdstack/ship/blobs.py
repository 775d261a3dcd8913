"""Compressed blobs on their way from a registry: kept in the store until they are unpacked.

A download that broke off goes on where it was, in the same run and in the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Lock

from tdstack.assemble.tar import CHUNK
from tdstack.errors import IntegrityError
from tdstack.lock.model import LockedFile
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.wheelhouse.fetch import Progress
from tdstack.wheelhouse.store import Store


class Quiet:
    """Progress that nobody is told of."""

    def start(self, file: LockedFile, done: int) -> None:
        """Do nothing."""

    def advance(self, file: LockedFile, amount: int) -> None:
        """Do nothing."""

    def finish(self, file: LockedFile, origin: str) -> None:
        """Do nothing."""


class Blobs:
    """Blobs of one registry in one store; thread-safe. `fetched` counts the bytes received."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        progress: Progress | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._registry, self._store = registry, store
        self._progress, self._stopped = progress or Quiet(), stopped
        self._counting = Lock()
        self.fetched = 0

    def get(self, repository: Repository, blob: Descriptor, name: str = "blob") -> Path:
        """Return the path of a blob whose size and digest are right.

        Raises: IntegrityError; UpstreamError; OSError where the disk is full.
        """
        file = LockedFile(name=f"{name} {blob.sha256[:12]}", sha256=blob.sha256, size=blob.size)
        with self._store.locked(blob.sha256):
            if self._store.has(file):
                return self._store.verify(file)
            self._receive(repository, blob, file)
            self._store.partial(file).replace(self._store.path(file))
        self._progress.finish(file, str(repository))
        return self._store.path(file)

    def forget(self, blobs: Iterable[Descriptor]) -> None:
        """Remove what the store has of these blobs: what was in them is in an engine or layout."""
        for blob in blobs:
            for folder in ("blobs", "partial"):
                (self._store.root / folder / blob.sha256).unlink(missing_ok=True)

    def missing(self, blobs: Iterable[Descriptor]) -> int:
        """Return how many bytes are still to come."""
        return sum(b.size - self._have(b) for b in {b.digest: b for b in blobs}.values())

    def _have(self, blob: Descriptor) -> int:
        for folder in ("blobs", "partial"):
            path = self._store.root / folder / blob.sha256
            if path.exists():
                return min(path.stat().st_size, blob.size)
        return 0

    def _receive(self, repository: Repository, blob: Descriptor, file: LockedFile) -> None:
        partial = self._store.partial(file)
        for begin, seen in (_seen(partial, blob.size), (0, hashlib.sha256())):
            try:
                self._read(repository, blob, file, begin, seen)
                return
            except IntegrityError:
                # Nobody may go on from bytes that cannot become the blob. Those of an earlier run
                # may be what is wrong.
                partial.unlink(missing_ok=True)
                if begin == 0:
                    raise

    def _read(
        self,
        repository: Repository,
        blob: Descriptor,
        file: LockedFile,
        begin: int,
        seen: hashlib._Hash,
    ) -> None:
        self._progress.start(file, begin)
        reader = self._registry.open_blob(repository, blob, begin, seen)
        with reader as stream, self._store.partial(file).open("ab" if begin else "wb") as out:
            while piece := stream.read(CHUNK):
                if self._stopped():
                    raise CancelledError
                out.write(piece)
                with self._counting:
                    self.fetched += len(piece)
                self._progress.advance(file, len(piece))


def _seen(partial: Path, size: int) -> tuple[int, hashlib._Hash]:
    """Return how many bytes of a blob are there, and the hash over them."""
    digest = hashlib.sha256()
    if not partial.exists() or partial.stat().st_size > size:
        return 0, digest
    begin = 0
    with partial.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
            begin += len(piece)
    return begin, digest
