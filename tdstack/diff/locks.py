"""Locks -> snapshots: the whole of one, or what one says of an image. Pure but for reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdstack.diff.facts import settings_of
from tdstack.diff.model import Release, Snapshot
from tdstack.errors import UsageError
from tdstack.lock.io import parse_lock
from tdstack.lock.model import Lock
from tdstack.plan import slice_of
from tdstack.process import last_words, run
from tdstack.stack import Request, make_stack
from tdstack.verify.manifest import CUBINS, OWN


def read_lock(path: Path) -> Lock:
    """Read a lock from a file. Raises: the errors of `parse_lock`; UsageError for no text."""
    try:
        return parse_lock(path.read_text(), str(path))
    except UnicodeDecodeError as error:
        raise UsageError("this lock is no text", where=f"{path}, byte {error.start}") from error


def lock_of_revision(root: Path, revision: str, path: str) -> Lock:
    """Read a lock out of a revision of the checkout `root`.

    Raises: UsageError when version control does not have it.
    """
    done = run(["git", "show", f"{revision}:{path}"], cwd=root, limit_s=60)
    if done.returncode:
        raise UsageError(
            "version control has no such lock",
            where=f"{revision}:{path}",
            got=last_words(done, 2),
            expected="REV:versions.lock, with a revision of this checkout",
        )
    return parse_lock(done.stdout, f"{revision}:{path}")


def whole_lock(name: str, lock: Lock) -> Snapshot:
    """Return everything that a lock pins."""
    packages: dict[str, Release] = {}
    for ref, wheels in lock.packages.items():
        package, _, version = ref.partition("==")
        _add(packages, f"python: {package}", version, {w.sha256 for w in wheels})
    settings = {"resolver": lock.resolver}
    for rootfs in lock.rootfs:
        where = f"{rootfs.suite} {rootfs.platform}"
        for deb in rootfs.packages:
            _add(packages, f"debian {where}: {deb.package}", deb.version, {deb.sha256})
        settings[f"rootfs {where}: python"] = rootfs.python
        settings[f"rootfs {where}: tar"] = rootfs.tar.sha256
        for tool, version in rootfs.made_with.items():
            settings[f"rootfs {where}: {tool}"] = version
    for cuda, line in lock.lines.items():
        settings[f"CUDA {cuda}: set"] = line.set
        settings[f"CUDA {cuda}: driver floor"] = line.driver_floor
        settings[f"CUDA {cuda}: ptxas"] = line.ptxas
        settings[f"CUDA {cuda}: archs"] = ", ".join(line.archs)
        settings[f"CUDA {cuda}: experimental"] = line.experimental
        for platform, refs in line.toolkit.items():
            settings[f"CUDA {cuda}: toolkit {platform}"] = ", ".join(refs)
    for closure in lock.closures:
        where = f"{closure.set}, torch {closure.torch}, py{closure.python}, {closure.platform}"
        for layer, refs in closure.layers.items():
            for ref in refs:
                package, _, version = ref.partition("==")
                settings[f"{where}: {package}"] = f"{version} in {layer}"
    fork = lock.triton_distributed
    settings["Triton-distributed: commit"] = fork.commit
    settings["Triton-distributed: Triton's commit"] = fork.submodule_commit
    for wheel in fork.wheels:
        settings[f"Triton-distributed: {wheel.name}"] = wheel.sha256
    return Snapshot(name, packages=packages, settings=settings)


def lock_for(name: str, lock: Lock, manifest: Mapping[str, Any]) -> Snapshot:
    """Return what a lock says an image should hold that has the choices of `manifest`.

    Triton-distributed is no part of the lock: what the image says of it is taken, unless the lock
    records wheels and the image's is none of them.
    Raises: UsageError for choices that the lock does not hold.
    """
    base = manifest["base"]
    request = Request(
        cuda=str(manifest["cuda"]),
        triton=str(manifest["triton"]),
        torch=str(manifest["torch"]),
        platform=str(manifest["platform"]),
        python=str(manifest["python"]),
        base=f"rootfs:{base['suite']}" if base.get("suite") else str(base["image"]),
        archs=tuple(manifest["archs"]),
    )
    stack = make_stack(lock, request)
    theirs = slice_of(stack)
    packages: dict[str, Release] = {}
    for deb in stack.rootfs.packages if stack.rootfs else ():
        packages[f"debian: {deb.package}"] = Release((deb.version,), (deb.sha256,))
    for package in stack.all_packages():
        digest = (package.file.sha256,) if package.file else ()
        packages[f"python: {package.name}"] = Release((package.version,), digest)
    if stack.flavour == "distributed":
        packages |= _fork_of(lock, manifest)
    return Snapshot(name, packages=packages, settings=settings_of(theirs), altered={})


def beside_the_lock(snapshot: Snapshot) -> Snapshot:
    """Return an image's snapshot without what no lock names: our own wheels, and other Pythons'."""
    own = tuple(f"python: {name}" for name in OWN)
    base = snapshot.manifest["base"] if snapshot.manifest else {}
    foreign = not base.get("suite")
    kept = {
        name: release
        for name, release in snapshot.packages.items()
        if not name.startswith((f"python: {CUBINS}", "python in "))
        and name not in own
        and not (foreign and name.startswith("debian: "))
    }
    return replace(snapshot, packages=kept)


def _fork_of(lock: Lock, manifest: Mapping[str, Any]) -> dict[str, Release]:
    recorded = {wheel.sha256 for wheel in lock.triton_distributed.wheels}
    source = manifest.get("fork") or {}
    if recorded and source.get("sha256") not in recorded:
        return {}
    return {
        f"python: {p['name']}": Release((p["version"],), (p["sha256"],) if p["sha256"] else ())
        for p in manifest["layers"].get("triton", ())
        if p["name"] in ("triton", "triton-dist")
    }


def _add(packages: dict[str, Release], name: str, version: str, digests: set[str]) -> None:
    old = packages.get(name, Release(()))
    versions = tuple(sorted({*old.versions, version}))
    packages[name] = Release(versions, tuple(sorted({*old.sha256, *digests})))
