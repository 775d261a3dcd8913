"""Engines for images that nobody keeps: a store of their own, or names of their own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tdstack.assemble.image import Image
from tdstack.engines.base import Engine, RunRequest, RunResult, StoredImage
from tdstack.engines.buildah import Buildah
from tdstack.plan import REPOSITORY
from tdstack.process import run


@contextmanager
def private_buildah(folder: Path) -> Iterator[Buildah]:
    """Yield a buildah whose store is in `folder`, which is removed at the end.

    Its images, and the layers below them, are none that buildah's usual store has.
    """
    remove_store(folder)
    (folder / "graph").mkdir(parents=True)
    (folder / "run").mkdir()
    # Where overlay mounts are not allowed the usual store says so too.
    driver = run(["buildah", "info", "--format", "{{.store.GraphDriverName}}"]).stdout.strip()
    config = folder / "storage.conf"
    config.write_text(
        f'[storage]\ndriver = "{driver or "overlay"}"\n'
        f'graphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    try:
        yield Buildah(_environment(folder))
    finally:
        remove_store(folder)


def remove_store(folder: Path) -> None:
    """Remove a private store, also one that a killed process left."""
    if not folder.exists():
        return
    environment = _environment(folder)
    run(["buildah", "rm", "--all"], environment=environment)
    run(["buildah", "rmi", "--all", "--force"], environment=environment)
    # Its storage is mounted onto itself, which would keep the folder busy.
    for mount in (folder / "graph" / "overlay", folder / "graph"):
        if mount.is_mount():
            run(["umount", str(mount)])
    shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    return {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf")}


class Renamed:
    """An engine in which tdstack's images have other names than they are called by.

    So that no image that is there already is taken for one that is to be made.
    """

    def __init__(self, engine: Engine, suffix: str) -> None:
        self._engine, self._suffix = engine, suffix
        self._made: dict[str, None] = {}
        self.name = engine.name

    def renamed(self, ref: str) -> str:
        """Return the name that the engine below knows. Pure."""
        rest = ref.removeprefix(REPOSITORY)
        ours = rest != ref and rest[:1] in (":", "/", "@")
        return f"{REPOSITORY}-{self._suffix}{rest}" if ours else ref

    def clear(self) -> None:
        """Remove every name that was given, the last one first."""
        for ref in reversed(self._made):
            self._engine.untag(ref)
        self._made.clear()

    def describe(self) -> str:
        """Return name and version."""
        return self._engine.describe()

    def storage(self) -> Path | None:
        """Return the folder of the store."""
        return self._engine.storage()

    def image(self, ref: str) -> StoredImage | None:
        """Return the image called `ref`, or None."""
        return self._engine.image(self.renamed(ref))

    def load(self, layout: Path, image: Image, ref: str) -> None:
        """Take an image over under the name `ref`."""
        self._made[self.renamed(ref)] = None
        self._engine.load(layout, image, self.renamed(ref))

    def tag(self, ref: str, name: str) -> None:
        """Give the image `ref` a further name."""
        self._made[self.renamed(name)] = None
        self._engine.tag(self.renamed(ref), self.renamed(name))

    def untag(self, ref: str) -> None:
        """Remove a name."""
        self._engine.untag(self.renamed(ref))

    def pull(self, ref: str) -> str:
        """Bring `ref` from its registry."""
        return self._engine.pull(ref)

    def export(self, ref: str, layout: Path, skip: Collection[str] = ()) -> Image:
        """Write the image into the OCI layout."""
        return self._engine.export(self.renamed(ref), layout, skip)

    def owner(self) -> str:
        """Return the user whose files belong to us."""
        return self._engine.owner()

    def run(self, request: RunRequest, say: Callable[[str], None] | None = None) -> RunResult:
        """Run a command in a throw-away container."""
        return self._engine.run(replace(request, ref=self.renamed(request.ref)), say)
