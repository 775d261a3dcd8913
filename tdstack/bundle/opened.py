"""A bundle opened for reading: every byte is checked before anything is made of it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.tar import BLOCK, CHUNK
from tdstack.attest import dsse
from tdstack.attest.keys import PublicKey
from tdstack.bundle.model import (
    CHECKSUM,
    MANIFEST,
    PAYLOAD_TYPE,
    SIGNATURE,
    BundleManifest,
    Member,
    parse_manifest,
)
from tdstack.bundle.parts import Parts
from tdstack.errors import IntegrityError

# bundle.json has some hundred bytes for each of some thousand files.
MOST_DOCUMENT = 64 << 20
DIFFERS = "the bundle does not hold what its manifest lists"


@dataclass(frozen=True)
class OpenedBundle:
    """A bundle whose bytes are those of its manifest. `signed_by` is a fingerprint, or empty."""

    path: Path
    manifest: BundleManifest
    parts: Parts
    offsets: Mapping[str, int]
    signed_by: str

    def open(self, member: Member) -> io.BufferedReader:
        """Return a member's bytes."""
        return self.parts.window(self.offsets[member.path], member.size)

    def below(self, folder: str) -> BundleFiles:
        """Return the files of a folder of the bundle, by their paths in it."""
        members = {m.path.removeprefix(f"{folder}/"): m for m in self.manifest.below(folder)}
        return BundleFiles(self, members)


@dataclass(frozen=True)
class BundleFiles:
    """Files of a bundle by their paths."""

    bundle: OpenedBundle
    members: Mapping[str, Member]

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        member = self.members.get(path)
        return member.size if member else None

    def open(self, path: str) -> io.BufferedReader:
        """Return a file's bytes."""
        return self.bundle.open(self.members[path])


def open_bundle(path: Path, parts: Parts, keys: Sequence[PublicKey] = ()) -> OpenedBundle:
    """Read a bundle to its end and check all of it.

    With `keys` its signature, where it has one, must be by one of them.
    Raises: IntegrityError for a bundle that is cut off, altered, or has more or less in it than
    it says; UsageError for a schema of another tdstack.
    """
    try:
        with tarfile.open(fileobj=parts.window(0, parts.size), mode="r:") as tar:
            return _checked(path, parts, tar, keys)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise _refused(path, parts, "the bundle is cut off, or is none", got=str(error)) from error


def _checked(
    path: Path, parts: Parts, tar: tarfile.TarFile, keys: Sequence[PublicKey]
) -> OpenedBundle:
    head = tar.next()
    if head is None or head.name != MANIFEST:
        got = head.name if head else "no member"
        raise _refused(path, parts, "this is no bundle", expected=MANIFEST, got=got)
    data, header = _document(path, parts, head), tar.next()
    checksum = _document(path, parts, header) if header and header.name == CHECKSUM else b""
    if checksum != f"{hashlib.sha256(data).hexdigest()}\n".encode():
        raise _refused(path, parts, "the bundle's list of its files is damaged", expected=CHECKSUM)
    try:
        manifest = parse_manifest(data, str(path))
    except IntegrityError as error:
        raise _refused(path, parts, error.what, got=error.got) from error
    header, signature = tar.next(), b""
    if header is not None and header.name == SIGNATURE:
        signature, header = _document(path, parts, header), tar.next()
    offsets: dict[str, int] = {}
    end = _end(head)
    for member in manifest.members:
        if header is None or not header.isreg() or header.name != member.path:
            got = header.name if header else "the end"
            raise _refused(path, parts, DIFFERS, expected=member.path, got=got)
        _check(path, parts, header, member)
        offsets[member.path], end = header.offset_data, _end(header)
        header = tar.next()
    if header is not None:
        raise _refused(path, parts, DIFFERS, expected="no more files", got=header.name)
    # Two blocks of zeros end a tar; tarfile is content with less.
    if parts.size != end + 2 * BLOCK or not _zeros(parts, end, 2 * BLOCK):
        raise _refused(
            path, parts, "the bundle is cut off, or goes on", expected=f"{end + 2 * BLOCK} bytes",
            got=f"{parts.size} bytes",
        )  # fmt: skip
    signed_by = _signer(data, signature, keys, str(path)) if signature and keys else ""
    return OpenedBundle(path, manifest, parts, offsets, signed_by)


def _document(path: Path, parts: Parts, header: tarfile.TarInfo) -> bytes:
    if not header.isreg() or header.size > MOST_DOCUMENT:
        raise _refused(path, parts, "this is no bundle", got=f"{header.name}, {header.size} bytes")
    _check_padding(path, parts, header)
    return parts.window(header.offset_data, header.size).read()


def _check(path: Path, parts: Parts, header: tarfile.TarInfo, member: Member) -> None:
    digest = hashlib.sha256()
    with parts.window(header.offset_data, header.size) as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    wanted = (member.sha256, member.size, member.executable)
    _check_padding(path, parts, header)
    got = (digest.hexdigest(), header.size, bool(header.mode & 0o100))
    if got != wanted:
        raise _refused(
            path,
            parts,
            "a file of the bundle is not the one that its manifest lists",
            expected=f"{member.path}: sha256 {wanted[0]}, {wanted[1]} bytes",
            got=f"sha256 {got[0]}, {got[1]} bytes",
        )


def _check_padding(path: Path, parts: Parts, header: tarfile.TarInfo) -> None:
    begin = header.offset_data + header.size
    if not _zeros(parts, begin, _end(header) - begin):
        raise _refused(path, parts, DIFFERS, expected=f"zeros after {header.name}")


def _zeros(parts: Parts, begin: int, size: int) -> bool:
    return parts.window(begin, size).read() == b"\0" * size


def _end(header: tarfile.TarInfo) -> int:
    return header.offset_data + header.size + -header.size % BLOCK


def _signer(data: bytes, envelope: bytes, keys: Sequence[PublicKey], where: str) -> str:
    payload, key = dsse.open_envelope(envelope, PAYLOAD_TYPE, keys, f"{where}: {SIGNATURE}")
    if payload != data:
        raise IntegrityError(
            "the bundle's signature is over another bundle",
            where=where,
            remedy="do not use it; ask whoever made it",
        )
    return key.fingerprint


def _refused(
    path: Path, parts: Parts, what: str, *, expected: str = "", got: str = ""
) -> IntegrityError:
    if damaged := parts.damaged():
        got = "; ".join(filter(None, (got, f"damaged: {', '.join(damaged)}")))
    return IntegrityError(
        what,
        where=str(path),
        expected=expected,
        got=got,
        remedy="copy the bundle again, or make it again; nothing was taken from it",
    )
