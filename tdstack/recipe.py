"""images/<layer>/recipe.toml: what a layer leaves out, sets, links and may weigh.

A recipe says what to do with the files of pinned wheels; it runs nothing. Files under
images/<layer>/rootfs/ are copied into the layer as they are.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tdstack.errors import UsageError
from tdstack.lock.model import LayerName, entry_errors


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Drop(_Strict):
    """Files left out: a pattern over paths below site-packages, and the reason."""

    pattern: str
    reason: str
    keep: tuple[str, ...] = ()


class Link(_Strict):
    """A symbolic link; `path` counts from the image's root unless it begins with {site}."""

    path: str
    target: str


class Folder(_Strict):
    """A folder with a mode of its own, owned by root and group 0."""

    path: str
    mode: int


class Tree(_Strict):
    """Python files of the checkout that go into the image; `source` is their folder."""

    source: str
    path: str


class Recipe(_Strict):
    """One recipe.toml. `budget_mb` bounds the layer's unpacked size in 10^6 bytes."""

    summary: str
    budget_mb: int
    env: dict[str, str] = {}
    drop: tuple[Drop, ...] = ()
    link: tuple[Link, ...] = ()
    folder: tuple[Folder, ...] = ()
    tree: tuple[Tree, ...] = ()

    def drops(self, path: str) -> bool:
        """Return whether the file at `path` (below site-packages) is left out."""
        return any(
            fnmatchcase(path, rule.pattern) and not any(fnmatchcase(path, k) for k in rule.keep)
            for rule in self.drop
        )

    def filled(self, values: Mapping[str, str]) -> Recipe:
        """Return the recipe with {site}, {ptxas} and {driver_floor} filled in."""
        return self.model_copy(
            update={
                "env": {k: v.format(**values) for k, v in self.env.items()},
                "link": tuple(
                    Link(path=x.path.format(**values), target=x.target.format(**values))
                    for x in self.link
                ),
            }
        )


def load_recipe(root: Path, layer: LayerName) -> Recipe:
    """Read the recipe of a layer.

    Raises: UsageError naming the bad entry.
    """
    path = root / "images" / layer / "recipe.toml"
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError("a recipe cannot be read", where=str(path), got=str(error)) from error
    except ValidationError as error:
        raise UsageError(
            "a recipe does not fit its schema", where=f"{path}: {entry_errors(error)}"
        ) from error


def tree_digest(folders: list[Path], root: Path) -> str:
    """Return the sha256 over names, modes and bytes of all files below `folders`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in source_files(folder):
            executable = "x" if path.stat().st_mode & 0o100 else "-"
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root)}\0{executable}\0{content}\n".encode())
    return digest.hexdigest()


def source_files(folder: Path) -> list[Path]:
    """List the files of a folder that are sources: no tests, no caches, nothing hidden."""
    if folder.is_file():
        return [folder]
    skipped = {"__pycache__", "tests", "dist", "build"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(p in skipped or p.startswith(".") for p in path.relative_to(folder).parts)
        and not path.name.endswith((".pyc", ".egg-info"))
    )
