"""What refers to an image: signatures, bills of materials (distribution-spec 1.1, "Referrers").

A registry without the referrers API keeps the same list as an index under the tag
`sha256-<hex>` ("Referrers tag schema"); clients keep that index then.
"""

from __future__ import annotations

import random
import threading
import time
from urllib.parse import quote

from tdstack.errors import UpstreamError
from tdstack.registry.api import Api
from tdstack.registry.auth import Access
from tdstack.registry.documents import Documents, pages
from tdstack.registry.oci import Descriptor, Document, Index
from tdstack.registry.reference import Repository

_TRIES = 6
_SHORTEST_S = 0.05


def fallback_tag(digest: str) -> str:
    """Return the tag of the index that stands in for the referrers API."""
    return digest.replace(":", "-")


def with_referrer(index: Index, referrer: Descriptor) -> Index:
    """Return an index that holds `referrer`, once, beside what `index` holds."""
    others = (m for m in index.manifests if m.digest != referrer.digest)
    return Index((*others, referrer), index.annotations)


class Referrers:
    """The lists of referrers of one host; thread-safe. The client's methods say what is raised."""

    def __init__(self, api: Api, documents: Documents) -> None:
        self._api = api
        self._documents = documents
        self._lock = threading.Lock()

    def of(self, repository: Repository, digest: str, artifact_type: str) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`, of one artifact type or of all."""
        query = f"?artifactType={quote(artifact_type, '')}" if artifact_type else ""
        path = f"{repository.path}/referrers/{digest}{query}"
        found = [
            Index.parse(page.body)
            for page in pages(self._api, path, Access(repository.path), "list referrers")
        ]
        # No page at all is the specification's sign of a registry without the API.
        indexes = found or [self._held(repository, digest)]
        return [
            entry
            for index in indexes
            for entry in index.manifests
            if not artifact_type or entry.artifact_type == artifact_type
        ]

    def add(
        self, repository: Repository, subject: Descriptor, document: Document, entry: Descriptor
    ) -> None:
        """Store a manifest whose subject is `subject`; `entry` describes it in the list."""
        answer = self._documents.put(repository, document.digest, document)
        if answer.headers.get("OCI-Subject") == subject.digest:  # the registry keeps the list
            return
        tag = fallback_tag(subject.digest)
        with self._lock:
            # Another client may write the index between our reading and writing it: look again.
            for attempt in range(_TRIES):
                if attempt > 1:  # lost once: clients that wait for different times part
                    time.sleep(random.uniform(0, _SHORTEST_S * 2**attempt))
                held = self._held(repository, subject.digest)
                if entry in held.manifests:
                    return
                self._documents.put(repository, tag, with_referrer(held, entry).document())
        raise UpstreamError(
            "the registry's list of referrers does not keep an entry",
            where=f"{repository}:{tag}",
            expected=entry.digest,
            remedy="run the verb again when no other client writes to this image",
        )

    def _held(self, repository: Repository, digest: str) -> Index:
        document = self._documents.get(repository, fallback_tag(digest))
        return Index.parse(document.data) if document else Index(())
