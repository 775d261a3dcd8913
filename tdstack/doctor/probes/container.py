"""Containers: whether this is one, cgroups, NVIDIA's container toolkit, and CDI."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tdstack.doctor.facts import UNLIMITED, CdiSpec, Container
from tdstack.doctor.probes.engines import BINARIES
from tdstack.doctor.probes.inside import container_kind
from tdstack.doctor.probes.packages import installed_versions, upstream
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree, number

CDI_FOLDERS = ("etc/cdi", "var/run/cdi", "run/cdi")
TOOLKIT = "etc/nvidia-container-runtime/config.toml"
_DRIVER = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.(\d{3,}\.\d+(?:\.\d+)?)")
# A limit of cgroup v1 that stands for none: the largest multiple of a page.
_NO_LIMIT = 2**62


def container(tree: Tree) -> Part:
    """Read files of cgroups, of the toolkit and of CDI."""
    part = Part()
    kind = container_kind(tree)
    settings = _settings(tree, part)
    cli = settings.get("nvidia-container-cli")
    runtime = settings.get("nvidia-container-runtime")
    versions = installed_versions(tree)
    package = versions.get("nvidia-container-toolkit") or versions.get(
        "nvidia-container-toolkit-base"
    )
    programs = ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-cli")
    present = any(tree.has(f"{folder}/{name}") for folder in BINARIES for name in programs)
    if package is None and present:
        part.unknown("container.toolkit_version", "no package of dpkg or rpm has it")
    part.sections["container"] = Container(
        inside=kind != "",
        kind=kind,
        cgroup=_cgroup(tree),
        memory_limit=_memory_limit(tree),
        toolkit=present or package is not None,
        toolkit_version=upstream(package),
        toolkit_mode=_text(runtime, "mode"),
        toolkit_no_cgroups=_flag(cli, "no-cgroups"),
        cdi=_specs(tree),
    )
    return part


def spec_of(file: str, text: str) -> CdiSpec:
    """Return the facts in a CDI specification, YAML or JSON, by its keys. Pure.

    The standard library reads no YAML; the keys that matter stand on lines of their own, as
    nvidia-ctk writes them, and JSON is valid where YAML is.
    """
    kind = re.search(r'^\s*"?kind"?\s*:\s*"?([\w./-]+)', text, re.MULTILINE)
    devices = re.split(r'^\s*"?devices"?\s*:', text, maxsplit=1, flags=re.MULTILINE)
    names = re.findall(r'^[\s-]*"?name"?\s*:\s*"?[\w:.-]+', devices[-1], re.MULTILINE)
    versions = _DRIVER.findall(text)
    return CdiSpec(
        file=file,
        kind=kind.group(1) if kind else None,
        devices=len(names) if len(devices) > 1 else 0,
        driver=max(set(versions), key=versions.count) if versions else None,
    )


def _specs(tree: Tree) -> tuple[CdiSpec, ...]:
    found, seen = [], set()
    for folder in CDI_FOLDERS:
        for name in tree.names(folder) or ():
            place = tree.path(f"{folder}/{name}")
            # /var/run is /run on most systems.
            if not name.endswith((".yaml", ".yml", ".json")) or place.resolve() in seen:
                continue
            seen.add(place.resolve())
            text = tree.text(f"{folder}/{name}")
            found.append(
                spec_of(f"/{folder}/{name}", text) if text else CdiSpec(f"/{folder}/{name}")
            )
    return tuple(found)


def _settings(tree: Tree, part: Part) -> dict[str, Any]:
    text = tree.text(TOOLKIT)
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        part.unknown("container.toolkit_mode", f"/{TOOLKIT}: {error}")
        return {}


def _cgroup(tree: Tree) -> int | None:
    if tree.has("sys/fs/cgroup/cgroup.controllers"):
        return 2
    return 1 if tree.names("sys/fs/cgroup") else None


def _memory_limit(tree: Tree) -> int | None:
    for place in ("memory.max", "memory/memory.limit_in_bytes"):
        text = tree.text(f"sys/fs/cgroup/{place}")
        limit = UNLIMITED if text == "max" else number(text)
        if limit is not None:
            return UNLIMITED if limit >= _NO_LIMIT else limit
    # The root group of cgroup v2, which is the host's own, has no such file and no limit.
    return UNLIMITED if tree.has("sys/fs/cgroup/cgroup.controllers") else None


def _text(table: object, key: str) -> str | None:
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, str) else None


def _flag(table: object, key: str) -> bool | None:
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, bool) else None
