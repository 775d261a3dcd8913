"""A wheel as entries: what `pip install` would put on disk, without running anything.

Follows the binary distribution format (PEP 427) and the recording of installed
distributions (PEP 376/627): scripts and data move to their places, RECORD lists what is
really there, and files that a recipe drops appear in neither.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable
from configparser import Error as ConfigError
from pathlib import Path, PurePosixPath

from installer.exceptions import InstallerError
from installer.records import InvalidRecordEntry, parse_record_file
from installer.scripts import Script
from installer.utils import parse_entrypoints

from tdstack.assemble.entries import Content, Entry, from_bytes
from tdstack.assemble.shebang import shebang
from tdstack.errors import IntegrityError
from tdstack.verify.installed import record_digest

EXECUTABLE = 0o111


class WheelEntries:
    """The entries of one wheel under an environment.

    `wheel` is the file on disk, `name` its wheel file name, `prefix` the environment without
    a leading slash (`opt/tdstack`), `site` its site-packages; scripts run with `python`, by
    default the environment's own.
    """

    def __init__(self, wheel: Path, name: str, prefix: str, site: str, python: str = "") -> None:
        self._wheel, self._name, self._prefix, self._site = wheel, name, prefix, site
        self._python = python or f"/{prefix}/bin/python"
        try:
            with zipfile.ZipFile(wheel) as archive:
                self._members = [i for i in archive.infolist() if not i.is_dir()]
                self._info = self._dist_info()
                self._texts = {
                    i.filename: archive.read(i)
                    for i in self._members
                    if i.filename in {f"{self._info}/RECORD", f"{self._info}/entry_points.txt"}
                    or ".data/scripts/" in i.filename
                }
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise IntegrityError(f"{name} is not a whole wheel", got=str(error)) from error

    def entries(self, drops: Callable[[str], bool]) -> list[Entry]:
        """Return the entries; `drops` says which site-packages paths are left out."""
        found: list[Entry] = []
        for info in self._members:
            if info.filename == f"{self._info}/RECORD":
                continue
            # Bytecode in a wheel carries its builder's source times; ours comes as its own part.
            if "/__pycache__/" in info.filename:
                continue
            path = self._destination(info.filename)
            if drops(path.removeprefix(f"{self._site}/")):
                continue
            found.append(self._entry(info, path))
        try:
            found += self._console_scripts()
            found.append(from_bytes(f"{self._site}/{self._info}/INSTALLER", b"tdstack\n"))
            found.append(self._record(found))
        # What the parsers of metadata raise on nonsense, assertions among them.
        except (
            ValueError,
            LookupError,
            AssertionError,
            InstallerError,
            InvalidRecordEntry,
            ConfigError,
        ) as error:
            raise IntegrityError(
                f"the metadata of {self._name} cannot be read", where=self._info, got=str(error)
            ) from error
        return found

    def _dist_info(self) -> str:
        folders = {i.filename.split("/")[0] for i in self._members}
        info = [f for f in folders if f.endswith(".dist-info")]
        if len(info) != 1:
            raise IntegrityError(
                f"{self._name} has {len(info)} dist-info folders", expected="exactly one"
            )
        return info[0]

    def _destination(self, member: str) -> str:
        first, _, rest = member.partition("/")
        if first.endswith(".data"):
            scheme, _, inner = rest.partition("/")
            places = {
                "purelib": self._site,
                "platlib": self._site,
                "scripts": f"{self._prefix}/bin",
                "data": self._prefix,
                "headers": f"{self._prefix}/include/{first.split('-')[0]}",
            }
            if scheme not in places:
                raise IntegrityError(f"{self._name} has an unknown data scheme {scheme!r}")
            member, root = inner, places[scheme]
        else:
            root = self._site
        # A member such as ../../etc/passwd must never leave the environment.
        if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
            raise IntegrityError(f"{self._name} holds an unsafe path", where=member)
        return f"{root}/{member}"

    def _entry(self, info: zipfile.ZipInfo, path: str) -> Entry:
        executable = (info.external_attr >> 16) & EXECUTABLE
        if ".data/scripts/" in info.filename:
            data = self._texts[info.filename]
            if data.startswith(b"#!python"):
                _, newline, rest = data.partition(b"\n")
                data = shebang(self._python).removesuffix(b"\n") + newline + rest
            return from_bytes(path, data, 0o755)
        content = Content(
            wheel=self._wheel, member=info.filename, size=info.file_size, crc=info.CRC
        )
        return Entry(path, "file", 0o755 if executable else 0o644, content)

    def _console_scripts(self) -> list[Entry]:
        text = self._texts.get(f"{self._info}/entry_points.txt", b"").decode()
        scripts = []
        for name, module, attribute, section in parse_entrypoints(text):
            if "/" in name or name in {".", ".."}:
                raise IntegrityError(f"{self._name} names an unsafe script", where=name)
            script = Script(name, module, attribute, section)
            _, data = script.generate(self._python, kind="posix")
            scripts.append(from_bytes(f"{self._prefix}/bin/{name}", data, 0o755))
        return scripts

    def _record(self, entries: list[Entry]) -> Entry:
        own = f"{self._site}/{self._info}/RECORD"
        text = self._texts.get(f"{self._info}/RECORD")
        if text is None:
            raise IntegrityError(f"{self._name} has no RECORD")
        hashes = {row[0]: row[1] for row in parse_record_file(text.decode().splitlines())}
        rows = [(self._relative(e.path), *self._hash(e, hashes)) for e in entries]
        rows.append((self._relative(own), "", ""))
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(sorted(rows))
        return from_bytes(own, out.getvalue().encode())

    def _hash(self, entry: Entry, recorded: dict[str, str]) -> tuple[str, str]:
        data = entry.content.data
        if data is None:
            return recorded.get(entry.content.member, ""), str(entry.content.size)
        return record_digest(hashlib.sha256(data).digest()), str(len(data))

    def _relative(self, path: str) -> str:
        if path.startswith(f"{self._site}/"):
            return path.removeprefix(f"{self._site}/")
        up = "../" * (len(PurePosixPath(self._site).parts) - len(PurePosixPath(self._prefix).parts))
        return up + path.removeprefix(f"{self._prefix}/")
