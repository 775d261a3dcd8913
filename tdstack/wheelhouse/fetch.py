"""Fetch files into the store: in parallel, resumed where a download broke off, by hash."""

from __future__ import annotations

import errno
import shutil
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Protocol

import requests

from tdstack.errors import HostError, UpstreamError
from tdstack.lock.model import LockedDeb, LockedFile
from tdstack.retry import BROKEN, Backoff
from tdstack.wheelhouse.sources import TIMEOUT_S, Place, Sources
from tdstack.wheelhouse.store import Store

CHUNK = 1 << 20
RETRIES = 4
WORKERS = 6


class Progress(Protocol):
    """What a fetch tells about itself."""

    def start(self, file: LockedFile, done: int) -> None:
        """A file is being read; `done` bytes of it came earlier."""

    def advance(self, file: LockedFile, amount: int) -> None:
        """`amount` more bytes of a file are there."""

    def finish(self, file: LockedFile, origin: str) -> None:
        """A file is whole and checked."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch did. Sizes are in bytes."""

    files: int
    already: int
    downloaded_bytes: int


def fetch(
    files: Iterable[LockedFile], store: Store, sources: Sources, progress: Progress
) -> Fetched:
    """Bring every file into the store.

    Raises: IntegrityError for a file whose bytes differ (it is quarantined, the rest is
    kept); UpstreamError for a file that no place has; HostError when the disk is full.
    """
    wanted = sorted({f.sha256: f for f in files}.values(), key=lambda f: -f.size)
    missing = [f for f in wanted if not store.has(f)]
    _check_space(missing, store)
    waiting = deque(missing)
    errors: list[Exception] = []

    def work() -> None:
        # One bad file must not cost the rest: what runs is let finish, what waits is dropped.
        while waiting and not errors:
            try:
                file = waiting.popleft()
            except IndexError:  # another worker took the last one
                return
            try:
                _fetch_one(file, store, sources, progress)
            except Exception as error:
                errors.append(error)

    # Daemon threads: an interrupt must not wait for a server that fell silent.
    workers = [Thread(target=work, daemon=True) for _ in range(min(WORKERS, len(missing)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(0.2)
    if errors:
        raise errors[0]
    return Fetched(len(wanted), len(wanted) - len(missing), sum(f.size for f in missing))


def _check_space(missing: Sequence[LockedFile], store: Store) -> None:
    need = sum(f.size - _size(store, f) for f in missing)
    free = shutil.disk_usage(store.root).free
    if need > free:
        raise HostError(
            "not enough disk space for the files to fetch",
            where=str(store.root),
            expected=f"{need / 1e9:.1f} GB free",
            got=f"{free / 1e9:.1f} GB free",
            remedy="free some space, or set TDSTACK_CACHE to a folder on a larger disk",
        )


def _size(store: Store, file: LockedFile) -> int:
    partial = store.partial(file)
    return partial.stat().st_size if partial.exists() else 0


def _fetch_one(file: LockedFile, store: Store, sources: Sources, progress: Progress) -> None:
    with store.locked(file.sha256):
        if store.has(file):  # another process was faster
            return
        tried: list[str] = []
        # A place with other bytes ends the fetch: going on to the next one would hide it.
        for place in sources.places(file):
            try:
                _take(file, place, store, sources.session, progress)
            except UpstreamError as error:
                tried.append(f"{place}: {error.got}")
            else:
                progress.finish(file, str(place))
                return
        raise _nowhere(file, tried)


def _nowhere(file: LockedFile, tried: Sequence[str]) -> UpstreamError:
    if isinstance(file, LockedDeb):
        remedy = (
            "set TDSTACK_DEBIAN_MIRRORS to a Debian mirror (a snapshot archive keeps superseded "
            "files), or run `invoke lock --upgrade --only base`"
        )
    else:
        remedy = (
            "add the index that has it to pip's configuration (extra-index-url), or put the "
            "file into a folder and name it with --wheelhouse"
        )
    return UpstreamError(
        f"{file.name} was found nowhere",
        where="; ".join(tried) or "no configured place lists it",
        expected=f"sha256 {file.sha256}",
        remedy=remedy,
    )


def _take(
    file: LockedFile,
    place: Place,
    store: Store,
    session: requests.Session,
    progress: Progress,
) -> None:
    if place.path is not None:
        progress.start(file, 0)
        store.admit(place.path, file, origin=str(place), move=False)
        progress.advance(file, file.size)
        return
    backoff = Backoff(RETRIES)
    while True:
        try:
            _download(file, place, store, session, progress)
            break
        except BROKEN as error:
            if not backoff.again():
                raise UpstreamError("download failed", got=str(error)[:200]) from error
        except requests.RequestException as error:  # another try would end the same way
            raise UpstreamError("download failed", got=str(error)[:200]) from error
    store.admit(store.partial(file), file, origin=str(place), move=True)


def _download(
    file: LockedFile,
    place: Place,
    store: Store,
    session: requests.Session,
    progress: Progress,
) -> None:
    partial = store.partial(file)
    have = _size(store, file)
    if have > file.size:  # not a prefix of this file
        partial.unlink()
        have = 0
    if have == file.size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    # Without this a server may compress on the fly, and ranges then count other bytes.
    headers["Accept-Encoding"] = "identity"
    with session.get(place.url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code >= 500:
            raise requests.ConnectionError(f"HTTP {answer.status_code}")
        if answer.status_code >= 400:
            raise UpstreamError("refused", got=f"HTTP {answer.status_code}")
        if have and answer.status_code != 206:  # the server ignores ranges
            have = 0
        progress.start(file, have)
        try:
            with partial.open("ab" if have else "wb") as out:
                for chunk in answer.iter_content(CHUNK):
                    out.write(chunk)
                    progress.advance(file, len(chunk))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise HostError(
                    "the disk is full",
                    where=str(partial),
                    remedy="free some space and run the verb again; it resumes",
                ) from error
            raise
    if _size(store, file) < file.size:
        raise requests.ConnectionError("the connection closed early")
