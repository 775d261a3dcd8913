"""Results into the user's folder, each in one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdstack.assemble.bundle import MANIFEST, Bundle
from tdstack.errors import UsageError


def check_target(target: Path) -> None:
    """Refuse to replace what is no bundle.

    Raises: UsageError naming it.
    """
    for folder in [target, *target.parents]:
        if folder.exists() and not folder.is_dir():
            raise UsageError("not a folder", where=f"--out: {folder}")
    if target.is_dir() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise UsageError(
            "the bundle's place is taken by something else",
            where=str(target),
            expected=f"a bundle ({MANIFEST}), an empty folder, or nothing",
            remedy="name another folder with --out DIR",
        )


def publish_bundle(bundle: Bundle, made: Path, target: Path) -> None:
    """Copy the files of a bundle from `made` to `target`, in place of the one there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target, "new") as new, _beside(target, "old") as old:
        for file in bundle.files:
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / file, new / file)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise


def publish_file(source: Path, target: Path) -> None:
    """Copy a file to `target`, in place of the one there."""
    with _beside(target, "new") as new:
        shutil.copyfile(source, new)
        new.replace(target)


@contextmanager
def _beside(target: Path, what: str) -> Iterator[Path]:
    path = target.with_name(f".{target.name}.{what}.{os.getpid()}")
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
