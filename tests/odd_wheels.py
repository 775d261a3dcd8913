"""Wheels of Triton-distributed written by hand: whole by default, odd where a test asks for it."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.conftest import ZIP_TIME, record_hash
from tests.triton_wheels import FORK_BACKENDS, FORK_FILES, TAG

Members = dict[str, bytes]


def odd_wheel(
    folder: Path,
    changes: Mapping[str, bytes | str | None] = {},
    *,
    name: str = "triton_dist",
    version: str = "3.4.0",
    tag: str = TAG,
    metadata: str = "Name: triton-dist\nVersion: 3.4.0\n",
    record: Callable[[list[str]], list[str]] = list,
    links: Sequence[str] = (),
    programs: Sequence[str] = (),
    repeat: Iterable[str] = (),
    compression: int = zipfile.ZIP_DEFLATED,
    date: tuple[int, int, int, int, int, int] = ZIP_TIME,
    backwards: bool = False,
    zip64: bool = False,
    folders: bool = False,
) -> Path:
    """Write a fork's wheel.

    `changes` are files to add, to change or (None) to leave out; `{info}` and `{data}` stand for
    its own folders. `record` changes the lines of RECORD, `links` names members that are marked
    as symbolic links, `programs` those with the x bit, `repeat` those that come twice; `folders`
    adds entries for folders.
    """
    stem = f"{name}-{version}"
    info, data = f"{stem}.dist-info", f"{stem}.data"
    members: Members = {n: _bytes(t) for n, t in FORK_FILES.items()}
    members[f"{info}/METADATA"] = f"Metadata-Version: 2.1\n{metadata}\nA fork.\n".encode()
    members[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    members[f"{info}/entry_points.txt"] = FORK_BACKENDS.encode()
    recorded = dict(members)
    for key, content in changes.items():
        member = key.format(info=info, data=data)
        if content is None:
            members.pop(member, None)
            recorded.pop(member, None)
        else:
            members[member] = recorded[member] = _bytes(content)
    lines = [",".join([_quoted(n), *record_hash(t)]) for n, t in recorded.items()]
    if f"{info}/RECORD" not in members and changes.get("{info}/RECORD", "") is not None:
        members[f"{info}/RECORD"] = "\n".join([*record(lines), f"{info}/RECORD,,", ""]).encode()
    order = list(members)[:: -1 if backwards else 1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        if folders:
            for top in sorted({n.rpartition("/")[0] for n in members if "/" in n}):
                archive.writestr(zipfile.ZipInfo(f"{top}/", date), b"")
        for member in [*order, *repeat]:
            entry = zipfile.ZipInfo(member.format(info=info), date)
            mode = 0o100755 if member in programs else 0o100644
            mode = 0o120777 if member in links else mode
            entry.external_attr, entry.compress_type = mode << 16, compression
            with archive.open(entry, "w", force_zip64=zip64) as out:
                out.write(members[member.format(info=info)])
    return path


def patch_headers(wheel: Path, member: str, *, flags: int = 0, method: int | None = None) -> Path:
    """Set flags or the compression method of a member, in both of its headers."""
    with zipfile.ZipFile(wheel) as archive:
        local, central = archive.getinfo(member).header_offset, archive.start_dir
    data = bytearray(wheel.read_bytes())
    while data[central + 46 :][: len(member)] != member.encode():
        central = data.index(b"PK\x01\x02", central + 4)
    for at in (local + 6, central + 8):
        old_flags, old_method = struct.unpack_from("<2H", data, at)
        struct.pack_into(
            "<2H", data, at, old_flags | flags, old_method if method is None else method
        )
    wheel.write_bytes(bytes(data))
    return wheel


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name or "\n" in name else name


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content
