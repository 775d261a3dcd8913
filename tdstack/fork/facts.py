"""Everything that a wheel tells of itself, read once, without importing or installing it."""

from __future__ import annotations

import csv
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from tdstack.errors import IntegrityError
from tdstack.fork.elf import Needs, NotElfError, compiled_for, needs_of
from tdstack.fork.imports import Missing, missing_modules
from tdstack.verify.installed import record_digest
from tdstack.verify.triton.fork import FINGERPRINT, LIBRARY, PACKAGES
from tdstack.wheelhouse.store import sha256_of


@dataclass(frozen=True)
class WheelFacts:
    """What is in a wheel. Versions of glibc and Python are text, empty when unknown.

    `library` tells whose libtriton.so it holds: distributed, stock or none. `broken` are compiled
    files that are no whole ELF, `mismatched` files whose bytes are not those of RECORD,
    `unrecorded` files that RECORD does not name. `provenance` is what an earlier relabelling wrote.
    """

    file: str
    sha256: str
    size: int
    name: str
    version: str
    metadata_name: str
    metadata_version: str
    tags: frozenset[Tag]
    library: str
    needs: Needs | None
    python: str
    packages: tuple[str, ...]
    missing: tuple[Missing, ...]
    broken: tuple[str, ...]
    mismatched: tuple[str, ...]
    unrecorded: tuple[str, ...]
    requires: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def base_version(self) -> str:
        """Return the version without its local label."""
        return self.version.partition("+")[0]


def read_facts(path: Path) -> WheelFacts:
    """Read a wheel from end to end.

    Raises: IntegrityError for a file that is no whole wheel: not a zip archive, cut short, or
    without the metadata that a wheel has.
    """
    try:
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise IntegrityError("not a wheel", where=str(path), got=str(error)) from error
    try:
        with zipfile.ZipFile(path) as archive:
            reading = _Reading(archive)
            for member in reading.members:
                reading.take(member)
            head = reading.metadata()
            return WheelFacts(
                file=path.name,
                sha256=sha256_of(path),
                size=path.stat().st_size,
                name=str(name),
                version=str(version),
                metadata_name=canonicalize_name(_header(head, "Name")),
                metadata_version=_header(head, "Version"),
                tags=tags,
                library=reading.library,
                needs=reading.needs,
                python=reading.python,
                packages=tuple(sorted({m.split("/")[0] for m in reading.sources})),
                missing=reading.missing(),
                broken=tuple(reading.broken),
                mismatched=tuple(reading.mismatched),
                unrecorded=reading.unrecorded(),
                requires=tuple(re.findall(r"(?m)^Requires-Dist: *(.*?)\s*$", head)),
                provenance=reading.provenance(),
            )
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        KeyError,
        NotImplementedError,  # a compression that this Python does not know
        OSError,
    ) as error:
        raise IntegrityError(
            f"{path.name} is not a whole wheel",
            where=str(path),
            got=str(error),
            remedy="get the file again, and compare its sha256 with its source's",
        ) from error


class _Reading:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.members = [i for i in archive.infolist() if not i.is_dir()]
        infos = {i.filename.split("/")[0] for i in self.members if ".dist-info/" in i.filename}
        if len(infos) != 1:
            raise KeyError(f"{len(infos)} dist-info folders")
        self.info = infos.pop()
        self._recorded = dict(self._rows())
        self.library = "none"
        self.needs: Needs | None = None
        self.python = ""
        self.sources: dict[str, str] = {}
        self.compiled: list[str] = []
        self.broken: list[str] = []
        self.mismatched: list[str] = []

    def take(self, member: zipfile.ZipInfo) -> None:
        name = member.filename
        data = self._archive.read(member)  # which compares the checksum
        wanted = self._recorded.get(name)
        if wanted and wanted != record_digest(hashlib.sha256(data).digest()):
            self.mismatched.append(name)
        if name.endswith(".py"):
            self.sources[name] = data.decode(errors="replace")
        elif name.endswith(".so") or data[:4] == b"\x7fELF":
            self._take_binary(name, data)

    def _take_binary(self, name: str, data: bytes) -> None:
        if name.endswith(".so"):
            self.compiled.append(re.sub(r"(\.\w+-[\w-]+)?\.so$", "", name).replace("/", "."))
        # The compiler itself; ptxas and the profiler are programs that an image may leave out.
        counted = name.split("/")[0] in PACKAGES and "/_C/" in name
        try:
            needs = needs_of(data)
        except NotElfError:
            self.broken.append(name)
            needs = None
        if name == LIBRARY:
            self.library = "distributed" if FINGERPRINT in data else "stock"
            self.python = compiled_for(data)
        if counted and needs:
            self.needs = _stricter(self.needs, needs)

    def metadata(self) -> str:
        text = self._archive.read(f"{self.info}/METADATA").decode(errors="replace")
        return text.replace("\r\n", "\n").partition("\n\n")[0]

    def missing(self) -> tuple[Missing, ...]:
        own = {n: t for n, t in self.sources.items() if n.split("/")[0] in PACKAGES}
        return missing_modules(own, self.compiled)

    def unrecorded(self) -> tuple[str, ...]:
        rows = self._recorded
        return tuple(
            i.filename
            for i in self.members
            # PEP 427: RECORD does not list its own hash, nor signatures.
            if i.filename not in rows and not i.filename.startswith(f"{self.info}/RECORD")
        )

    def provenance(self) -> dict[str, str]:
        try:
            text = self._archive.read(f"{self.info}/PROVENANCE").decode(errors="replace")
        except KeyError:
            return {}
        return dict(re.findall(r"(?m)^([\w-]+): (.*)$", text))

    def _rows(self) -> Iterator[tuple[str, str]]:
        text = self._archive.read(f"{self.info}/RECORD").decode(errors="replace")
        for row in csv.reader(text.splitlines()):
            if row:
                yield row[0], row[1] if len(row) > 1 else ""


def _stricter(one: Needs | None, other: Needs) -> Needs:
    if one is None:
        return other
    glibc = max(one.glibc, other.glibc, key=numbers)
    return Needs(other.machine, glibc, max(one.glibcxx, other.glibcxx, key=numbers))


def numbers(version: str) -> tuple[int, ...]:
    """Return a dotted version for comparison; () for an empty one."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _header(head: str, name: str) -> str:
    match = re.search(rf"(?m)^{name}: *(.*?)\s*$", head)
    return match[1] if match else ""
