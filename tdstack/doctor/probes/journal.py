"""Messages in systemd's journal files, read without systemd.

The format is systemd's JOURNAL_FILE_FORMAT: a message is a DATA object `MESSAGE=...`, kept once
however often it was logged, which leads to its ENTRY objects with their time and boot.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tdstack.doctor.probes.tree import Tree

FOLDERS = ("var/log/journal", "run/log/journal")
# Journals of months can be gigabytes; the newest files hold this boot.
MOST = 512 << 20
SIGNATURE, PREFIX = b"LPKSHHRH", b"MESSAGE="
KERNEL = b"_TRANSPORT=kernel"
COMPACT = 1 << 4  # HEADER_INCOMPATIBLE_COMPACT
DATA, ENTRY, ENTRY_ARRAY = 1, 3, 6


@dataclass(frozen=True)
class Message:
    """A message of this boot and how many seconds ago it was logged."""

    text: str
    age_s: float


def journal_messages(tree: Tree, word: bytes) -> list[Message] | None:
    """Return the kernel's messages of this boot that contain `word`; None without a journal."""
    boot = (tree.text("proc/sys/kernel/random/boot_id") or "").replace("-", "")
    files = _files(tree)
    if not files or len(boot) != 32:
        return None
    found, left, opened = [], MOST, False
    for file in files:
        try:
            size = file.stat().st_size
            if size > left:
                break
            left -= size
            with file.open("rb") as stream:
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # not ours to read, or empty
            continue
        with data:
            opened = True
            found += list(messages_of(data, word, bytes.fromhex(boot), time.time()))
    return found if opened else None


def messages_of(data: bytes | mmap.mmap, word: bytes, boot: bytes, now: float) -> Iterator[Message]:
    """Yield the kernel's messages of one file and one boot that contain `word`. Pure.

    Compressed messages are passed over: only those of 512 bytes and more are.
    """
    if data[:8] != SIGNATURE or len(data) < 208:
        return
    compact = bool(struct.unpack_from("<I", data, 12)[0] & COMPACT)
    payload = 72 if compact else 64
    start = 0
    while (at := data.find(word, start)) >= 0:
        start = at + 1
        begin = data.rfind(PREFIX, max(0, at - 1024), at)
        offset = begin - payload
        if begin < 0 or offset < 208 or offset % 8 or data[offset] != DATA:
            continue
        size = struct.unpack_from("<Q", data, offset + 8)[0]
        if not at < offset + size <= len(data):
            continue
        text = data[begin + len(PREFIX) : offset + size].decode("utf-8", "replace")
        start = offset + size
        for entry in _entries(data, offset, compact):
            seconds = _seconds(data, entry, boot)
            # Anybody may log these words; only the kernel's own are a fault.
            if seconds is not None and KERNEL in _items(data, entry, compact):
                yield Message(text, max(0.0, now - seconds))


def _entries(data: bytes | mmap.mmap, offset: int, compact: bool) -> Iterator[int]:
    first, array, count = struct.unpack_from("<QQQ", data, offset + 40)
    if count:
        yield first
    seen: set[int] = set()
    width, form = (4, "<I") if compact else (8, "<Q")
    while array and array not in seen and array + 24 <= len(data) and data[array] == ENTRY_ARRAY:
        seen.add(array)
        size, following = struct.unpack_from("<QQ", data, array + 8)
        for at in range(array + 24, min(array + size, len(data) - width + 1), width):
            (entry,) = struct.unpack_from(form, data, at)
            if entry:
                yield entry
        array = following


def _seconds(data: bytes | mmap.mmap, entry: int, boot: bytes) -> float | None:
    if entry + 64 > len(data) or data[entry] != ENTRY or data[entry + 40 : entry + 56] != boot:
        return None
    return float(struct.unpack_from("<Q", data, entry + 24)[0]) / 1e6


def _items(data: bytes | mmap.mmap, entry: int, compact: bool) -> Iterator[bytes]:
    """Yield the beginnings of an entry's fields, such as `_TRANSPORT=kernel`."""
    (size,) = struct.unpack_from("<Q", data, entry + 8)
    width, form, payload = (4, "<I", 72) if compact else (16, "<Q", 64)
    for at in range(entry + 64, min(entry + size, len(data) - width + 1), width):
        (item,) = struct.unpack_from(form, data, at)
        if item + payload <= len(data) and data[item] == DATA:
            (length,) = struct.unpack_from("<Q", data, item + 8)
            yield bytes(data[item + payload : item + min(length, payload + 64)])


def _files(tree: Tree) -> list[Path]:
    found = []
    for folder in FOLDERS:
        for machine in tree.names(folder) or ():
            names = tree.names(f"{folder}/{machine}") or ()
            # Users' journals hold no kernel lines.
            own = [name for name in names if name.startswith("system") and ".journal" in name]
            found += [tree.path(f"{folder}/{machine}/{name}") for name in own]
    return sorted(found, key=_changed, reverse=True)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
