"""One stream of bytes in several files, written and read without ever being put together."""

from __future__ import annotations

import bisect
import glob
import hashlib
import io
import os
import re
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from tdstack.errors import IntegrityError, UsageError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SMALLEST = 1_000_000


def parse_size(text: str) -> int:
    """Return a size in bytes: a number, or one with K, M, G or T for powers of 1000. Pure.

    Raises: UsageError for what is none, or less than a MB.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < SMALLEST:
        raise UsageError("no size for a part", where=f"--split {text}", expected="such as 4G, 700M")
    return size


class PartWriter(io.RawIOBase):
    """Writes to `path`, or with `limit` (bytes) to `path`.000, .001 and so on.

    The files have other names until `publish`; an end without it removes them.
    """

    def __init__(self, path: Path, limit: int = 0) -> None:
        self._path, self._limit = path, limit
        self._made: list[Path] = []
        self._hashes: list[hashlib._Hash] = []
        self._out: BinaryIO | None = None
        self._left = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: object) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            if self._out is None or (self._limit and not self._left):
                self._next()
            assert self._out is not None
            end = min(len(view), done + self._left) if self._limit else len(view)
            piece = view[done:end]
            self._out.write(piece)
            self._hashes[-1].update(piece)
            self._left -= len(piece)
            done = end
        return len(view)

    def publish(self) -> list[Path]:
        """Give the files their names, the list of their hashes last; return the files."""
        self._finish()
        names = [self._name(n) for n in range(len(self._made))]
        listed = self._path.with_name(f"{self._path.name}.sha256")
        # Of an earlier bundle, or of a writer that was killed.
        left = self._path.absolute().parent.glob(f".{glob.escape(self._path.name)}.*.partial")
        made = {path.absolute() for path in self._made}
        for stale in (*parts_of(self._path), listed, *(p for p in left if p not in made)):
            stale.unlink(missing_ok=True)
        for path, name in zip(self._made, names, strict=True):
            path.replace(name)
        self._made = []
        if self._limit:
            rows = zip(self._hashes, names, strict=True)
            listed.write_text("".join(f"{h.hexdigest()}  {name.name}\n" for h, name in rows))
        return names

    def abandon(self) -> None:
        """Remove what was written and not published."""
        self._finish()
        for made in self._made:
            made.unlink(missing_ok=True)

    def _next(self) -> None:
        self._finish()
        name = self._name(len(self._made))
        made = name.with_name(f".{name.name}.partial")
        self._out = made.open("wb", buffering=1 << 20)
        self._made.append(made)
        self._hashes.append(hashlib.sha256())
        self._left = self._limit

    def _finish(self) -> None:
        if self._out is not None:
            out, self._out = self._out, None
            out.close()

    def _name(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number:03}") if self._limit else self._path


def parts_of(path: Path) -> list[Path]:
    """Return the numbered files of a bundle, in order; none where there are none."""
    pattern = re.compile(re.escape(path.name) + r"\.\d{3,}")
    folder = path.absolute().parent
    found = [p for p in folder.iterdir() if pattern.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.rpartition(".")[2]))


class Parts:
    """The bytes of a bundle, wherever they lie. Reading is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.paths = _complete(path)
        self._files = [p.open("rb") for p in self.paths]
        sizes = [os.fstat(f.fileno()).st_size for f in self._files]
        self._ends = list(accumulate(sizes))
        self._listed = _hashes(path) if len(self.paths) > 1 or self.paths[0] != path else {}

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    @property
    def size(self) -> int:
        """Return the size of all, in bytes."""
        return self._ends[-1]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset` on, none only past the end."""
        number = bisect.bisect_right(self._ends, offset)
        if number == len(self._files) or size <= 0:
            return b""
        begin = self._ends[number - 1] if number else 0
        return os.pread(
            self._files[number].fileno(), min(size, self._ends[number] - offset), offset - begin
        )

    def window(self, offset: int, size: int) -> io.BufferedReader:
        """Return `size` bytes from `offset` on as a file of their own."""
        return io.BufferedReader(_Window(self, offset, size), 1 << 20)

    def damaged(self) -> list[str]:
        """Return the names of parts that are not those of the list beside them."""
        found = []
        for path, file in zip(self.paths, self._files, strict=True):
            file.seek(0)
            wanted = self._listed.get(path.name)
            if wanted and hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                found.append(path.name)
        return found


class _Window(io.RawIOBase):
    def __init__(self, parts: Parts, offset: int, size: int) -> None:
        self._parts, self._offset, self._size, self._at = parts, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size - self._at)
        data = self._parts.read_at(self._offset + self._at, size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _complete(path: Path) -> list[Path]:
    if re.fullmatch(r"\.\d{3,}", path.suffix) and not path.with_suffix("").exists():
        path = path.with_suffix("")
    if path.is_file():
        return [path]
    found = parts_of(path)
    if not found:
        raise UsageError("no such bundle", where=f"--unpack {path}")
    numbers = {int(p.name.rpartition(".")[2]) for p in found}
    listed = _hashes(path)
    lacking = [f"{path.name}.{n:03}" for n in range(max(numbers)) if n not in numbers]
    lacking += [name for name in listed if not path.with_name(name).exists()]
    if not listed:
        lacking.append(f"{path.name}.sha256")
    if lacking:
        raise IntegrityError(
            "a part of the bundle is missing",
            where=str(path),
            expected=", ".join(sorted(set(lacking))),
            got=f"{len(found)} parts",
            remedy="copy it again; all parts and the list of their hashes belong into one folder",
        )
    return found


def _hashes(path: Path) -> dict[str, str]:
    if re.fullmatch(r"\.\d{3,}", path.suffix):
        path = path.with_suffix("")
    try:
        text = path.with_name(f"{path.name}.sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.findall(r"^([0-9a-f]{64})  ([^/\n]+)$", text, re.MULTILINE)
    return {name: sha256 for sha256, name in found}
