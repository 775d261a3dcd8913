"""Everything that a wheel tells of itself, read once, without importing or installing it."""

from __future__ import annotations

import base64
import csv
import hashlib
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from tdstack.errors import IntegrityError
from tdstack.fork.elf import Needs, NotElfError, compiled_for, needs_of
from tdstack.fork.imports import Missing, missing_modules
from tdstack.fork.zipcopy import info_folder, recorded_digests
from tdstack.tags import numbers
from tdstack.verify.installed import parse_provenance
from tdstack.verify.triton.fork import FINGERPRINT, LABEL, LIBRARY, PACKAGES
from tdstack.wheelhouse.store import sha256_of


@dataclass(frozen=True)
class WheelFacts:
    """What is in a wheel. Versions of glibc and Python are text, empty when unknown.

    `library` tells whose libtriton.so it holds: distributed, stock or none. `broken` are compiled
    files that are no whole ELF, `mismatched` files whose bytes are not those of RECORD,
    `unrecorded` files that RECORD does not name. `flaws` are what installers refuse or take in
    different ways, as words. `provenance` is what an earlier relabelling wrote.
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
    flaws: tuple[str, ...]
    requires: tuple[str, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def base_version(self) -> str:
        """Return the version without its local label."""
        return self.version.partition("+")[0]

    @property
    def labelled(self) -> bool:
        """Return whether this toolkit has relabelled the wheel: provenance and label agree."""
        told = self.provenance
        digest = told.get("sha256", "")
        return (
            self.name == "triton"
            and told.get("file", "").endswith(".whl")
            and re.fullmatch(r"[1-9]\d*", told.get("size", "")) is not None
            and re.fullmatch(r"[0-9a-f]{64}", digest) is not None
            and Version(self.version) == Version(f"{self.base_version}{LABEL}{digest[:8]}")
        )


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
                flaws=tuple(reading.flaws()),
                requires=tuple(re.findall(r"(?m)^Requires-Dist: *(.*?)\s*$", head)),
                provenance=reading.provenance(),
            )
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        csv.Error,
        EOFError,
        KeyError,
        RuntimeError,  # encrypted, or a compression that this Python does not know
        ValueError,
        OSError,
    ) as error:
        raise IntegrityError(
            f"{path.name} is not a whole wheel",
            where=str(path),
            got=str(error.args[0] if isinstance(error, KeyError) else error) or "it ends early",
            remedy="get the file again, and compare its sha256 with its source's",
        ) from error


class _Reading:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        # Without this a name that a damaged directory cut to nothing ends in is_dir's IndexError.
        if not all(i.filename for i in archive.infolist()):
            raise zipfile.BadZipFile("a member has no name")
        self.members = [i for i in archive.infolist() if not i.is_dir()]
        self.info = info_folder(archive)
        self._recorded = recorded_digests(archive, self.info)
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
        if (wanted := self._recorded.get(name)) and not _is_of(data, wanted):
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

    def flaws(self) -> Iterator[str]:
        names = [i.filename for i in self._archive.infolist()]
        if outside := sorted({n for n in names if not _is_inside(n)}):
            yield f"has files with a path that leads out of it: {few(outside)}"
        if twice := sorted(n for n, count in Counter(names).items() if count > 1):
            yield f"holds a file twice: {few(twice)}"
        if links := [i.filename for i in self.members if stat.S_ISLNK(i.external_attr >> 16)]:
            yield f"holds links, which installers write as text: {few(links)}"
        if lost := sorted(self._recorded.keys() - set(names)):
            yield f"lacks files that its RECORD names: {few(lost)}"
        if f"{self.info}/WHEEL" not in names:
            yield f"has no {self.info}/WHEEL"

    def provenance(self) -> dict[str, str]:
        try:
            text = self._archive.read(f"{self.info}/PROVENANCE").decode(errors="replace")
        except KeyError:
            return {}
        return parse_provenance(text)


def _is_of(data: bytes, wanted: str) -> bool:
    """Compare bytes with a digest in RECORD: sha256, or what PEP 427 takes for better."""
    name, _, digest = wanted.partition("=")
    if name not in ("sha256", "sha384", "sha512"):
        return False
    raw = hashlib.new(name, data).digest()
    return digest.rstrip("=") == base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _is_inside(name: str) -> bool:
    parts = name.removesuffix("/").split("/")
    return "\\" not in name and not {"", ".", ".."} & set(parts)


def few(names: Sequence[str]) -> str:
    """Return the first few of many names, for people."""
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _stricter(one: Needs | None, other: Needs) -> Needs:
    if one is None:
        return other
    glibc = max(one.glibc, other.glibc, key=numbers)
    machines = sorted({*one.machine.split(" and "), other.machine})
    return Needs(" and ".join(machines), glibc, max(one.glibcxx, other.glibcxx, key=numbers))


def _header(head: str, name: str) -> str:
    match = re.search(rf"(?m)^{name}: *(.*?)\s*$", head)
    return match[1] if match else ""
