"""What of tdstack is here: the prefix that was named, or the container that this is."""

from __future__ import annotations

import json
from typing import Any

from tdstack.doctor.facts import Installed
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

IMAGE = "opt/tdstack"


def installed(tree: Tree, prefix: str = "") -> Part:
    """Read the manifest of a prefix, or of the image where this is one of tdstack's.

    A prefix is `DIR/current -> versions/<key>`; a folder with a manifest of its own is one too.
    """
    if prefix:
        return Part({"tdstack": prefix_state(tree, prefix)})
    if tree.has(f"{IMAGE}/manifest.json"):
        return Part({"tdstack": _described(tree, "container", IMAGE, IMAGE)})
    return Part({"tdstack": Installed(where="none", state="absent")})


def prefix_state(tree: Tree, prefix: str) -> Installed:
    """Return the state of a prefix: absent, broken (with its problems) or whole."""
    root = prefix.lstrip("/")
    if not tree.has(root):
        return Installed(where="prefix", path=prefix, state="absent")
    folder = root
    if tree.has(f"{root}/current") or tree.has(f"{root}/versions"):
        folder = f"{root}/current"
        if tree.target(folder) is None:
            return _broken(prefix, "there are versions, and no link `current` to one of them")
        if not tree.path(folder).is_dir():
            return _broken(prefix, "`current` leads nowhere")
    if not tree.has(f"{folder}/share/tdstack/manifest.json"):
        return _broken(prefix, "it has no share/tdstack/manifest.json")
    return _described(tree, "prefix", folder, f"{folder}/share/tdstack", prefix)


def _described(tree: Tree, where: str, folder: str, share: str, path: str = "") -> Installed:
    path = path or f"/{folder}"
    try:
        manifest = json.loads(tree.text(f"{share}/manifest.json") or "")
    except (ValueError, RecursionError):
        return _broken(path, "its manifest is not JSON", where)
    if not isinstance(manifest, dict):
        return _broken(path, "its manifest is not an object", where)
    problems = []
    if where == "prefix" and not tree.path(f"{folder}/bin/python").exists():
        problems.append("bin/python is missing or leads nowhere")
    return Installed(
        where=where,
        path=path,
        state="broken" if problems else "whole",
        problems=tuple(problems),
        version=_text(manifest, "tdstack", "version"),
        cuda=_text(manifest, "cuda"),
        triton=_text(manifest, "triton"),
        torch=_text(manifest, "torch"),
        python=_text(manifest, "python"),
        key=_text(manifest, "key") or _last(tree.target(folder)),
        archs=_words(manifest.get("archs")),
        driver_floor=_text(manifest, "driver_floor", "driver"),
    )


def _last(link: str | None) -> str | None:
    return link.rstrip("/").rpartition("/")[2] if link else None


def _broken(path: str, problem: str, where: str = "prefix") -> Installed:
    return Installed(where=where, path=path, state="broken", problems=(problem,))


def _text(manifest: dict[str, Any], *names: str) -> str | None:
    found = (manifest.get(name) for name in names)
    return next((value for value in found if isinstance(value, str)), None)


def _words(value: object) -> tuple[str, ...] | None:
    return tuple(w for w in value if isinstance(w, str)) if isinstance(value, list) else None
