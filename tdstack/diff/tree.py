"""Layer tars -> the file system that they add up to, in one pass and little memory.

Whiteouts follow the OCI image specification 1.0, "Representing Changes".
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

from tdstack.assemble.tar import CHUNK
from tdstack.diff.model import FileFact, Kind
from tdstack.errors import IntegrityError
from tdstack.ship.compress import Readable

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
# Of the texts that are kept the largest is the database of Debian's packages, some MB.
MOST_TEXT = 64_000_000


class Tree:
    """A file system that grows layer by layer.

    `wanted` says of which files the content is kept, in `texts`. Names have no leading slash.
    """

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.files: dict[str, FileFact] = {}
        self.texts: dict[str, bytes] = {}
        self._wanted = wanted
        # What the layer at hand brings stays apart until it is whole: its whiteouts are about
        # what lies below it.
        self._fresh: dict[str, FileFact] = {}
        self._fresh_texts: dict[str, bytes] = {}

    def apply(self, stream: Readable, layer: str = "", digest: str = "") -> int:
        """Lay an uncompressed layer tar over what is there; return its size in bytes.

        `digest`: the sha256 that the stream must have, in hex, where it is known.
        Raises: IntegrityError for a tar that is not whole, or is not the digest's.
        """
        hashed = _Hashed(stream)
        self._fresh, self._fresh_texts = {}, {}
        try:
            with tarfile.open(fileobj=_as_file(hashed), mode="r|", bufsize=CHUNK) as archive:
                for member in archive:
                    self._take(archive, member, layer)
            hashed.drain()
        except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
            raise IntegrityError(
                "a layer is no whole tar", where=layer, got=str(error) or type(error).__name__
            ) from error
        if digest and hashed.digest.hexdigest() != digest:
            raise IntegrityError(
                "the bytes of a layer are not those of its digest",
                where=layer,
                expected=f"sha256 {digest}",
                got=f"sha256 {hashed.digest.hexdigest()}",
            )
        for path in self._fresh.keys() & self.texts.keys():
            del self.texts[path]
        self.files |= self._fresh
        self.texts |= self._fresh_texts
        return hashed.size

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, layer: str) -> None:
        path = clean(member.name)
        folder, _, name = path.rpartition("/")
        if name == OPAQUE:
            self._remove_below(folder)
            return
        if name.startswith(WHITEOUT):
            self._remove(f"{folder}/{name[len(WHITEOUT) :]}".lstrip("/"))
            return
        if not path:
            return
        fact = replace(_fact_of(member), layer=layer)
        if member.islnk():
            target = clean(member.linkname)
            linked = self._fresh.get(target) or self.files.get(target)
            if linked is None:
                raise ValueError(f"{path} is a hard link to {target}, which is not there")
            fact = replace(linked, layer=layer)
            text = self._fresh_texts.get(target, self.texts.get(target))
            if text is not None and self._wanted(path):
                self._fresh_texts[path] = text
        elif member.isfile():
            fact = replace(fact, sha256=self._read(archive, member, path))
        old = self.files.get(path)
        if old and old.kind == "folder" and fact.kind != "folder":
            self._remove_below(path)
        self._fresh[path] = fact

    def _read(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> str:
        stream = archive.extractfile(member)
        assert stream is not None
        if self._wanted(path) and member.size <= MOST_TEXT:
            self._fresh_texts[path] = stream.read()
            return hashlib.sha256(self._fresh_texts[path]).hexdigest()
        digest = hashlib.sha256()
        for piece in pieces(stream):
            digest.update(piece)
        return digest.hexdigest()

    def _remove(self, path: str) -> None:
        self.files.pop(path, None)
        self.texts.pop(path, None)
        self._remove_below(path)

    def _remove_below(self, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        for path in [p for p in self.files if p.startswith(prefix)]:
            del self.files[path]
            self.texts.pop(path, None)


def clean(name: str) -> str:
    """Return a tar's name without `./`, `/` before it and `/` behind. Pure."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def pieces(stream: Readable | IO[bytes]) -> Iterator[bytes]:
    """Yield a stream's bytes in chunks."""
    while piece := stream.read(CHUNK):
        yield piece


def _fact_of(member: tarfile.TarInfo) -> FileFact:
    kind: Kind = "other"
    if member.isfile() or member.islnk():
        kind = "file"
    elif member.isdir():
        kind = "folder"
    elif member.issym():
        kind = "link"
    size = member.size if kind == "file" else 0
    target = member.linkname if kind == "link" else ""
    return FileFact(kind, member.mode & 0o7777, f"{member.uid}:{member.gid}", size, target=target)


class _Hashed:
    """A stream that knows the sha256 and the size of what was read from it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self._stream.read(size)
        self.digest.update(piece)
        self.size += len(piece)
        return piece

    def drain(self) -> None:
        """Read what tarfile leaves: a tar may be padded far past its end."""
        for _ in pieces(self):
            pass


def _as_file(stream: Readable) -> IO[bytes]:
    # tarfile's stream mode asks for read() alone, its annotations for a whole file object.
    return stream  # type: ignore[return-value]
