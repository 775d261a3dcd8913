"""The index that a tag of a final image points at: one entry for each platform. Pure."""

from __future__ import annotations

from dataclasses import replace

from tdstack.registry.oci import INDEX_TYPES, Descriptor, Document, Index


def index_of(manifest: Descriptor, platform: str, before: Document | None = None) -> Index:
    """Return the index with this platform's manifest and the other platforms' of `before`.

    Raises: IntegrityError when `before` is malformed.
    """
    own = replace(manifest, platform=platform)
    others: tuple[Descriptor, ...] = ()
    if before and before.media_type in INDEX_TYPES:
        others = tuple(m for m in Index.parse(before.data).manifests if _is_other(m, platform))
    # The order must not depend on who came first: equal contents give one digest.
    return Index(tuple(sorted((own, *others), key=lambda entry: entry.platform)))


def _is_other(entry: Descriptor, platform: str) -> bool:
    return bool(entry.platform) and not f"{entry.platform}/".startswith(f"{platform}/")
