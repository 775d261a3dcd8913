"""Which Triton-distributed the registry's image was built with, for hosts that have no wheel.

The wheel's hash is part of the image's key. Where the host does not have the wheel, the image says
which one it was; with that the plan, and so every key, follows from the lock again.
"""

from __future__ import annotations

import os
from dataclasses import replace

from tdstack.attest.layerfiles import read_inside
from tdstack.attest.lockslice import LockSlice, parse_slice
from tdstack.errors import IntegrityError, UpstreamError
from tdstack.fork.acquire import check_recorded
from tdstack.fork.model import ForkWheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile, LockedForkWheel
from tdstack.plan import Plan, make_plan
from tdstack.registry.reference import Reference
from tdstack.ship.names import rolling_tags
from tdstack.ship.remote import Remote, Source
from tdstack.stack import Request, make_stack
from tdstack.workspace import Workspace

_UNKNOWN = 1  # bytes; a size is no part of a key, and nobody fetches these files


def plan_of_registry(
    workspace: Workspace, request: Request, without_wheel: Plan, source: Source
) -> Plan:
    """Return the plan with the Triton-distributed of the image that the rolling tag names.

    Raises: UpstreamError when the registry has no such tag; IntegrityError when the image has no
    Triton-distributed, or not the one that the lock records under its name.
    """
    tag = rolling_tags(without_wheel)[0]
    remote = source.image(Reference(source.repository, tag))
    if remote is None:
        raise UpstreamError(
            "the registry has no image of this line",
            where=f"{source.repository}:{tag}",
            remedy="run `invoke build --registry` and `invoke push`, or name another --registry",
        )
    lock = load_lock(workspace.root)[0]
    fork = fork_of(_slice(workspace, source, remote), str(remote.reference))
    check_recorded(fork.source.name, fork.source.sha256, lock.triton_distributed)
    return make_plan(make_stack(lock, replace(request, fork=fork)), workspace.root)


def fork_of(slice_: LockSlice, where: str) -> ForkWheel:
    """Return the Triton-distributed that a slice names. Pure. Sizes of its files are not known.

    Raises: IntegrityError for a slice without one.
    """
    packages = {package.name: package for package in slice_.layers.get("triton", ())}
    own, alias = packages.get("triton"), packages.get("triton-dist")
    if slice_.fork is None or own is None or alias is None:
        raise IntegrityError("the image has no Triton-distributed", where=where)
    told = slice_.fork.model_dump(exclude={"complete"})
    return ForkWheel(
        file=LockedFile(name=own.file, sha256=own.sha256, size=_UNKNOWN),
        version=own.version,
        alias=LockedFile(name=alias.file, sha256=alias.sha256, size=_UNKNOWN),
        source=LockedForkWheel(**told),
        complete=slice_.fork.complete,
    )


def _slice(workspace: Workspace, source: Source, remote: Remote) -> LockSlice:
    """Return an image's slice; it is remembered, as it lies in a layer of some megabytes."""
    where = str(remote.reference)
    kept = workspace.store.work().parent / "slices" / remote.config.id
    if kept.exists():
        return parse_slice(kept.read_bytes(), where)
    slice_ = read_inside(source.registry, remote.repository, remote.manifest).slice
    kept.parent.mkdir(exist_ok=True)
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
    temporary.write_text(slice_.model_dump_json(by_alias=True))
    temporary.replace(kept)
    return slice_
