"""What refers to an image: signatures, bills of materials (distribution-spec 1.1, "Referrers").

A registry without the referrers API keeps the same list as an index under the tag
`sha256-<hex>` ("Referrers tag schema"); clients keep that index then.
"""

from __future__ import annotations

from tdstack.registry.oci import Descriptor, Index


def fallback_tag(digest: str) -> str:
    """Return the tag of the index that stands in for the referrers API."""
    return digest.replace(":", "-")


def with_referrer(index: Index, referrer: Descriptor) -> Index:
    """Return an index that holds `referrer`, once, beside what `index` holds."""
    others = (m for m in index.manifests if m.digest != referrer.digest)
    return Index((*others, referrer), index.annotations)


def matching(index: Index, artifact_type: str) -> list[Descriptor]:
    """Return the index's entries of one artifact type, or all for an empty one."""
    return [m for m in index.manifests if not artifact_type or m.artifact_type == artifact_type]
