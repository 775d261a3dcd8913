"""What the repositories of a registry hold, as data for pruning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tdstack.assemble.image import CONFIG_TYPE
from tdstack.plan import LABEL
from tdstack.registry.client import Registry
from tdstack.registry.oci import INDEX_TYPES, Document, ImageManifest, Index
from tdstack.registry.reference import Repository
from tdstack.ship.config import parse_config
from tdstack.ship.names import is_attachment
from tdstack.ship.prune import Held
from tdstack.stack import LAYER_ORDER


def inventory(registry: Registry, root: Repository) -> list[Held]:
    """Return every document of `root` and of the repositories of its layers.

    Raises: UpstreamError when the registry cannot be read; IntegrityError for what it holds
    malformed.
    """
    repositories = [root, *(root.child(layer) for layer in LAYER_ORDER)]
    return [one for repository in repositories for one in _of_one(registry, repository)]


def _of_one(registry: Registry, repository: Repository) -> Iterator[Held]:
    found: dict[str, Held] = {}
    for tag in registry.tags(repository):
        document = registry.document(repository, tag)
        if document is None:  # removed meanwhile
            continue
        known = found.get(document.digest)
        if known is None:
            subject = f"sha256:{tag[7:71]}" if is_attachment(tag) else ""
            known = _held(registry, repository, document, subject)
        found[document.digest] = replace(known, tags=(*known.tags, tag))
    waiting = [child for one in found.values() for child in one.children]
    waiting += [r for one in found.values() for r in _referrers(registry, one)]
    while waiting:
        digest = waiting.pop()
        document = None if digest in found else registry.document(repository, digest)
        if document is not None:
            found[digest] = one = _held(registry, repository, document, "")
            waiting += [*one.children, *_referrers(registry, one)]
    yield from found.values()


def _referrers(registry: Registry, one: Held) -> list[str]:
    if one.subject or one.children:
        return []
    return [r.digest for r in registry.referrers(one.repository, one.digest)]


def _held(registry: Registry, repository: Repository, document: Document, subject: str) -> Held:
    digest, size = document.digest, len(document.data)
    if document.media_type in INDEX_TYPES:
        children = tuple(m.digest for m in Index.parse(document.data).manifests)
        return Held(repository, digest, (), size, children=children, subject=subject)
    manifest = ImageManifest.parse(document.data)
    blobs = {blob.digest: blob.size for blob in (manifest.config, *manifest.layers)}
    subject = subject or (manifest.subject.digest if manifest.subject else "")
    if subject or manifest.config.media_type != CONFIG_TYPE:
        return Held(repository, digest, (), size, blobs, subject=subject)
    labels = parse_config(registry.get_blob(repository, manifest.config), manifest).labels
    key, parent = labels.get(f"{LABEL}.key", ""), labels.get(f"{LABEL}.parent", "")
    return Held(repository, digest, (), size, blobs, key=key, parent=parent)
