"""Every file that a plan is built from, as members of a bundle, and back into a store."""

from __future__ import annotations

import shutil
from pathlib import Path

from tdstack.bundle.model import Member
from tdstack.bundle.opened import OpenedBundle
from tdstack.bundle.pack import Packed, packed
from tdstack.lock.model import LockedFile
from tdstack.plan import Plan
from tdstack.space import check_room
from tdstack.wheelhouse.store import Store

FOLDER, INPUTS = "wheelhouse", "inputs"


def inputs_of(plan: Plan) -> list[LockedFile]:
    """Return the files without which the plan cannot even be made: those that no lock names. Pure.

    They are Triton-distributed's wheel and a stand-alone CPython.
    """
    fork = [plan.stack.fork.file] if plan.stack.fork else []
    return fork + ([plan.stack.cpython.file] if plan.stack.cpython else [])


def materials_of(plan: Plan, store: Store) -> list[LockedFile]:
    """Return what a build of the plan needs from outside, each file once.

    The root file system is among it where the store has it, so that the other host needs neither
    mmdebstrap nor its version; the packages that it is made of always are.
    """
    rootfs = plan.stack.rootfs
    tar = [rootfs.tar] if rootfs and store.has(rootfs.tar) else []
    own = {file.sha256 for file in inputs_of(plan)}
    return list({f.sha256: f for f in [*plan.files, *tar] if f.sha256 not in own}.values())


def pack_files(files: list[LockedFile], folder: str, store: Store) -> list[Packed]:
    """Return files of the store as members of a bundle's folder, sorted.

    Raises: IntegrityError for one whose bytes rotted; HostError for one that is not there.
    """
    return [
        packed(store.verify(file), f"{folder}/{file.sha256}", name=file.name, sha256=file.sha256)
        for file in sorted(files, key=lambda f: f.sha256)
    ]


def into_store(bundle: OpenedBundle, store: Store) -> int:
    """Bring the files of a bundle into the store; return how many were not there.

    Raises: HostError when the disk has no room; IntegrityError for bytes that changed since they
    were checked.
    """
    missing = [
        (member, file)
        for member in bundle.manifest.below(FOLDER)
        if not store.has(file := locked(member))
    ]
    check_room(store.root, sum(file.size for _, file in missing), "for the files of the bundle")
    for member, file in missing:
        with store.locked(file.sha256):
            write_member(bundle, member, store.partial(file))
            store.admit(store.partial(file), file, origin=str(bundle.path), move=True)
    return len(missing)


def write_inputs(bundle: OpenedBundle, folder: Path) -> dict[str, Path]:
    """Write the inputs of the plan below `folder`, under their own names; return their paths."""
    found = {}
    for member in bundle.manifest.below(INPUTS):
        path = folder / Path(member.name).name
        write_member(bundle, member, path)
        found[path.name] = path
    return found


def write_member(bundle: OpenedBundle, member: Member, path: Path) -> None:
    """Write one file of a bundle to `path`."""
    with bundle.open(member) as stream, path.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)


def locked(member: Member) -> LockedFile:
    """Return a member as the lock names it. Pure."""
    return LockedFile(name=member.name, sha256=member.sha256, size=member.size)
