"""What goes into a layer: files, folders and links, before any tar is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tdstack.errors import IntegrityError


@dataclass(frozen=True)
class Content:
    """Bytes of a file: given, in a file on disk, or the member of a wheel."""

    data: bytes | None = None
    file: Path | None = None
    wheel: Path | None = None
    member: str = ""
    size: int = 0
    crc: int = 0


@dataclass(frozen=True)
class Entry:
    """One name in a layer. `path` has no leading slash; owner is always 0:0."""

    path: str
    kind: Literal["file", "folder", "link"]
    mode: int
    content: Content = Content()
    target: str = ""


def from_bytes(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """Return a file entry for the given bytes."""
    return Entry(path, "file", mode, Content(data=data, size=len(data)))


def from_file(path: str, source: Path, mode: int) -> Entry:
    """Return a file entry for a file on disk."""
    return Entry(path, "file", mode, Content(file=source, size=source.stat().st_size))


def arrange(entries: Iterable[Entry]) -> list[Entry]:
    """Sort entries, add the folders that they need, and merge equal duplicates.

    NVIDIA's wheels share files (`nvidia/__init__.py`); equal ones are one file.
    Raises: IntegrityError when two entries give one path different content: an installer
    would let the last one win silently.
    """
    known: dict[str, Entry] = {}
    for entry in entries:
        other = known.setdefault(entry.path, entry)
        if other is not entry and not _same(other, entry):
            raise IntegrityError(
                f"two packages own {entry.path} with different content",
                where=f"{_origin(other)} and {_origin(entry)}",
                expected="one owner for every file",
                remedy="leave one out with a drop rule in the layer's recipe.toml",
            )
    for path in list(known):
        for parent in PurePosixPath(path).parents:
            name = str(parent)
            if name == ".":
                continue
            # A link is no folder either: whoever unpacks it would write through the link.
            if (kind := known.setdefault(name, Entry(name, "folder", 0o755)).kind) != "folder":
                raise IntegrityError(
                    f"{name} is a {kind} in one package and a folder in another",
                    where=f"{_origin(known[name])} and {_origin(known[path])}",
                )
    return [known[path] for path in sorted(known)]


def _same(one: Entry, other: Entry) -> bool:
    if one.kind != other.kind or one.kind != "file":
        return one == other
    if (one.mode, one.content.size) != (other.mode, other.content.size):
        return False
    return _crc(one) == _crc(other)


def _crc(entry: Entry) -> int:
    if entry.content.wheel:
        return entry.content.crc
    import zlib

    content = entry.content
    data = content.data if content.data is not None else (content.file or Path()).read_bytes()
    return zlib.crc32(data)


def _origin(entry: Entry) -> str:
    return entry.content.wheel.name if entry.content.wheel else entry.path
