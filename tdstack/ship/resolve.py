"""From a name to the manifest of one platform, through an index where there is one."""

from __future__ import annotations

from collections.abc import Sequence

from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import INDEX_TYPES, Descriptor, Document, ImageManifest, Index
from tdstack.registry.reference import Reference, Repository


def resolve(
    registry: Registry, reference: Reference, platform: str
) -> tuple[Descriptor, ImageManifest]:
    """Return the platform's manifest and its descriptor.

    Raises: UpstreamError when the registry has no such image, or not for this platform, or cannot
    be read; IntegrityError for a document that is not what its digest says, or is malformed.
    """
    found = find(registry, reference, platform)
    if found is None:
        raise UpstreamError(
            "the registry has no such image", where=str(reference), expected=f"one for {platform}"
        )
    return found


def find(
    registry: Registry, reference: Reference, platform: str
) -> tuple[Descriptor, ImageManifest] | None:
    """Return the same, or None when the registry has no such name.

    Raises: UpstreamError when the name is there and the platform is not; else as resolve does.
    """
    named = registry.document(reference.repository, reference.identifier)
    if named is None:
        return None
    if named.media_type not in INDEX_TYPES:
        return named.descriptor(), ImageManifest.parse(named.data)
    entry = entry_of(Index.parse(named.data).manifests, platform)
    if entry is None:
        has = [m.platform for m in Index.parse(named.data).manifests if m.platform]
        raise UpstreamError(
            "the registry has no such image for this platform",
            where=str(reference),
            expected=platform,
            got=", ".join(has),
        )
    document = follow(registry, reference.repository, entry)
    return document.descriptor(), ImageManifest.parse(document.data)


def entry_of(entries: Sequence[Descriptor], platform: str) -> Descriptor | None:
    """Return the entry of an index for a platform, whatever its variant; or None. Pure."""
    for entry in entries:
        if entry.platform == platform or entry.platform.startswith(f"{platform}/"):
            return entry
    return None


def follow(registry: Registry, repository: Repository, entry: Descriptor) -> Document:
    """Return the document that an index names.

    Raises: IntegrityError when the registry lost it, as then its index points at nothing.
    """
    document = registry.document(repository, entry.digest)
    if document is None:
        raise IntegrityError(
            "the registry's index names a manifest that is not there",
            where=str(repository),
            expected=entry.digest,
            remedy="push the image again",
        )
    return document
