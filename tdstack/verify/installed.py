"""Installed distributions as their metadata on disk tells of them (PEP 376, 610, 627)."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .finding import canonical


@dataclass(frozen=True)
class Recorded:
    """One row of RECORD: an absolute path; `digest` is `sha256=...` or empty; size in bytes."""

    path: Path
    digest: str
    size: int | None


@dataclass(frozen=True)
class Distribution:
    """One installed distribution. `info` is its dist-info (or egg-info) folder or file.

    `editable` is the source folder of an editable install, or empty.
    """

    name: str
    version: str
    info: Path
    files: tuple[Recorded, ...]
    editable: str = ""

    @property
    def provenance(self) -> dict[str, str]:
        """Return where a relabelled wheel comes from, as its PROVENANCE says."""
        return parse_provenance(_text(self.info / "PROVENANCE"))

    @property
    def label(self) -> str:
        """Return name and version for people."""
        return f"{self.name} {self.version}"


def distributions(sites: Sequence[Path]) -> Iterator[Distribution]:
    """Yield what is installed in the given folders, by folder, then by name.

    Metadata that cannot be read gives a distribution without a version: it is there all the
    same, and an installer would stumble over it.
    """
    for site in sites:
        for info in sorted(site.glob("*.dist-info")):
            yield _read(site, info, "METADATA", _record(site, info))
        for info in sorted(site.glob("*.egg-info")):
            yield _read(site, info, "PKG-INFO" if info.is_dir() else "", ())
        for link in sorted(site.glob("*.egg-link")):
            source = _text(link).split("\n", 1)[0]
            yield Distribution(canonical(link.stem), "", link, (), source)


def matches(file: Recorded, *, deep: bool) -> bool:
    """Return whether the file is there as recorded: by size, with `deep` by its bytes."""
    try:
        if file.size is not None and file.path.stat().st_size != file.size:
            return False
        if not deep or not file.digest.startswith("sha256="):
            return file.path.exists()
        return sha256_digest(file.path) == file.digest
    except OSError:
        return False


def sha256_digest(path: Path) -> str:
    """Return the digest of a file's bytes as RECORD writes it."""
    with path.open("rb") as stream:
        return record_digest(hashlib.file_digest(stream, "sha256").digest())


def parse_provenance(text: str) -> dict[str, str]:
    """Return the `key: value` lines of a relabelled wheel's PROVENANCE."""
    return dict(re.findall(r"(?m)^([\w-]+): (.*)$", text))


def record_digest(raw: bytes) -> str:
    """Return a raw sha256 as RECORD writes it (PEP 376: urlsafe base64 without padding)."""
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _read(site: Path, info: Path, member: str, files: tuple[Recorded, ...]) -> Distribution:
    head = _text(info / member if member else info).partition("\n\n")[0]
    fields = dict(re.findall(r"(?m)^(Name|Version): *(.*?)\s*$", head))
    stem = info.name.rsplit(".", 1)[0].split("-")
    name = fields.get("Name") or stem[0]
    version = fields.get("Version") or (stem[1] if len(stem) > 1 else "")
    return Distribution(canonical(name), version, info, files, _editable(info))


def _record(site: Path, info: Path) -> tuple[Recorded, ...]:
    rows = csv.reader(_text(info / "RECORD").splitlines())
    found = []
    for row in rows:
        if not row or not row[0]:
            continue
        digest, size = ([*row[1:3], "", ""])[:2]
        # Without resolve(): a link in the tree is a file of its own, not its target.
        path = Path(os.path.normpath(site / row[0]))
        found.append(Recorded(path, digest, int(size) if size.isdigit() else None))
    return tuple(found)


def _editable(info: Path) -> str:
    try:
        told = json.loads(_text(info / "direct_url.json"))
        if told.get("dir_info", {}).get("editable"):
            return str(told.get("url", "?")).removeprefix("file://")
    except (ValueError, AttributeError):
        pass
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
