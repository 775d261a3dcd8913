"""Which distribution owns which file of Triton, in one environment: facts, no judgement.

Two distributions that own the same files are the root of all trouble with Triton-distributed:
the last one installed wins, and removing either leaves the other without its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..installed import Distribution, Recorded, distributions, matches
from .fork import FORK_NAME, LABEL, LIBRARY, NAMES, PACKAGES, Library, library_of


@dataclass(frozen=True)
class Claim:
    """A distribution that owns files of Triton.

    `files` are those below PACKAGES; `lost` are all its recorded files, wherever they lie, that
    are not there any more or hold other bytes.
    """

    owner: Distribution
    files: frozenset[Path]
    lost: tuple[Path, ...]
    has_library: bool

    @property
    def whole(self) -> bool:
        """Return whether every recorded file is there with its bytes."""
        return not self.lost


@dataclass(frozen=True)
class SiteState:
    """Triton in one folder of packages.

    `files` are those on disk below PACKAGES; bytecode and folders do not count. `folders` are the
    PACKAGES that exist as folders at all. `claims` are sorted by name, then version.
    `linked` are links into another distribution's files: the image's way to the line's ptxas.
    `stale_backends` are entry points of group triton.backends whose module is not on disk.
    """

    site: Path
    library: Library
    files: frozenset[Path]
    linked: frozenset[Path]
    folders: tuple[str, ...]
    claims: tuple[Claim, ...]
    related: tuple[Distribution, ...]
    stale_backends: tuple[str, ...]

    @property
    def owned(self) -> Mapping[Path, tuple[Claim, ...]]:
        """Return the claims on every file that somebody claims."""
        found: dict[Path, tuple[Claim, ...]] = {}
        for claim in self.claims:
            for path in claim.files:
                found[path] = (*found.get(path, ()), claim)
        return found

    @property
    def leftovers(self) -> frozenset[Path]:
        """Return the files that no distribution owns."""
        return self.files - self.owned.keys() - self.linked

    @property
    def importable(self) -> bool:
        """Return whether `triton` is a package here, not a mere folder."""
        return self.site / "triton" / "__init__.py" in self.files

    @property
    def empty(self) -> bool:
        """Return whether there is nothing of Triton here."""
        return not (self.files or self.folders or self.claims or self.editables)

    @property
    def editables(self) -> tuple[Distribution, ...]:
        """Return the distributions that lie elsewhere, in their sources."""
        return tuple(d for d in self.related if d.editable)

    @property
    def alias(self) -> Distribution | None:
        """Return the metadata alias `triton-dist`, which owns no package."""
        claimants = [c.owner for c in self.claims]
        for dist in self.related:
            if is_alias(dist) and dist not in claimants:
                return dist
        return None


def is_alias(dist: Distribution) -> bool:
    """Return whether this is the alias that comes with a relabelled Triton-distributed."""
    return dist.name == FORK_NAME and LABEL in dist.version and not dist.editable


def look(site: Path, installed: Sequence[Distribution] | None = None) -> SiteState:
    """Gather what is there in one folder of packages. Reads files; imports nothing."""
    everything = tuple(distributions([site])) if installed is None else tuple(installed)
    related = tuple(d for d in everything if d.name in NAMES)
    files, linked = _on_disk(site)
    claims = sorted(
        (c for d in everything if (c := _claim(site, d)) is not None),
        key=lambda c: (c.owner.name, c.owner.version),
    )
    if linked:
        recorded = {f.path for d in everything for f in d.files}
        linked = frozenset(p for p in linked if Path(os.path.realpath(p)) in recorded)
    return SiteState(
        site=site,
        library=library_of(site / LIBRARY),
        files=files,
        linked=linked,
        folders=tuple(p for p in PACKAGES if (site / p).is_dir()),
        claims=tuple(claims),
        related=related,
        stale_backends=tuple(b for d in everything for b in _stale_backends(site, d)),
    )


def _claim(site: Path, dist: Distribution) -> Claim | None:
    roots = tuple(f"{site / package}{os.sep}" for package in PACKAGES)
    mine = [f for f in dist.files if str(f.path).startswith(roots)]
    if not any("__pycache__" not in f.path.parts for f in mine):
        return None
    files = frozenset(f.path for f in mine if "__pycache__" not in f.path.parts)
    lost = tuple(f.path for f in dist.files if _counts(f) and not matches(f, deep=True))
    return Claim(dist, files, lost, site / LIBRARY in files)


def _counts(file: Recorded) -> bool:
    # An installer may rewrite a RECORD or compile anew at any time; neither is a lost file.
    return bool(file.digest) and file.path.suffix != ".pyc"


def _on_disk(site: Path) -> tuple[frozenset[Path], frozenset[Path]]:
    files, links = set(), set()
    for package in PACKAGES:
        for folder, folders, names in os.walk(site / package):
            folders[:] = [f for f in folders if f != "__pycache__"]
            for name in names:
                path = Path(folder, name)
                files.add(path)
                if path.is_symlink():
                    links.add(path)
    return frozenset(files), frozenset(links)


def _stale_backends(site: Path, dist: Distribution) -> list[str]:
    try:
        text = (dist.info / "entry_points.txt").read_text(errors="replace")
    except OSError:
        return []
    section = re.search(r"(?ms)^\[triton\.backends\]\s*$(.*?)(?=^\[|\Z)", text)
    stale = []
    for name, module in re.findall(r"(?m)^(\S+)\s*=\s*([\w.]+)", section[1] if section else ""):
        place = site.joinpath(*module.split("."))
        if not (place / "__init__.py").is_file() and not place.with_suffix(".py").is_file():
            stale.append(f"{name} = {module} ({dist.label})")
    return stale
