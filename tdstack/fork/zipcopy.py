"""Writing wheels: members copied as they lie in another archive, the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import io
import struct
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.verify.installed import record_digest

_DATE = time.gmtime(SOURCE_DATE_EPOCH)[:6]
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # APPNOTE 4.3.7
_PLAIN = 0o100644 << 16


class WheelWriter:
    """Writes one wheel; RECORD comes last, from what was written. A context manager.

    Order, dates and headers do not depend on the source archive's, and what is added is stored as
    it is, so that the bytes do not depend on this host's zlib either.
    """

    def __init__(self, out: Path, info: str) -> None:
        self._zip = zipfile.ZipFile(out, "w")
        self._info = info
        self._rows: list[tuple[str, str, str]] = []

    def __enter__(self) -> WheelWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            name = f"{self._info}/RECORD"
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([*self._rows, (name, "", "")])
            self._zip.writestr(self._header(name, _PLAIN), text.getvalue())
        self._zip.close()

    def add(self, name: str, data: bytes, attributes: int = _PLAIN) -> None:
        """Add a file with the given bytes."""
        self._zip.writestr(self._header(name, attributes), data)
        self._note(name, record_digest(hashlib.sha256(data).digest()), len(data))

    def copy(
        self, source: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, digest: str
    ) -> None:
        """Add a member of `source` under another name without inflating it.

        `digest` is its row in RECORD, or empty to compute it. zipfile has no public way to copy
        compressed bytes, and to compress a library of 350 MB again takes half a minute.
        """
        stream, target = source.fp, self._zip.fp
        assert stream is not None
        assert target is not None
        stream.seek(member.header_offset)
        fields = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        stream.seek(fields[-2] + fields[-1], io.SEEK_CUR)
        new = self._header(name, member.external_attr)
        new.compress_type, new.CRC = member.compress_type, member.CRC
        new.compress_size, new.file_size = member.compress_size, member.file_size
        new.header_offset = target.tell()
        target.write(new.FileHeader())
        left = member.compress_size
        while left:
            chunk = stream.read(min(left, 1 << 22))
            if not chunk:
                raise zipfile.BadZipFile(f"{member.filename} ends early")
            target.write(chunk)
            left -= len(chunk)
        self._zip.filelist.append(new)
        self._zip.NameToInfo[name] = new
        self._zip.start_dir = target.tell()
        if not digest:
            digest = record_digest(hashlib.sha256(source.read(member)).digest())
        self._note(name, digest, member.file_size)

    def _note(self, name: str, digest: str, size: int) -> None:
        self._rows.append((name, digest, str(size)))

    @staticmethod
    def _header(name: str, attributes: int) -> zipfile.ZipInfo:
        header = zipfile.ZipInfo(name, _DATE)
        header.external_attr, header.compress_type = attributes, zipfile.ZIP_STORED
        header.create_system = 3
        return header


def info_folder(archive: zipfile.ZipFile) -> str:
    """Return the name of a wheel's dist-info folder; vendored ones lie deeper.

    Raises: KeyError unless there is exactly one.
    """
    tops = {name.split("/")[0] for name in archive.namelist() if "/" in name}
    found = [name for name in tops if name.endswith(".dist-info")]
    if len(found) != 1:
        raise KeyError(f"{len(found)} dist-info folders")
    return found[0]


def recorded_digests(archive: zipfile.ZipFile, info: str) -> Mapping[str, str]:
    """Return the digests that a wheel's RECORD gives, by member; empty where it gives none."""
    text = archive.read(f"{info}/RECORD").decode(errors="replace")
    rows = csv.reader(io.StringIO(text, newline=""))
    return {row[0]: row[1] if len(row) > 1 else "" for row in rows if row}
