"""The images of a plan into a shelf: out of an engine, or out of a registry as they are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tdstack.attest.keys import PublicKey, Signer
from tdstack.bundle.copy import Copier
from tdstack.bundle.shelf import ROOT, FolderFiles, Shelf
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError, UpstreamError
from tdstack.plan import Plan
from tdstack.registry.client import Registry
from tdstack.registry.reference import Reference, Repository
from tdstack.ship.index import index_of
from tdstack.ship.names import full_tag, is_attachment, layer_reference, rolling_tags
from tdstack.ship.push import Pusher, Target
from tdstack.ship.remote import Source, check_layer
from tdstack.ship.resolve import find, resolve
from tdstack.workspace import Workspace

Say = Callable[[str], None]


def shelf_of_engine(
    plan: Plan, engine: Engine, workspace: Workspace, folder: Path, signer: Signer | None, say: Say
) -> Shelf:
    """Return a shelf in `folder` with what a push of the plan brings into a registry.

    Raises: HostError when the engine lacks the image; what a push raises.
    """
    shelf = Shelf(FolderFiles(folder), folder)
    Pusher(plan, engine, workspace, Target(shelf, ROOT, signer=signer), say).push()
    shelf.save()
    return shelf


def shelf_of_registry(
    plan: Plan,
    registry: Registry,
    repository: Repository,
    folder: Path,
    keys: Sequence[PublicKey],
    say: Say,
) -> Shelf:
    """Return a shelf in `folder` with the plan's images of a registry and all attached to them.

    With `keys` each image must be signed by one of them.
    Raises: UpstreamError when the final image is not there; IntegrityError for one that is not
    the plan's.
    """
    source = Source(registry, repository, plan.stack.platform, keys)
    final = source.image(Reference(repository, full_tag(plan)))
    if final is None:
        raise UpstreamError(
            "the registry has no image of this lock",
            where=f"{repository}:{full_tag(plan)}",
            remedy="run `invoke push`; or bundle the engine's image, without --registry",
        )
    check_layer(final, plan, plan.final)
    shelf = Shelf(FolderFiles(folder), folder)
    copier = Copier(registry, shelf, folder.parent, say)
    for layer in plan.layers:
        remote = source.layer(plan, layer)
        if remote is None:
            say(f"  {layer.name:8} not there by its key; it is a part of the next one")
            continue
        place = layer_reference(ROOT, layer)
        copier.image(remote.repository, place.repository, remote.descriptor)
        document = shelf.document(place.repository, remote.descriptor.digest)
        assert document is not None
        shelf.put_document(place.repository, place.tag, document)
        say(f"  {layer.name:8} {remote.reference}")
    copier.image(repository, ROOT, final.descriptor)
    for tag in (full_tag(plan), *rolling_tags(plan)):
        shelf.put_document(ROOT, tag, index_of(final.descriptor, plan.stack.platform).document())
    shelf.save()
    return shelf


def shelf_to_registry(
    shelf: Shelf,
    full: str,
    platform: str,
    registry: Registry,
    repository: Repository,
    folder: Path,
    say: Say,
) -> int:
    """Copy everything on a shelf into a registry; return how many bytes were sent.

    `full` is the final image's tag with its key. Tags come last, so that none points at half an
    image; what a rolling tag has for other platforms stays. Blobs on their way lie in `folder`.
    Raises: IntegrityError when the registry has another image under a layer's key; UpstreamError.
    """
    copier = Copier(shelf, registry, folder, say)
    for origin in shelf.places():
        if origin == ROOT:
            continue
        place = repository.child(origin.path.removeprefix(f"{ROOT.path}/"))
        for tag in shelf.tags(origin):
            if not is_attachment(tag):
                _layer(copier, Reference(origin, tag), Reference(place, tag), platform)
                say(f"  {place}:{tag}")
    final, _ = resolve(shelf, Reference(ROOT, full), platform)
    copier.image(ROOT, repository, final)
    for tag in sorted(shelf.tags(ROOT), key=lambda tag: tag != full):
        if not is_attachment(tag):
            before = None if tag == full else registry.document(repository, tag)
            index = index_of(final, platform, before).document()
            registry.put_document(repository, tag, index)
            say(f"  {repository}:{tag}")
    return copier.sent


def _layer(copier: Copier, origin: Reference, place: Reference, platform: str) -> None:
    image, manifest = resolve(copier.source, origin, platform)
    if held := find(copier.target, place, platform):
        if held[1].config.digest == manifest.config.digest:
            return  # the same image, whatever its layers are compressed with
        raise IntegrityError(
            "the registry has another image under this layer's key",
            where=str(place),
            expected=f"image id {manifest.config.sha256[:12]}, the bundle's",
            got=f"image id {held[1].config.sha256[:12]}",
            remedy="find out which of them is right, or unpack into another path",
        )
    copier.image(origin.repository, place.repository, image)
    document = copier.source.document(origin.repository, image.digest)
    assert document is not None
    copier.target.put_document(place.repository, place.tag, document)
