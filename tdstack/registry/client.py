"""A registry as documents and blobs: every name is a repository and a tag or digest.

What comes by digest is compared with it, so that a registry or a proxy cannot pass on other bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import requests

from tdstack import console
from tdstack.errors import IntegrityError
from tdstack.registry.api import Api, Say
from tdstack.registry.auth import Access
from tdstack.registry.documents import Documents, pages
from tdstack.registry.download import BlobReader, Progress
from tdstack.registry.oci import (
    MAX_DOCUMENT,
    Descriptor,
    Document,
    parse_json,
)
from tdstack.registry.reference import Repository, is_tag
from tdstack.registry.referrers import Referrers
from tdstack.registry.upload import Source, Upload, has_blob, mount_blob

_PAGE = 1000


def _silent(_descriptor: Descriptor, _amount: int) -> None:
    """Tell nobody."""


class Registry:
    """One registry host; thread-safe. Failures that may pass are tried again, with patience.

    `say` gets a line for each new try. `progress` gets a blob's descriptor and how many more
    bytes of it were sent or read, a negative number where an upload had to begin again.
    All methods raise UpstreamError when the registry cannot be reached, refuses or fails, and
    IntegrityError for bytes that are not those of their digest.
    """

    def __init__(self, host: str, say: Say = console.say, progress: Progress = _silent) -> None:
        self.host = host
        self._api = Api(host, say)
        self._progress = progress
        self._manifests = Documents(self._api)
        self._referrers = Referrers(self._api, self._manifests)

    def document(self, repository: Repository, reference: str) -> Document | None:
        """Return a manifest or an index by tag or digest; None where there is none."""
        return self._manifests.get(repository, reference)

    def head(self, repository: Repository, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest or an index; None where there is none."""
        return self._manifests.head(repository, reference)

    def put_document(self, repository: Repository, reference: str, document: Document) -> None:
        """Store a manifest or an index under a tag or its digest; its blobs are there."""
        self._manifests.put(repository, reference, document)

    def has_blob(self, repository: Repository, digest: str) -> bool:
        """Return whether the repository has the blob."""
        return has_blob(self._api, repository.path, digest)

    def put_blob(
        self,
        repository: Repository,
        source: Path | bytes,
        descriptor: Descriptor,
    ) -> bool:
        """Store a blob; return False where nothing was sent, as it was there.

        Raises: IntegrityError also when `source` is not the descriptor's bytes.
        """
        if self.has_blob(repository, descriptor.digest):
            return False
        Upload(self._api, repository, Source(source), descriptor, self._progress).run()
        return True

    def mount_blob(
        self, repository: Repository, descriptor: Descriptor, origin: Repository
    ) -> bool:
        """Make a repository share a blob of another one; False where the registry does not."""
        return mount_blob(self._api, repository.path, descriptor.digest, origin.path)

    def get_blob(self, repository: Repository, descriptor: Descriptor) -> bytes:
        """Return a small blob's bytes.

        Raises: IntegrityError for one that says to be larger than 4 MiB.
        """
        if descriptor.size > MAX_DOCUMENT:
            raise IntegrityError(
                "the blob is too large for what it is",
                where=f"{repository}@{descriptor.digest}",
                expected=f"at most {MAX_DOCUMENT} bytes",
                got=f"{descriptor.size} bytes",
            )
        with self.open_blob(repository, descriptor) as reader:
            return reader.read()

    def open_blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        begin: int = 0,
        seen: hashlib._Hash | None = None,
    ) -> BlobReader:
        """Return a blob as a stream, a context manager; see BlobReader for what it promises.

        `begin` bytes that the caller holds are not read again; `seen` is the sha256 over them.
        """
        access = Access(repository.path)
        path = f"{repository.path}/blobs/{descriptor.digest}"

        def opener(begin: int) -> requests.Response:
            headers = {"Range": f"bytes={begin}-"} if begin else {}
            return self._api.open("GET", self._api.url(path), access, headers)

        patience, where = self._api.patiently, str(repository)
        return BlobReader(descriptor, opener, patience, self._progress, begin, seen, where)

    def tags(self, repository: Repository) -> list[str]:
        """Return the repository's tags, sorted; none where there is no such repository."""
        found: set[str] = set()
        path = f"{repository.path}/tags/list?n={_PAGE}"
        for page in pages(self._api, path, Access(repository.path), "list its tags"):
            names = parse_json(page.body, "the registry's list of tags").get("tags") or []
            if not isinstance(names, list):
                raise IntegrityError("the registry's list of tags is malformed", where=page.url)
            found.update(name for name in names if isinstance(name, str) and is_tag(name))
        return sorted(found)

    def delete(self, repository: Repository, digest: str) -> None:
        """Remove a manifest and all its tags; one that is not there is no error."""
        self._manifests.delete(repository, digest)

    def referrers(
        self, repository: Repository, digest: str, artifact_type: str = ""
    ) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`, of one artifact type or of all."""
        return self._referrers.of(repository, digest, artifact_type)

    def add_referrer(
        self,
        repository: Repository,
        subject: Descriptor,
        document: Document,
        artifact_type: str,
        annotations: Mapping[str, str],
    ) -> None:
        """Store a manifest whose subject is `subject`, so that `referrers` finds it."""
        described = document.descriptor()
        entry = replace(described, artifact_type=artifact_type, annotations=annotations)
        self._referrers.add(repository, subject, document, entry)


@lru_cache(maxsize=16)
def _of_host(host: str) -> Registry:
    return Registry(host)


def registry_of(repository: Repository) -> Registry:
    """Return the client of the repository's host, one for all its users in this process."""
    return _of_host(repository.host)
