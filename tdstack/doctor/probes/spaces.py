"""The file system under a path: its type, size, and what is free."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tdstack.doctor.facts import Space
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree


def space(name: str, path: str, tree: Tree) -> Part:
    """Return the space at `path`, which need not exist yet, as section `spaces.<name>`."""
    part = Part()
    here = existing(tree.path(path.lstrip("/")))
    try:
        told = os.statvfs(here)
    except OSError as error:
        part.unknown(f"spaces.{name}", f"{path}: {error.strerror}")
        part.sections[f"spaces.{name}"] = Space(path=path)
        return part
    mounts = tree.lines("proc/self/mountinfo") or []
    part.sections[f"spaces.{name}"] = Space(
        path=path,
        filesystem=filesystem_of(os.path.realpath(here), mounts),
        size=told.f_blocks * told.f_frsize,
        free=told.f_bavail * told.f_frsize,
        writable=os.access(here, os.W_OK),
    )
    return part


def existing(path: Path) -> Path:
    """Return the nearest folder that is there: the path or one above it."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def filesystem_of(path: str, mounts: list[str]) -> str | None:
    """Return the type of the file system at a path, by lines of mountinfo (proc(5)). Pure."""
    best, kind = -1, None
    for line in mounts:
        words = line.split()
        if "-" not in words[5:] or words.index("-", 5) + 1 >= len(words):
            continue
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])
        under = place == "/" or path == place or path.startswith(f"{place}/")
        # Later lines are mounted over earlier ones.
        if under and len(place) >= best:
            best, kind = len(place), words[words.index("-", 5) + 1]
    return kind


def cache_folder(tree: Tree) -> str:
    """Return where tdstack keeps its files, as tdstack/wheelhouse/store.py decides it."""
    variables = tree.environment
    if override := variables.get("TDSTACK_CACHE"):
        return str(Path(override).expanduser())
    home = variables.get("HOME") or str(Path.home())
    return str(Path(variables.get("XDG_CACHE_HOME") or f"{home}/.cache") / "tdstack")
