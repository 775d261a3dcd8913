"""Two layer tars that should be one: which files differ, and in what, down to the byte."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tdstack.assemble.tar import CHUNK
from tdstack.errors import IntegrityError

THEIRS, OURS = "only in the image", "only in the rebuild"


@dataclass(frozen=True)
class FileDifference:
    """One file of a layer, and how the rebuild's differs from the image's."""

    path: str
    what: tuple[str, ...]


def compare_tars(theirs: Path, ours: Path) -> list[FileDifference]:
    """Return what differs between an image's layer tar and the rebuilt one, by path.

    Where every file is equal and the tars are not, what frames them differs; that is reported
    under the path `(tar)`.
    Raises: IntegrityError for a file that is no tar.
    """
    with _opened(theirs) as one, _opened(ours) as other:
        before, after = _members(one, theirs), _members(other, ours)
        found = []
        for path in sorted(before.keys() | after.keys()):
            if path not in after or path not in before:
                found.append(FileDifference(path, (THEIRS if path in before else OURS,)))
            elif what := tuple(_differences(one, before[path], other, after[path])):
                found.append(FileDifference(path, what))
        if not found and list(before) != list(after):
            return [FileDifference("(tar)", ("the order of the files",))]
    if found:
        return found
    with theirs.open("rb") as stream, ours.open("rb") as second:
        at = first_difference(stream, second)
    return [] if at is None else [FileDifference("(tar)", (f"the framing, from byte {at} on",))]


def names_of(path: Path) -> list[str]:
    """Return the names in a tar, sorted, folders left out.

    Raises: IntegrityError for a file that is no tar.
    """
    with _opened(path) as archive:
        return sorted(name for name, m in _members(archive, path).items() if not m.isdir())


def first_difference(one: IO[bytes], other: IO[bytes]) -> int | None:
    """Return the offset of the first byte that differs, None when there is none.

    Where one stream is the other's beginning that is the shorter one's length.
    """
    offset = 0
    while True:
        mine, theirs = one.read(CHUNK), other.read(CHUNK)
        if mine != theirs:
            pairs = enumerate(zip(mine, theirs, strict=False))
            differing = next((i for i, (x, y) in pairs if x != y), min(len(mine), len(theirs)))
            return offset + differing
        if not mine:
            return None
        offset += len(mine)


def _differences(
    one: tarfile.TarFile, before: tarfile.TarInfo, other: tarfile.TarFile, after: tarfile.TarInfo
) -> Iterator[str]:
    if before.type != after.type:
        yield f"kind {_kind(before)} -> {_kind(after)}"
        return
    pairs: list[tuple[str, object, object]] = [
        ("mode", f"{before.mode:04o}", f"{after.mode:04o}"),
        ("owner", _owner(before), _owner(after)),
        ("mtime", before.mtime, after.mtime),
        ("target", before.linkname, after.linkname),
        ("size", before.size, after.size),
        ("device", (before.devmajor, before.devminor), (after.devmajor, after.devminor)),
        ("attributes", _attributes(before), _attributes(after)),
    ]
    yield from (f"{name} {x or '-'} -> {y or '-'}" for name, x, y in pairs if x != y)
    if before.isfile():
        mine, theirs = one.extractfile(before), other.extractfile(after)
        assert mine is not None
        assert theirs is not None
        with mine, theirs:
            at = first_difference(mine, theirs)
        if at is not None:
            yield f"content, from byte {at} on"


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityError("a layer is no tar", where=str(path), got=str(error)) from error


def _members(archive: tarfile.TarFile, path: Path) -> Mapping[str, tarfile.TarInfo]:
    found: dict[str, tarfile.TarInfo] = {}
    try:
        for member in archive:
            name = member.name.removeprefix("./") or "."
            while name in found:  # a tar may name a file twice; the last one counts when unpacked
                name += " (again)"
            found[name] = member
    except (tarfile.TarError, EOFError) as error:
        raise IntegrityError("a layer is no whole tar", where=str(path), got=str(error)) from error
    return found


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}
    return "file" if member.isfile() else kinds.get(member.type, f"type {member.type!r}")


def _owner(member: tarfile.TarInfo) -> str:
    names = f" ({member.uname}:{member.gname})" if member.uname or member.gname else ""
    return f"{member.uid}:{member.gid}{names}"


def _attributes(member: tarfile.TarInfo) -> dict[str, str]:
    # What has a field of its own is compared there.
    fields = {"path", "linkpath", "size", "mtime", "uid", "gid", "uname", "gname"}
    return {k: v for k, v in sorted(member.pax_headers.items()) if k not in fields}
