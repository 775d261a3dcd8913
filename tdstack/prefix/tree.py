"""Entries -> files on disk: written from the wheels, or linked to another version's equal ones."""

from __future__ import annotations

import csv
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.entries import Entry
from tdstack.errors import IntegrityError
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.verify.installed import sha256_digest

CHUNK = 1 << 20


@dataclass(frozen=True)
class Written:
    """What came onto the disk, in bytes: `written` anew, `linked` to files that were there."""

    written: int = 0
    linked: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.written + other.written, self.linked + other.linked)


def write_tree(
    entries: Sequence[Entry], folder: Path, donors: Mapping[Path, Sequence[Path]]
) -> Written:
    """Write arranged entries below `folder`.

    `donors` are, for each wheel, other versions that were made of it: a file of theirs that has
    the sha256 of the wheel's RECORD is linked instead of written, as long as the disk allows it.
    Raises: IntegrityError for a damaged wheel; OSError.
    """
    for entry in entries:
        if entry.kind == "folder":
            (folder / entry.path).mkdir(exist_ok=True)
            (folder / entry.path).chmod(entry.mode)
    by_wheel: dict[Path | None, list[Entry]] = {}
    for entry in entries:
        if entry.kind != "folder":
            by_wheel.setdefault(entry.content.wheel, []).append(entry)
    digests = _recorded(entries)
    # The largest first, so that no thread is left with it at the end; zlib runs without the GIL.
    groups = sorted(by_wheel.items(), key=lambda g: -sum(e.content.size for e in g[1]))
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        works = [
            pool.submit(
                _write_group, wheel, group, folder, donors.get(wheel or folder, ()), digests
            )
            for wheel, group in groups
        ]
        try:
            return sum((work.result() for work in works), Written())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def size_of(entries: Iterable[Entry]) -> int:
    """Return the bytes of all files. Pure."""
    return sum(entry.content.size for entry in entries if entry.kind == "file")


def _write_group(
    wheel: Path | None,
    entries: Sequence[Entry],
    folder: Path,
    donors: Sequence[Path],
    digests: Mapping[str, str],
) -> Written:
    done = Written()
    archive = zipfile.ZipFile(wheel) if wheel else None
    try:
        for entry in entries:
            path = folder / entry.path
            if entry.kind == "link":
                path.symlink_to(entry.target)
            elif _link(entry, path, donors, digests.get(entry.path, "")):
                done += Written(linked=entry.content.size)
            else:
                _write(entry, archive, path)
                done += Written(written=entry.content.size)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise IntegrityError("a wheel is damaged", where=str(wheel), got=str(error)) from error
    finally:
        if archive:
            archive.close()
    return done


def _write(entry: Entry, archive: zipfile.ZipFile | None, path: Path) -> None:
    content = entry.content
    with path.open("wb") as out:
        if content.data is not None:
            out.write(content.data)
        elif content.file is not None:
            with content.file.open("rb") as stream:
                shutil.copyfileobj(stream, out, CHUNK)
        elif archive:
            with archive.open(content.member) as stream:
                shutil.copyfileobj(stream, out, CHUNK)
    path.chmod(entry.mode)
    # Bytecode names the time of its source; a linked source must have the one that it had.
    os.utime(path, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH))


def _link(entry: Entry, path: Path, donors: Sequence[Path], digest: str) -> bool:
    if not digest.startswith("sha256=") or entry.content.wheel is None:
        return False
    for donor in donors:
        there = donor / entry.path
        try:
            state = there.lstat()
            fits = (state.st_size, state.st_mode & 0o7777) == (entry.content.size, entry.mode)
            # Read whole: what somebody changed in one version must not get into another.
            if fits and not there.is_symlink() and sha256_digest(there) == digest:
                os.link(there, path)
                os.utime(path, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH))
                return True
        except OSError:  # not there; another user's, or one link too many
            continue
    return False


def _recorded(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the sha256 of files as the RECORD of their wheels has it, by path."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.path.endswith(".dist-info/RECORD") and entry.content.data is not None:
            site = os.path.dirname(os.path.dirname(entry.path))
            for row in csv.reader(entry.content.data.decode().splitlines()):
                found[os.path.normpath(os.path.join(site, row[0]))] = row[1]
    return found
