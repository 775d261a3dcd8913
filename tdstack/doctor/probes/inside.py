"""Whether the facts are those of a container, and in whose; which processes can be seen."""

from __future__ import annotations

import re

from tdstack.doctor.probes.tree import Tree

# What each runtime leaves in a container; the first that is there counts.
_FILES = (
    ("run/.containerenv", "podman"),
    (".dockerenv", "docker"),
    (".singularity.d", "apptainer"),
)
# Paths of a container's cgroup; /system.slice/docker.service is the daemon's own on a host.
_GROUPS = (
    (re.compile(r"/kubepods"), "kubernetes"),
    (re.compile(r"/docker[/-][0-9a-f]{12}"), "docker"),
    (re.compile(r"/libpod-[0-9a-f]{12}"), "podman"),
    (re.compile(r"/lxc[./]"), "lxc"),
)
# The root of a container of containerd, CRI-O and their like (mountinfo, proc(5)).
_OVERLAY = re.compile(r"^\S+ \S+ \S+ \S+ / .* - overlay .*/(?:containerd|containers|docker)/")


def container_kind(tree: Tree) -> str:
    """Return the kind of container, or '' for a host (Container.kind of the facts)."""
    variables = tree.environment
    if "KUBERNETES_SERVICE_HOST" in variables:
        return "kubernetes"
    if {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & set(variables):
        return "apptainer"
    if "ENROOT_PID" in variables:
        return "enroot"
    for place, kind in _FILES:
        if tree.has(place):
            return kind
    groups = tree.text("proc/self/cgroup") or ""
    for path, kind in _GROUPS:
        if path.search(groups):
            return kind
    first = tree.data("proc/1/environ") or b""
    named = [entry for entry in first.split(b"\0") if entry.startswith(b"container=")]
    if named:
        kind = named[0].partition(b"=")[2].decode("ascii", "replace")
        return kind if kind in ("docker", "podman", "lxc") else "other"
    # Other users than root cannot read that; the file system says it too.
    return "other" if any(map(_OVERLAY.search, tree.lines("proc/self/mountinfo") or ())) else ""


def process_runs(tree: Tree, name: str) -> bool | None:
    """Return whether a program runs; None where it is not seen and a container may hide it."""
    if name[:15] in tree.processes():
        return True
    return None if container_kind(tree) or not tree.has("proc/self") else False
