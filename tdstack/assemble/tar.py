"""Entries -> one uncompressed layer tar, streamed once: inflate, hash, write."""

from __future__ import annotations

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.entries import Entry
from tdstack.errors import IntegrityError
from tdstack.rootfs import SOURCE_DATE_EPOCH

CHUNK = 1 << 20
BLOCK = 512


@dataclass(frozen=True)
class Blob:
    """A layer tar: its sha256 (which is the layer's diff id, as nothing is compressed) and
    its size in bytes.
    """

    sha256: str
    size: int

    @property
    def digest(self) -> str:
        """Return `sha256:<hex>`."""
        return f"sha256:{self.sha256}"


def write_tar(entries: list[Entry], folder: Path) -> Blob:
    """Write `entries`, in their order, as a tar named by its sha256 into `folder`.

    Owner, time and header format are fixed, so equal entries give equal bytes.
    Raises: IntegrityError when a wheel's member is damaged.
    """
    temporary = folder / f".tar-{os.getpid()}-{id(entries)}"
    digest = hashlib.sha256()
    size = 0
    try:
        with ExitStack() as stack, temporary.open("wb", buffering=CHUNK) as out:
            archives: dict[Path, zipfile.ZipFile] = {}
            for entry in entries:
                for piece in _pieces(entry, archives, stack):
                    digest.update(piece)
                    out.write(piece)
                    size += len(piece)
            end = b"\0" * (2 * BLOCK)
            digest.update(end)
            out.write(end)
            size += len(end)
        temporary.replace(folder / digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    return Blob(digest.hexdigest(), size)


def _pieces(
    entry: Entry, archives: dict[Path, zipfile.ZipFile], stack: ExitStack
) -> Iterator[bytes]:
    header = tarfile.TarInfo(entry.path)
    header.mtime, header.mode = SOURCE_DATE_EPOCH, entry.mode
    header.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[
        entry.kind
    ]
    header.linkname = entry.target
    header.size = entry.content.size
    yield header.tobuf(tarfile.PAX_FORMAT)
    if entry.kind != "file":
        return
    written = 0
    for piece in _content(entry, archives, stack):
        written += len(piece)
        yield piece
    if written != entry.content.size:
        raise IntegrityError(
            f"{entry.path} changed while it was read",
            expected=f"{entry.content.size} bytes",
            got=f"{written} bytes",
        )
    if written % BLOCK:
        yield b"\0" * (BLOCK - written % BLOCK)


def _content(
    entry: Entry, archives: dict[Path, zipfile.ZipFile], stack: ExitStack
) -> Iterator[bytes]:
    content = entry.content
    if content.data is not None:
        yield content.data
        return
    if content.file is not None:
        with content.file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                yield piece
        return
    assert content.wheel is not None
    if content.wheel not in archives:
        archives[content.wheel] = stack.enter_context(zipfile.ZipFile(content.wheel))
    try:
        with archives[content.wheel].open(content.member) as member:
            while piece := member.read(CHUNK):
                yield piece
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise IntegrityError(
            "a wheel is damaged", where=f"{content.wheel}: {content.member}", got=str(error)
        ) from error
