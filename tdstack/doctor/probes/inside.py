"""Whether the facts are those of a container, and in whose; which processes can be seen."""

from __future__ import annotations

from tdstack.doctor.probes.tree import Tree

# What each runtime leaves in a container; the first that is there counts.
_FILES = (
    ("run/.containerenv", "podman"),
    (".dockerenv", "docker"),
    (".singularity.d", "apptainer"),
)
_GROUPS = (
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("lxc", "lxc"),
    ("containerd", "other"),
)


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
    for word, kind in _GROUPS:
        if f"/{word}" in groups:
            return kind
    first = tree.data("proc/1/environ") or b""
    named = [entry for entry in first.split(b"\0") if entry.startswith(b"container=")]
    kind = named[0].partition(b"=")[2].decode("ascii", "replace") if named else ""
    return kind if kind in ("docker", "podman", "lxc", "") else "other"


def process_runs(tree: Tree, name: str) -> bool | None:
    """Return whether a program runs; None where it is not seen and a container may hide it."""
    if name[:15] in tree.processes():
        return True
    return None if container_kind(tree) or not tree.has("proc/self") else False
