"""Files -> one deterministic tar, in parts if asked; its first member lists all others by hash."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.tar import BLOCK, CHUNK
from tdstack.attest import dsse
from tdstack.attest.keys import Signer
from tdstack.bundle.model import (
    CHECKSUM,
    MANIFEST,
    PAYLOAD_TYPE,
    SIGNATURE,
    BundleManifest,
    Member,
)
from tdstack.bundle.parts import PartWriter
from tdstack.errors import IntegrityError
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.space import check_room
from tdstack.wheelhouse.store import sha256_of


@dataclass(frozen=True)
class Packed:
    """A file that goes into a bundle. `temporary`: it is removed when it was written."""

    source: Path
    member: Member
    temporary: bool = False


def packed(
    source: Path,
    path: str,
    *,
    executable: bool = False,
    name: str = "",
    sha256: str = "",
    temporary: bool = False,
) -> Packed:
    """Return a file as a member; `sha256` is that of its bytes, where it is known already."""
    return Packed(
        source,
        Member(
            path=path,
            sha256=sha256 or sha256_of(source),
            size=source.stat().st_size,
            executable=executable,
            name=name,
        ),
        temporary,
    )


def write_bundle(
    manifest: BundleManifest,
    files: Sequence[Packed],
    out: Path,
    *,
    limit: int = 0,
    signer: Signer | None = None,
) -> list[Path]:
    """Write the bundle; return its files. Equal contents give equal bytes.

    Nothing has its name before all is written.
    Raises: HostError when the disk has no room; IntegrityError for a file that is another one
    than it was.
    """
    data = manifest.data()
    total = sum(_on_tape(f.member.size) for f in files) + 4 * _on_tape(len(data))
    freed = sum(f.member.size for f in files if f.temporary and _same_disk(f.source, out))
    largest = max((f.member.size for f in files), default=0)
    check_room(out.parent, total - freed + largest if freed else total, "for the bundle")
    writer = PartWriter(out, limit)
    try:
        _write(writer, MANIFEST, data)
        # Everything else is listed by hash in it, and it in nothing.
        _write(writer, CHECKSUM, f"{hashlib.sha256(data).hexdigest()}\n".encode())
        if signer:
            _write(writer, SIGNATURE, dsse.seal(PAYLOAD_TYPE, data, signer))
        for file in files:
            writer.write(_header(file.member.path, file.member.size, file.member.executable))
            for piece in _content(file):
                writer.write(piece)
            if file.temporary:
                file.source.unlink()
        writer.write(b"\0" * (2 * BLOCK))
        return writer.publish()
    finally:
        writer.abandon()


def _write(writer: PartWriter, name: str, data: bytes) -> None:
    writer.write(_header(name, len(data), executable=False))
    writer.write(data + b"\0" * (-len(data) % BLOCK))


def _header(name: str, size: int, executable: bool) -> bytes:
    header = tarfile.TarInfo(name)
    header.size, header.mtime = size, SOURCE_DATE_EPOCH
    header.mode = 0o755 if executable else 0o644
    return header.tobuf(tarfile.PAX_FORMAT)


def _content(file: Packed) -> Iterator[bytes]:
    written = 0
    with file.source.open("rb") as stream:
        while piece := stream.read(CHUNK):
            written += len(piece)
            yield piece
    if written != file.member.size:
        raise IntegrityError(
            "a file changed while the bundle was written",
            where=str(file.source),
            expected=f"{file.member.size} bytes",
            got=f"{written} bytes",
        )
    yield b"\0" * (-written % BLOCK)


def _on_tape(size: int) -> int:
    return 3 * BLOCK + size + -size % BLOCK


def _same_disk(one: Path, other: Path) -> bool:
    return os.stat(one).st_dev == os.stat(other.parent).st_dev
