"""Containers -> snapshots: what is in them now, whatever image they were started from."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdstack.diff.blobs import Chunks
from tdstack.diff.facts import wanted
from tdstack.diff.images import env_of, snapshot_of
from tdstack.diff.model import FileFact, Snapshot
from tdstack.diff.tree import Tree
from tdstack.engines.base import Engine
from tdstack.errors import HostError, UsageError
from tdstack.process import last_words, run
from tdstack.wheelhouse.store import sha256_of

# What an engine mounts or writes into every container, so that it says nothing of the image.
TRANSIENT = (
    *("dev", "proc", "sys", "run/.containerenv", "run/secrets", ".dockerenv"),
    *("etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"),
)


def container(engine: Engine, name: str) -> Snapshot:
    """Return what the container `name` of the engine holds now.

    Raises: UsageError when there is none; HostError when it cannot be read.
    """
    read = {"buildah": _of_buildah, "docker": _of_docker}[engine.name]
    tree, config = read(name)
    labels = config.get("Labels") or {}
    return snapshot_of(f"container:{name}", "", tree, None, env_of(config), labels, TRANSIENT)


def _of_docker(name: str) -> tuple[Tree, dict[str, Any]]:
    import docker
    import requests
    from docker.errors import APIError, NotFound

    try:
        found = docker.from_env(timeout=600).containers.get(name)
        tree = Tree(wanted)
        tree.apply(Chunks(found.export()))  # type: ignore[arg-type]
    except NotFound as error:
        raise _none("docker", name) from error
    except (APIError, requests.RequestException) as error:
        raise HostError(
            "docker cannot give the container's files", where=name, got=str(error)[:300]
        ) from error
    return tree, found.attrs["Config"]


def _of_buildah(name: str) -> tuple[Tree, dict[str, Any]]:
    done = run(["buildah", "inspect", "--type", "container", name])
    if done.returncode:
        raise _none("buildah", name)
    tree = Tree(wanted)
    with _mounted(name) as folder:
        for path, fact in _walk(folder):
            tree.files[path] = fact
            if fact.kind == "file" and wanted(path):
                tree.texts[path] = (folder / path).read_bytes()
    config: dict[str, Any] = json.loads(done.stdout)["OCIv1"].get("config") or {}
    return tree, config


@contextmanager
def _mounted(name: str) -> Iterator[Path]:
    done = run(["buildah", "mount", name])
    if done.returncode:
        raise HostError(
            "buildah cannot show the container's files",
            where=name,
            got=last_words(done, 3),
            remedy="run the verb as root, or inside `buildah unshare`",
        )
    try:
        yield Path(done.stdout.strip())
    finally:
        run(["buildah", "umount", name])


def _walk(root: Path) -> Iterator[tuple[str, FileFact]]:
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            yield str(path.relative_to(root)), _fact_of(path)


def _fact_of(path: Path) -> FileFact:
    found = path.lstat()
    mode, owner = stat.S_IMODE(found.st_mode), f"{found.st_uid}:{found.st_gid}"
    if stat.S_ISLNK(found.st_mode):
        return FileFact("link", mode, owner, target=str(path.readlink()))
    if stat.S_ISDIR(found.st_mode):
        return FileFact("folder", mode, owner)
    if stat.S_ISREG(found.st_mode):
        return FileFact("file", mode, owner, found.st_size, sha256_of(path))
    return FileFact("other", mode, owner)


def _none(engine: str, name: str) -> UsageError:
    return UsageError(
        f"{engine} has no container of that name",
        where=f"container:{name}",
        remedy="`docker ps --all` and `buildah containers` list them; --engine chooses",
    )
