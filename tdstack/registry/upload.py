"""Sending a blob: mounted, in one piece, or in pieces that go on after a dropped connection.

Protocol: distribution-spec 1.1, "Pushing blobs" and "Pushing a blob in chunks".
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import quote

from tdstack.errors import IntegrityError
from tdstack.registry.api import Answer, Api
from tdstack.registry.auth import Access
from tdstack.registry.download import FORGIVING, Progress
from tdstack.registry.http import Body
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.retry import Backoff, TransientError

# Large, as some registries throw a piece away that was cut, others the whole upload.
PIECE = 64 << 20
_OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class Source:
    """The bytes of a blob: a file, or the bytes themselves."""

    data: Path | bytes

    def open(self) -> IO[bytes]:
        """Open the bytes for reading."""
        return self.data.open("rb") if isinstance(self.data, Path) else io.BytesIO(self.data)

    def check(self, descriptor: Descriptor) -> None:
        """Raise IntegrityError unless the bytes are the descriptor's."""
        with self.open() as stream:
            digest = hashlib.sha256()
            size = 0
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
        if (digest.hexdigest(), size) != (descriptor.sha256, descriptor.size):
            raise IntegrityError(
                "what should be sent is not what its digest says",
                where=str(self.data) if isinstance(self.data, Path) else "bytes in memory",
                expected=f"{descriptor.digest}, {descriptor.size} bytes",
                got=f"sha256:{digest.hexdigest()}, {size} bytes",
            )


