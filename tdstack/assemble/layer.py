"""A planned layer -> parts, each of which becomes one tar. Runs in worker processes."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.entries import Entry, arrange, from_bytes, from_file
from tdstack.assemble.tar import Blob, write_tar
from tdstack.assemble.wheel import WheelEntries
from tdstack.lock.model import LockedFile
from tdstack.plan import PART_BYTES, PREFIX, Layer
from tdstack.recipe import Recipe, source_files
from tdstack.wheelhouse.store import Store


@dataclass(frozen=True)
class WheelSource:
    """A wheel of a layer: its lock entry, its place on disk, its unpacked size in bytes."""

    file: LockedFile
    path: Path
    unpacked: int


@dataclass(frozen=True)
class Part:
    """What one tar of a layer holds."""

    title: str
    wheels: tuple[WheelSource, ...]
    extra: tuple[Entry, ...]


@dataclass(frozen=True)
class PartJob:
    """Everything that a worker process needs to write one part."""

    part: Part
    recipe: Recipe
    site: str
    store: Path
    blobs: Path


def unpacked_size(wheel: Path, recipe: Recipe) -> int:
    """Return how many bytes of the wheel the recipe keeps, from its directory alone."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(i.file_size for i in archive.infolist() if not recipe.drops(i.filename))


def split(layer: Layer, wheels: Sequence[WheelSource], extra: Sequence[Entry]) -> list[Part]:
    """Divide a layer into parts of at most PART_BYTES, largest wheels first. Pure.

    A wheel is never cut in two, so that a part is fixed by the wheels that it holds.
    """
    bins: list[list[WheelSource]] = []
    for wheel in sorted(wheels, key=lambda w: (-w.unpacked, w.file.name)):
        for chosen in bins:
            if sum(w.unpacked for w in chosen) + wheel.unpacked <= PART_BYTES:
                chosen.append(wheel)
                break
        else:
            bins.append([wheel])
    bins = bins or [[]]
    # The largest part last: while it is written, the engine takes over those before it.
    bins.sort(key=lambda b: (sum(w.unpacked for w in b), [w.file.name for w in b]))
    return [
        Part(
            title=f"{layer.name} {number}/{len(bins)}",
            wheels=tuple(chosen),
            extra=tuple(extra) if number == 1 else (),
        )
        for number, chosen in enumerate(bins, 1)
    ]


def write_part(job: PartJob) -> Blob:
    """Verify a part's wheels against the lock and write its tar.

    Raises: IntegrityError for a wheel whose bytes are not the lock's, for two wheels that own
    one path, and for damage inside a wheel.
    """
    store = Store(job.store)
    entries: list[Entry] = list(job.part.extra)
    for wheel in job.part.wheels:
        # The store may have rotted since the download; a layer must not be built from that.
        store.verify(wheel.file)
        named = WheelEntries(wheel.path, wheel.file.name, PREFIX, job.site)
        entries += named.entries(job.recipe.drops)
    return write_tar(arrange(entries), job.blobs)


def recipe_entries(layer: Layer, root: Path) -> list[Entry]:
    """Return the folders, links, trees, texts and rootfs/ files of a layer."""
    entries = [Entry(f.path, "folder", f.mode) for f in layer.recipe.folder]
    entries += [Entry(x.path, "link", 0o777, target=x.target) for x in layer.recipe.link]
    trees = [(root / "images" / layer.name / "rootfs", "")]
    trees += [(root / tree.source, f"{tree.path}/") for tree in layer.recipe.tree]
    for folder, place in trees:
        for path in source_files(folder) if folder.is_dir() else []:
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            entries.append(from_file(f"{place}{path.relative_to(folder)}", path, mode))
    entries += [from_bytes(path, text.encode()) for path, text in layer.texts.items()]
    return entries


def venv_config(python: str, home: str) -> str:
    """Return a pyvenv.cfg (PEP 405); `home` is the folder of the Python it is made with. Pure."""
    return f"home = {home}\ninclude-system-site-packages = false\nversion = {python}\n"


def venv_entries(python: str, interpreter: str, site: str) -> list[Entry]:
    """Return the skeleton of a virtual environment (PEP 405) at /opt/tdstack."""
    config = venv_config(python, interpreter.rsplit("/", 1)[0])
    names = ("python", "python3", f"python{python}")
    links = [Entry(f"{PREFIX}/bin/{n}", "link", 0o777, target=interpreter) for n in names]
    return [
        from_bytes(f"{PREFIX}/pyvenv.cfg", config.encode()),
        Entry(site, "folder", 0o755),
        *links,
    ]


def extract_sources(wheels: Sequence[WheelSource], recipe: Recipe, site: str, folder: Path) -> int:
    """Write the Python sources of `wheels` below `folder`; return how many."""
    count = 0
    for wheel in wheels:
        named = WheelEntries(wheel.path, wheel.file.name, PREFIX, site)
        with zipfile.ZipFile(wheel.path) as archive:
            for entry in named.entries(recipe.drops):
                inside = entry.path.removeprefix(f"{site}/")
                if not entry.path.endswith(".py") or inside == entry.path:
                    continue
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                data = entry.content.data
                target.write_bytes(archive.read(entry.content.member) if data is None else data)
                count += 1
    return count


def scratch(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder that a container's user may enter."""
    made = tempfile.TemporaryDirectory(prefix="tdstack-", dir=folder)
    Path(made.name).chmod(0o755)
    return made
