"""Layers as streams: out of an OCI archive without unpacking it, decompressed on the way."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tdstack.errors import IntegrityError, UsageError
from tdstack.registry.oci import INDEX_TYPES, MAX_DOCUMENT, ImageManifest, Index, digest_of
from tdstack.ship.compress import Readable, decompressed


class Chunks:
    """A stream over an iterator of byte strings."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        while not self._rest:
            piece = next(self._chunks, None)
            if piece is None:
                return b""
            self._rest = piece
        end = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:end], self._rest[end:]
        return piece


def layer_tar(stream: Readable, media_type: str) -> Chunks:
    """Return the uncompressed bytes of a layer, whatever its media type says it is packed with."""
    return Chunks(decompressed(stream, media_type))


class OciArchive:
    """One image in a tar that holds an OCI layout (image-spec 1.0); a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tar = tarfile.open(path, "r:")  # noqa: SIM115
            self._members = {m.name.removeprefix("./"): m for m in self._tar}
        except (tarfile.TarError, EOFError) as error:
            raise UsageError(
                "this file is no OCI archive, nor a lock",
                where=str(path),
                expected="a tar as `invoke build --output` writes it, or a file *.lock",
                got=str(error),
            ) from error
        if "index.json" not in self._members or "oci-layout" not in self._members:
            self._tar.close()
            raise UsageError(
                "this tar is no OCI archive", where=str(path), expected="oci-layout and index.json"
            )

    def __enter__(self) -> OciArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def manifest(self) -> ImageManifest:
        """Return the manifest of the archive's one image.

        Raises: UsageError for more than one image; IntegrityError for documents that are none.
        """
        data = self._document("index.json")
        for _ in range(3):  # an index may name an index for each platform
            found = Index.parse(data).manifests
            if len(found) != 1:
                raise UsageError(
                    f"the archive holds {len(found)} images", where=str(self._path), expected="one"
                )
            data = self.document(found[0].digest)
            if found[0].media_type not in INDEX_TYPES:
                return ImageManifest.parse(data)
        raise IntegrityError("the archive's index leads to no image", where=str(self._path))

    def document(self, digest: str) -> bytes:
        """Return a small blob's bytes. Raises: IntegrityError when they are not the digest's."""
        data = self._document(f"blobs/{digest.replace(':', '/')}")
        if (got := digest_of(data)) != digest:
            raise IntegrityError(
                "a document of the archive is not its digest's",
                where=str(self._path),
                expected=digest,
                got=got,
            )
        return data

    def blob(self, digest: str) -> IO[bytes]:
        """Return a blob's bytes as a stream.

        Raises: IntegrityError when it is not there.
        """
        return self._open(f"blobs/{digest.replace(':', '/')}")

    def _document(self, name: str) -> bytes:
        return self._open(name).read(MAX_DOCUMENT)

    def _open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        stream = self._tar.extractfile(member) if member else None
        if stream is None:
            raise IntegrityError("the archive lacks a blob", where=f"{self._path}: {name}")
        return stream