class _Piece(io.RawIOBase):
    """A part of a source, from `begin` on, `size` bytes long."""

    def __init__(self, stream: IO[bytes], begin: int, size: int, sent: Callable[[int], None]):
        self._stream, self._size, self._left, self._sent = stream, size, size, sent
        stream.seek(begin)

    def __len__(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        """Return the position within the piece; without it requests cannot tell its length."""
        return self._size - self._left

    def read(self, size: int = -1) -> bytes:
        """Read on; the end comes after `size` bytes whatever the file has."""
        want = self._left if size < 0 else min(size, self._left)
        block = self._stream.read(want)
        if not block and want:  # the registry would wait for the rest, and we for its answer
            raise IntegrityError(
                "what should be sent is not what its digest says",
                got=f"it ends {self._left} bytes early",
            )
        self._left -= len(block)
        self._sent(len(block))
        return block


def has_blob(api: Api, path: str, digest: str) -> bool:
    """Return whether the repository at `path` has the blob.

    Raises: UpstreamError.
    """
    answer = api.ask("HEAD", f"{path}/blobs/{digest}", Access(path))
    if answer.status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
        return answer.status == HTTPStatus.OK
    raise api.unexpected("say whether it has a blob", answer)


def mount_blob(api: Api, path: str, digest: str, origin: str) -> bool:
    """Make the repository at `path` share a blob of the one at `origin`; False where it does not.

    A registry that does not mount has begun an upload then, which it drops.
    Raises: UpstreamError.
    """
    query = f"?mount={quote(digest)}&from={quote(origin, '')}"
    access = Access(path, "pull,push", also=origin)
    answer = api.ask("POST", f"{path}/blobs/uploads/{query}", access, body=b"")
    if answer.status in (HTTPStatus.CREATED, HTTPStatus.ACCEPTED):
        return answer.status == HTTPStatus.CREATED
    raise api.unexpected("accept an upload", answer)


class _RefusedError(Exception):
    """The registry forgot the upload, or it has not become this blob; begin anew."""


class Upload:
    """One blob on its way into one repository. `piece` is the bytes sent with one request."""

    def __init__(
        self,
        api: Api,
        repository: Repository,
        source: Source,
        descriptor: Descriptor,
        progress: Progress,
        piece: int = PIECE,
    ) -> None:
        self._api, self._path = api, repository.path
        self._source, self._descriptor = source, descriptor
        self._access = Access(repository.path, "pull,push")
        self._progress = progress
        self._piece = piece
        self._told = 0
        self._what = f"PUT blob {descriptor.digest[:19]} to {self._path}"

    def run(self) -> None:
        """Bring the blob in.

        Raises: UpstreamError; IntegrityError when the source is not the descriptor's bytes.
        """
        location, at = self._begin(), 0
        # Failures in a row end the upload, and so do too many new beginnings: each may come as far
        # as the one before, for ever.
        failures, beginnings = Backoff(), Backoff()
        while True:
            try:
                if self._in_one(at) or at == self._descriptor.size:
                    self._finish(location, at)
                    return
                location, at = self._patch(location, at)
                failures.progressed()
            except TransientError as error:
                reason = error
                self._api.again(self._what, error, failures)
                location, known = self._where(location)
                if known - at >= FORGIVING:  # a part of the piece came
                    failures.progressed()
                at = known
            except _RefusedError as error:
                location, reason = "", TransientError(str(error))
            if not location:
                if has_blob(
                    self._api, self._path, self._descriptor.digest
                ):  # only the answer was lost, or another client was faster
                    return
                self._api.again(self._what, reason, beginnings)
                location, at = self._begin(), 0
                self._tell(0)

    def _in_one(self, at: int) -> bool:
        return at == 0 and self._descriptor.size <= self._piece

    def _begin(self) -> str:
        """Return the address of a new upload."""
        answer = self._api.ask("POST", f"{self._path}/blobs/uploads/", self._access, body=b"")
        if answer.status != HTTPStatus.ACCEPTED:
            raise self._api.unexpected("accept an upload", answer)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        self._piece = max(self._piece, int(least) if least.isdecimal() else 0)
        return self._location(answer)

    def _patch(self, location: str, at: int) -> tuple[str, int]:
        """Send the next piece; return where the upload lies now, and how long it is."""
        end = min(self._descriptor.size, at + self._piece)
        headers = {"Content-Type": _OCTETS, "Content-Range": f"{at}-{end - 1}"}
        answer = self._send("PATCH", location, headers, at, end)
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise TransientError("the registry has another part of the blob")
        if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST):
            raise _RefusedError(answer.words())
        if answer.status not in (HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT, HTTPStatus.CREATED):
            raise self._api.unexpected("take a part of a blob", answer)
        return self._location(answer), end

    def _finish(self, location: str, at: int) -> None:
        """Send what is left and name the digest, which the registry then checks."""
        size = self._descriptor.size
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(self._descriptor.digest)}"
        headers = {"Content-Type": _OCTETS}
        if at:
            answer = self._api.whole("PUT", url, self._access, headers, b"")
        else:
            answer = self._send("PUT", url, headers, at, size)
        if answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            # Most likely other bytes than those of the digest. Ours? Reading them costs time, so
            # it is asked only now.
            self._source.check(self._descriptor)
        if answer.status in (
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        ):
            raise _RefusedError(answer.words())
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.NO_CONTENT, HTTPStatus.ACCEPTED):
            raise self._api.unexpected("take a blob", answer)

    def _where(self, location: str) -> tuple[str, int]:
        """Ask how much the registry has of the upload; an empty address where it has none."""
        answer = self._api.ask("GET", location, self._access)
        known = re.fullmatch(r"(?:bytes=)?0-(\d+)", answer.headers.get("Range", ""))
        if answer.status != HTTPStatus.NO_CONTENT or known is None:
            return "", 0
        end = int(known[1]) + 1
        # `0-0` stands for one byte and for none; and more than was sent is not this upload.
        if end == 1 or end > self._descriptor.size:
            return "", 0
        self._tell(end)
        return self._location(answer, location), end

    def _send(self, method: str, url: str, headers: Mapping[str, str], at: int, end: int) -> Answer:
        with self._source.open() as stream:

            def part() -> Body:
                self._tell(at)
                return _Piece(stream, at, end - at, lambda sent: self._tell(self._told + sent))

            body = part if end > at else b""
            return self._api.whole(method, url, self._access, headers, body)

    def _location(self, answer: Answer, otherwise: str = "") -> str:
        location = answer.headers.get("Location", otherwise)
        if not location:
            raise self._api.unexpected("say where an upload goes on", answer)
        return self._api.beside(answer.url, location)

    def _tell(self, total: int) -> None:
        """Tell the progress that `total` bytes were sent, which may be fewer than before."""
        if total != self._told:
            self._progress(self._descriptor, total - self._told)
            self._told = total
