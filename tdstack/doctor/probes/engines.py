"""Container engines: Docker by its API, others by what is installed."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tdstack.doctor.facts import Engine
from tdstack.doctor.probes.packages import installed_versions, upstream
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

SECONDS = 5
# Programs by engine, in the order of the facts; the version is that of the package.
OTHERS = {
    "podman": ("podman",),
    "buildah": ("buildah",),
    "containerd": ("containerd", "containerd.io"),
    "apptainer": ("apptainer", "apptainer-suid"),
    "singularity": ("singularity-ce", "singularity"),
    "enroot": ("enroot", "enroot-hardened"),
}
BINARIES = ("usr/bin", "usr/local/bin", "usr/sbin", "bin")
PACKAGE = "the Python package docker is not installed: pip install docker"
# containers-storage.conf(5): where podman and buildah keep images.
STORAGE_FILES = ("etc/containers/storage.conf", "usr/share/containers/storage.conf")
STORAGE_ROOT, STORAGE_USER = "var/lib/containers/storage", ".local/share/containers/storage"


def ask_docker() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what the daemon answers to /version and /info. Raises: what docker-py raises."""
    import docker

    client = docker.from_env(timeout=SECONDS)
    try:
        return client.version(), client.info()
    finally:
        client.close()


def engines(
    tree: Tree, ask: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]] = ask_docker
) -> Part:
    """Ask Docker's daemon, and look for the others' programs."""
    part = Part()
    versions = installed_versions(tree)
    found = [_docker(tree, ask, part)]
    for name, packages in OTHERS.items():
        version = next((upstream(versions[own]) for own in packages if own in versions), None)
        installed = _program(tree, name) or version is not None
        if installed and version is None:
            part.unknown(f"container.engines.{name}", "no package of dpkg or rpm has it")
        shares = name in ("podman", "buildah") and installed
        root = _containers_storage(tree) if shares else None
        found.append(Engine(name=name, installed=installed, version=version, root=root))
    part.sections["container.engines"] = tuple(found)
    return part


def docker_engine(version: Mapping[str, Any], info: Mapping[str, Any]) -> Engine:
    """Return the facts in Docker's answers (Engine API, /version and /info). Pure."""
    security = [str(option) for option in info.get("SecurityOptions") or ()]
    return Engine(
        name="docker",
        installed=True,
        works=True,
        version=version.get("Version"),
        storage=info.get("Driver"),
        root=info.get("DockerRootDir"),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        # Told since Docker 25; the feature was off by default before Docker 28.
        cdi=bool(info.get("CDISpecDirs")),
        rootless=any("rootless" in option for option in security),
        cgroup_driver=info.get("CgroupDriver"),
    )


def _docker(
    tree: Tree,
    ask: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
    part: Part,
) -> Engine:
    installed = _program(tree, "docker") or _program(tree, "dockerd")
    remote = "DOCKER_HOST" in tree.environment
    if not installed and not remote and not tree.has("run/docker.sock"):
        return Engine(name="docker", installed=False, works=False)
    try:
        found = docker_engine(*ask())
        if found.root and not tree.path(found.root.lstrip("/")).is_dir():
            part.unknown("spaces.engine", "Docker's folder is on another host, or for root alone")
            return replace(found, root=None)
        return found
    except ImportError:
        part.unknown("container.engines.docker", PACKAGE)
        return Engine(name="docker", installed=installed)
    except Exception as error:  # docker-py raises its own, requests' and urllib3's errors
        why = " ".join(str(error).split())[:300]
        return Engine(name="docker", installed=installed, works=False, why=why)


def _program(tree: Tree, name: str) -> bool:
    if any(tree.has(f"{folder}/{name}") for folder in BINARIES):
        return True
    return str(tree.root) == "/" and shutil.which(name) is not None


def _containers_storage(tree: Tree) -> str | None:
    named = tree.environment.get("CONTAINERS_STORAGE_CONF", "").lstrip("/")
    root = os.geteuid() == 0
    # Others than root have settings of their own, and not those of the system.
    for place in filter(None, (named, *(STORAGE_FILES if root else ()))):
        with suppress(tomllib.TOMLDecodeError):
            storage = tomllib.loads(tree.text(place) or "").get("storage")
            graph = storage.get("graphroot") if isinstance(storage, dict) else None
            if isinstance(graph, str) and graph:
                return graph
    if root:
        return f"/{STORAGE_ROOT}"
    home = tree.environment.get("HOME")
    return f"{home}/{STORAGE_USER}" if home else None
