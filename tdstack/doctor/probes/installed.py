"""What of tdstack is here: the prefix that was named, or the container that this is."""

from __future__ import annotations

import json
from typing import Any

from tdstack.doctor.facts import Installed
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

IMAGE = "opt/tdstack"
# A version of a prefix says what it is when all else is there; an image has a manifest.
RECORD, MANIFEST = "share/tdstack/install.json", "manifest.json"


def installed(tree: Tree, prefix: str = "") -> Part:
    """Read what a prefix says of itself, or the image where this is one of tdstack's."""
    if prefix:
        return Part({"tdstack": prefix_state(tree, prefix)})
    if tree.has(f"{IMAGE}/{MANIFEST}"):
        return Part({"tdstack": _described(tree, "container", IMAGE, MANIFEST, f"/{IMAGE}")})
    return Part({"tdstack": Installed(where="none", state="absent")})


def prefix_state(tree: Tree, prefix: str) -> Installed:
    """Return the state of a prefix: absent, broken (with its problems) or whole.

    A prefix is `DIR/current -> versions/KEY`; one version, or `current` itself, can be named too.
    """
    root = prefix.lstrip("/")
    if tree.has(f"{root}/{RECORD}"):
        return _described(tree, "prefix", root, RECORD, prefix)
    current = f"{root}/current"
    if tree.target(current) is None:
        if not tree.names(root) or (tree.has(f"{root}/.tdstack") and not _versions(tree, root)):
            return Installed(where="prefix", path=prefix, state="absent")
        if not _versions(tree, root):
            return _broken(prefix, f"it is no prefix of `invoke install`: it has no {RECORD}")
        return _broken(prefix, "there are versions, and no link `current` to one of them")
    if not tree.path(current).is_dir():
        return _broken(prefix, "`current` leads nowhere")
    if not tree.has(f"{current}/{RECORD}"):
        return _broken(prefix, f"its version in use has no {RECORD}")
    return _described(tree, "prefix", current, RECORD, prefix)


def _versions(tree: Tree, root: str) -> tuple[str, ...]:
    return tree.names(f"{root}/versions") or ()


def _described(tree: Tree, where: str, folder: str, record: str, path: str) -> Installed:
    try:
        told = json.loads(tree.text(f"{folder}/{record}") or "")
    except (ValueError, RecursionError):
        return _broken(path, f"its {record} is not JSON", where)
    if not isinstance(told, dict):
        return _broken(path, f"its {record} is not an object", where)
    problems = []
    if where == "prefix" and not tree.path(f"{folder}/bin/python").exists():
        problems.append("bin/python is missing or leads nowhere")
    return Installed(
        where=where,
        path=path,
        state="broken" if problems else "whole",
        problems=tuple(problems),
        cuda=_text(told, "cuda"),
        triton=_text(told, "triton"),
        torch=_text(told, "torch"),
        python=_text(told, "python"),
        key=_text(told, "key") or _last(tree.target(folder)),
        archs=_words(told.get("archs")),
        driver_floor=_text(told, "driver_floor"),
    )


def _last(link: str | None) -> str | None:
    return link.rstrip("/").rpartition("/")[2] if link else None


def _broken(path: str, problem: str, where: str = "prefix") -> Installed:
    return Installed(where=where, path=path, state="broken", problems=(problem,))


def _text(told: dict[str, Any], name: str) -> str | None:
    value = told.get(name)
    return value if isinstance(value, str) else None


def _words(value: object) -> tuple[str, ...] | None:
    return tuple(w for w in value if isinstance(w, str)) if isinstance(value, list) else None
