"""A host's files, under any root: what cannot be read is None, and never an exception."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOST = 4 << 20
# The kernel refuses a read of its settings with a buffer of megabytes (ENOMEM).
CHUNK = 1 << 16


@dataclass(frozen=True)
class Tree:
    """The files under `root` (`/`, or a copy in a test) and the variables of a process.

    Paths are given without the leading slash. At most 4 MiB of a file are read: the kernel's
    files are short, and some never end.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)

    def path(self, place: str) -> Path:
        """Return where a file is."""
        return self.root / place

    def data(self, place: str, most: int = MOST) -> bytes | None:
        """Return the first bytes of a file, or None."""
        try:
            with self.path(place).open("rb", buffering=0) as file:
                chunks, left = [], most
                while left > 0 and (chunk := file.read(min(left, CHUNK))):
                    chunks.append(chunk)
                    left -= len(chunk)
                return b"".join(chunks)
        except (OSError, ValueError):
            return None

    def text(self, place: str) -> str | None:
        """Return a file's text without the space around it, or None."""
        data = self.data(place)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def lines(self, place: str) -> list[str] | None:
        """Return a file's lines, or None."""
        text = self.text(place)
        return None if text is None else text.splitlines()

    def number(self, place: str, base: int = 10) -> int | None:
        """Return the number that a file holds, or None."""
        return number(self.text(place), base)

    def names(self, place: str) -> tuple[str, ...] | None:
        """Return the names in a folder, sorted, or None where it cannot be listed."""
        try:
            return tuple(sorted(os.listdir(self.path(place))))
        except (OSError, ValueError):
            return None

    def has(self, place: str) -> bool:
        """Return whether a path is there; a link counts even if it leads nowhere."""
        return os.path.lexists(self.path(place))

    def target(self, place: str) -> str | None:
        """Return where a symbolic link points, as it is written, or None."""
        try:
            return os.readlink(self.path(place))
        except (OSError, ValueError):
            return None

    def processes(self) -> frozenset[str]:
        """Return the names of running processes, cut to 15 characters as the kernel does."""
        ids = [name for name in self.names("proc") or () if name.isdigit()]
        return frozenset(filter(None, (self.text(f"proc/{name}/comm") for name in ids)))


def number(text: str | None, base: int = 10) -> int | None:
    """Return a text's number, or None. Pure."""
    try:
        return None if text is None else int(text.strip(), base)
    except ValueError:
        return None
