"""Manifests and indexes of a registry, compared with their digests on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus

from tdstack.errors import IntegrityError
from tdstack.registry.api import Answer, Api
from tdstack.registry.auth import Access
from tdstack.registry.oci import ACCEPTED, Descriptor, Document
from tdstack.registry.reference import Repository, is_digest
from tdstack.retry import Backoff

_ACCEPT = {"Accept": ", ".join(ACCEPTED)}
# A registry that links its pages in a circle must not keep a client for ever.
_MAX_PAGES = 10_000
_UNKNOWN_BLOB = b'"MANIFEST_BLOB_UNKNOWN"'
_PUTS = 4


class Documents:
    """The documents of one host; thread-safe. The client's methods say what is raised."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def get(self, repository: Repository, reference: str) -> Document | None:
        """Return a document by tag or digest; None where there is none."""
        answer = self._ask("GET", repository, reference)
        if answer is None:
            return None
        document = Document(answer.body, _media_type(answer))
        _compare(repository, reference, document.digest, answer)
        return document

    def head(self, repository: Repository, reference: str) -> Descriptor | None:
        """Return the descriptor of a document; None where there is none."""
        answer = self._ask("HEAD", repository, reference)
        if answer is None:
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        size = answer.headers.get("Content-Length", "")
        if not is_digest(digest) or not size.isdecimal():  # both headers are optional
            document = self.get(repository, reference)
            return document.descriptor() if document else None
        _compare(repository, reference, digest, answer)
        return Descriptor(_media_type(answer), digest, int(size))

    def put(self, repository: Repository, reference: str, document: Document) -> Answer:
        """Store a document under a tag or its digest."""
        backoff = Backoff(_PUTS)
        while True:
            answer = self._api.ask(
                "PUT",
                _path(repository, reference),
                Access(repository.path, "pull,push"),
                headers={"Content-Type": document.media_type},
                body=document.data,
            )
            # docker-registry 2.8 writes a blob's link in place: while a push beside this one
            # brings the same blob, the registry does not know it for a moment.
            if _UNKNOWN_BLOB not in answer.body or not backoff.again():
                break
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise self._api.unexpected("take a manifest", answer)
        _compare(repository, reference, document.digest, answer)
        return answer

    def delete(self, repository: Repository, digest: str) -> None:
        """Remove a document and all its tags; one that is not there is no error."""
        access = Access(repository.path, "delete")
        answer = self._api.ask("DELETE", _path(repository, digest), access)
        if answer.status not in (HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            remedy = ""
            if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
                remedy = "allow deletion in the registry's configuration"
            raise self._api.unexpected("delete a manifest", answer, remedy)

    def _ask(self, method: str, repository: Repository, reference: str) -> Answer | None:
        access = Access(repository.path)
        answer = self._api.ask(method, _path(repository, reference), access, headers=_ACCEPT)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise self._api.unexpected("give a manifest", answer)
        return answer


def pages(api: Api, path: str, access: Access, what: str) -> Iterator[Answer]:
    """Yield the pages of a list, each linked by the one before (RFC 8288).

    Nothing is yielded where the first one is not found.
    Raises: UpstreamError, which says that the registry does not `what`, for any other status.
    """
    for number in range(_MAX_PAGES):
        answer = api.ask("GET", path, access)
        if answer.status == HTTPStatus.NOT_FOUND and number == 0:
            return
        if answer.status != HTTPStatus.OK:
            raise api.unexpected(what, answer)
        yield answer
        link = re.search(r'<([^>]*)>\s*;[^,]*\brel="?next"?', answer.headers.get("Link", ""))
        if link is None:
            return
        path = api.beside(answer.url, link[1])


def _path(repository: Repository, reference: str) -> str:
    return f"{repository.path}/manifests/{reference}"


def _media_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").split(";")[0].strip()


def _compare(repository: Repository, reference: str, digest: str, answer: Answer) -> None:
    """Raise IntegrityError unless `digest` is what was asked for and what the answer claims."""
    claimed = answer.headers.get("Docker-Content-Digest", digest)
    for wanted in (reference if is_digest(reference) else digest, claimed):
        # A registry may claim one of another algorithm, which is not checked here.
        if wanted.startswith("sha256:") and wanted != digest:
            raise IntegrityError(
                "the registry's document is not the one that its digest names",
                where=f"{repository}{'@' if is_digest(reference) else ':'}{reference}",
                expected=wanted,
                got=digest,
                remedy="push the image again; do not trust the registry if it happens twice",
            )
