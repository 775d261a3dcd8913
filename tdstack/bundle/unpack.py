"""`invoke bundle --unpack`: a bundle checked to its last byte, then loaded, pushed or laid out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tdstack.attest.keys import PublicKey
from tdstack.bundle.images import shelf_to_registry
from tdstack.bundle.opened import OpenedBundle
from tdstack.bundle.shelf import ROOT, Shelf
from tdstack.bundle.wheelhouse import FOLDER, INPUTS, into_store, write_inputs, write_member
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError, UsageError
from tdstack.fork.model import ForkSource
from tdstack.plan import Plan
from tdstack.registry.client import registry_of
from tdstack.registry.oci import INDEX_TYPES, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.ship.pull import Findings, Puller, PullReport
from tdstack.ship.remote import Source
from tdstack.space import check_room
from tdstack.stack import Request
from tdstack.workspace import Workspace

Say = Callable[[str], None]


def check_signed(bundle: OpenedBundle, keys: Sequence[PublicKey], warn: Say) -> None:
    """See to it that what was asked to be signed is signed, by the bundle or by its images.

    Raises: IntegrityError for a wheelhouse without a signature.
    """
    if not keys or bundle.signed_by:
        return
    if bundle.manifest.contents == "wheelhouse":
        raise IntegrityError(
            "the bundle is not signed",
            where=str(bundle.path),
            expected=f"a signature of {', '.join(key.fingerprint for key in keys)}",
            remedy="make it with --sign",
        )
    warn("the bundle itself is not signed: its images must be, its checkout and tools are not")


def plan_of_bundle(workspace: Workspace, bundle: OpenedBundle) -> Plan:
    """Return the plan that this checkout makes of the bundle's options.

    What the plan needs and no lock names, the bundle has: it is taken into the store.
    Raises: UsageError for options that this checkout's lock does not hold.
    """
    asked = bundle.manifest.asked
    request = Request(
        cuda=asked.cuda,
        triton=asked.triton,
        torch=asked.torch,
        platform=asked.platform,
        python=asked.python,
        base=asked.base,
        archs=asked.archs,
    )
    with workspace.store.scratch("bundle-inputs") as folder:
        inputs = write_inputs(bundle, folder)
        wheels = [path for name, path in inputs.items() if name.endswith(".whl")]
        others = [path for name, path in inputs.items() if not name.endswith(".whl")]
        request = workspace.request(request, str(others[0]) if others else "")
        source = ForkSource(str(wheels[0]) if wheels else "", asked.incomplete)
        return workspace.plan(request, source)


def load(
    bundle: OpenedBundle,
    workspace: Workspace,
    engine: Engine,
    keys: Sequence[PublicKey],
    verify: Callable[[str], Findings],
    say: Say,
    warn: Say,
) -> PullReport:
    """Bring the images into the engine under the names that a build gives, and check them.

    Raises: what a pull raises; then the engine is as it was.
    """
    plan = plan_of_bundle(workspace, bundle)
    if plan.final.key != bundle.manifest.key:
        raise IntegrityError(
            "this checkout makes another image than the bundle holds",
            where=str(workspace.root),
            expected=f"key {bundle.manifest.key[:20]}",
            got=f"key {plan.final.key[:20]}",
            remedy="use the checkout in the bundle: --into DIR lays it out, or "
            "`tar -xf FILE checkout`",
        )
    # A signature over the bundle is over every image in it.
    of_images = () if bundle.signed_by else tuple(keys)
    source = Source(Shelf(bundle.below("images")), ROOT, plan.stack.platform, of_images)
    return Puller(plan, source, engine, workspace.store, verify, say, warn).pull()


def store_files(bundle: OpenedBundle, workspace: Workspace, warn: Say) -> int:
    """Bring the files of a wheelhouse into the store, where every verb looks; return how many."""
    plan = plan_of_bundle(workspace, bundle)
    if lacking := {f.sha256 for f in plan.files} - {m.sha256 for m in bundle.manifest.members}:
        warn(f"this checkout needs {len(lacking)} files that the bundle does not have")
    return into_store(bundle, workspace.store)


def push_images(
    bundle: OpenedBundle,
    repository: Repository,
    workspace: Workspace,
    keys: Sequence[PublicKey],
    say: Say,
) -> int:
    """Copy the images, with all attached to them, into a registry; return the bytes sent.

    Raises: UsageError for a bundle without images; UpstreamError; IntegrityError.
    """
    manifest = bundle.manifest
    if manifest.contents != "images":
        raise UsageError(
            "this bundle holds no images", where=str(bundle.path), expected="--load or --into DIR"
        )
    shelf = Shelf(bundle.below("images"))
    if not bundle.signed_by:
        _check_images(shelf, manifest.asked.platform, keys)
    registry = registry_of(repository)
    with workspace.store.scratch("bundle-blobs") as folder:
        return shelf_to_registry(
            shelf, manifest.tag, manifest.asked.platform, registry, repository, folder, say
        )


def lay_out(bundle: OpenedBundle, target: Path) -> None:
    """Write everything below a new folder: checkout/, tools/, images/ (an OCI layout), wheelhouse/.

    Raises: UsageError when something is there already; HostError when the disk has no room.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("this is in use", where=f"--into {target}", expected="a new folder")
    members = bundle.manifest.members
    check_room(target.absolute().parent, sum(m.size for m in members), "for the bundle's files")
    with _beside(target) as folder:
        for member in members:
            top = member.path.partition("/")[0]
            named = top in (FOLDER, INPUTS)
            # Under their own names --wheelhouse finds them.
            inside = f"{FOLDER}/{Path(member.name).name}" if named else member.path
            path = folder / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            write_member(bundle, member, path)
            if member.executable:
                path.chmod(0o755)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` when all went well, and is removed otherwise."""
    folder = target.absolute().with_name(f".{target.name}.{os.getpid()}")
    try:
        folder.mkdir()
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_images(shelf: Shelf, platform: str, keys: Sequence[PublicKey]) -> None:
    if not keys:
        return
    from tdstack.attest.check import check_signature

    for repository in shelf.places():
        for descriptor in shelf.documents(repository):
            if descriptor.media_type in INDEX_TYPES:
                continue
            manifest = ImageManifest.parse(shelf.get_blob(repository, descriptor))
            if manifest.subject is None:  # the others are attached to one that is checked
                check_signature(shelf, repository, descriptor, keys)
