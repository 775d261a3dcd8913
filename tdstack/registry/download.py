"""Reading a blob as a stream that goes on after a dropped connection, and is what it should be."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

import requests
from urllib3.exceptions import HTTPError

from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.http import BLOCK, shown
from tdstack.registry.oci import Descriptor
from tdstack.retry import Backoff, TransientError

Progress = Callable[[Descriptor, int], None]
# Progress that forgives earlier failures; less of it and a server that sends a byte and hangs
# up could keep a client for ever.
FORGIVING = 1 << 20


class Opener(Protocol):
    """Asks for a blob from `begin` on (in bytes)."""

    def __call__(self, begin: int) -> requests.Response:
        """Return the answer with its body unread.

        Raises: TransientError; UpstreamError.
        """


class Patience(Protocol):
    """Runs an action again after each TransientError, as Api.patiently does."""

    def __call__(self, what: str, action: Callable[[], bytes], backoff: Backoff) -> bytes:
        """Return what the action returned."""


class BlobReader(io.RawIOBase):
    """A blob's bytes, once, in order; not for use by more than one thread.

    Size and sha256 are checked before the last byte is given out. A `with` block that ends
    without an error has checked them even if the reader left bytes unread. `begin` bytes that
    the caller holds are not asked for; `seen` is the hash over them. `where` is for errors.
    Raises: IntegrityError for other bytes; UpstreamError when the registry fails for good.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        opener: Opener,
        patience: Patience,
        progress: Progress,
        begin: int = 0,
        seen: hashlib._Hash | None = None,
        where: str = "",
    ) -> None:
        self._where = where
        self._descriptor = descriptor
        self._opener = opener
        self._patience = patience
        self._progress = progress
        self._hash = seen or hashlib.sha256()
        self._at = begin
        self._answer: requests.Response | None = None
        self._backoff = Backoff()
        self._forgiven_at = begin
        if begin == descriptor.size:
            self._check_hash()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read up to a buffer's length of bytes into it; return how many, 0 at the end."""
        block = self._block(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._block(BLOCK):
                pass
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._drop()
        super().close()

    def _block(self, most: int) -> bytes:
        if self._at == self._descriptor.size or most == 0:
            return b""
        what = f"GET blob {self._descriptor.digest[:19]}"
        block = self._patience(what, lambda: self._read(most), self._backoff)
        self._at += len(block)
        if self._at - self._forgiven_at >= FORGIVING:
            self._backoff.progressed()
            self._forgiven_at = self._at
        self._hash.update(block)
        if self._at == self._descriptor.size:
            self._drop()
            self._check_hash()
        self._progress(self._descriptor, len(block))
        return block

    def _read(self, most: int) -> bytes:
        if self._answer is None:
            self._answer = self._connect()
        answer = self._answer
        try:
            rest = self._descriptor.size - self._at
            block: bytes = answer.raw.read1(min(most, rest, BLOCK))
        except (HTTPError, OSError) as error:
            self._drop()
            raise _broke(error) from error
        if not block:
            self._drop()
            raise TransientError("the connection closed early")
        return block

    def _connect(self) -> requests.Response:
        answer = self._opener(self._at)
        try:
            skip = self._skipped(answer)
            while skip:  # the registry does not know ranges; what we hold comes again
                gone = answer.raw.read(min(skip, BLOCK))
                if not gone:
                    raise TransientError("the connection closed early")
                skip -= len(gone)
        except (HTTPError, OSError) as error:
            answer.close()
            raise _broke(error) from error
        except BaseException:
            answer.close()
            raise
        return answer

    def _skipped(self, answer: requests.Response) -> int:
        """Return how many bytes come before the one that is wanted; check the size told."""
        size, status = self._descriptor.size, answer.status_code
        length = answer.headers.get("Content-Length", "")
        if status == HTTPStatus.PARTIAL_CONTENT:
            told = answer.headers.get("Content-Range", "")
            parts = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told)
            if parts is None or int(parts[1]) != self._at:
                raise TransientError("another range than the one asked for")
            if parts[2] not in ("*", str(size)):
                raise self._wrong(f"{parts[2]} bytes")
            return 0
        if status == HTTPStatus.OK:
            if length.isdecimal() and int(length) != size:
                raise self._wrong(f"{length} bytes")
            return self._at
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._wrong(f"no bytes after {self._at}")
        gone = status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
        raise UpstreamError(
            "the registry lacks a blob" if gone else "the registry does not give a blob",
            where=shown(answer.url),
            expected=self._descriptor.digest,
            got=f"HTTP {status}",
            remedy="push the image again" if gone else "",
        )

    def _check_hash(self) -> None:
        if (got := self._hash.hexdigest()) != self._descriptor.sha256:
            raise self._wrong(f"sha256:{got}")

    def _wrong(self, got: str) -> IntegrityError:
        descriptor = self._descriptor
        return IntegrityError(
            "the registry's blob is not the one that the manifest names",
            where=self._where,
            expected=f"{descriptor.digest}, {descriptor.size} bytes",
            got=got,
            remedy="delete the blob in the registry and push the image again; do not trust the "
            "registry if it happens twice",
        )

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def _broke(error: Exception) -> TransientError:
    return TransientError(f"the connection broke: {type(error).__name__}")
