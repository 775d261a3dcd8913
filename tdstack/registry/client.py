"""A registry as documents and blobs: every name is a repository and a tag or digest.

What comes by digest is compared with it, so that a registry or a proxy cannot pass on other bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import requests

from tdstack import console
from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.api import Answer, Api, Say
from tdstack.registry.auth import Access
from tdstack.registry.download import BlobReader, Progress
from tdstack.registry.http import BLOCK
from tdstack.registry.oci import (
    ACCEPTED,
    MAX_DOCUMENT,
    Descriptor,
    Document,
    Index,
    parse_json,
)
from tdstack.registry.reference import Repository, is_digest, is_tag
from tdstack.registry.referrers import fallback_tag, matching, with_referrer
from tdstack.registry.upload import Source, Upload

_ACCEPT = {"Accept": ", ".join(ACCEPTED)}
_PAGE = 1000
# A registry that links its pages in a circle must not keep a client for ever.
_MAX_PAGES = 10_000
_INDEX_TRIES = 5


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
        self._index_lock = threading.Lock()

    def document(self, repository: Repository, reference: str) -> Document | None:
        """Return a manifest or an index by tag or digest; None where there is none."""
        answer = self._api.ask(
            "GET", _manifests(repository, reference), Access(repository.path), headers=_ACCEPT
        )
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise self._api.unexpected("give a manifest", answer)
        document = Document(answer.body, _media_type(answer))
        _compare(repository, reference, document.digest, answer)
        return document

    def head(self, repository: Repository, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest or an index; None where there is none."""
        answer = self._api.ask(
            "HEAD", _manifests(repository, reference), Access(repository.path), headers=_ACCEPT
        )
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        if answer.status != HTTPStatus.OK:
            raise self._api.unexpected("tell of a manifest", answer)
        digest = answer.headers.get("Docker-Content-Digest", "")
        size = answer.headers.get("Content-Length", "")
        if not is_digest(digest) or not size.isdecimal():  # both headers are optional
            document = self.document(repository, reference)
            return document.descriptor() if document else None
        _compare(repository, reference, digest, answer)
        return Descriptor(_media_type(answer), digest, int(size))

    def put_document(self, repository: Repository, reference: str, document: Document) -> None:
        """Store a manifest or an index under a tag or its digest; its blobs are there."""
        self._put(repository, reference, document)

    def has_blob(self, repository: Repository, digest: str) -> bool:
        """Return whether the repository has the blob."""
        descriptor = Descriptor("", digest, 0)
        return Upload(self._api, repository, Source(b""), descriptor, _silent).present()

    def put_blob(
        self,
        repository: Repository,
        source: Path | bytes,
        descriptor: Descriptor,
        mount_from: Repository | None = None,
    ) -> bool:
        """Store a blob; return False where nothing was sent: it was there, or could be mounted.

        Raises: IntegrityError also when `source` is not the descriptor's bytes.
        """
        upload = Upload(self._api, repository, Source(source), descriptor, self._progress)
        return not upload.present() and upload.run(mount_from)

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

        patience = self._api.patiently
        return BlobReader(descriptor, opener, patience, self._progress, begin, seen)

    def save_blob(self, repository: Repository, descriptor: Descriptor, partial: Path) -> None:
        """Make `partial` the blob, going on where an earlier run left it.

        A file that turns out to hold other bytes is removed.
        Raises: IntegrityError; OSError as files do.
        """
        seen = hashlib.sha256()
        with partial.open("a+b") as out:
            if out.tell() > descriptor.size:  # not a beginning of this blob
                out.truncate(0)
            out.seek(0)
            while held := out.read(BLOCK):
                seen.update(held)
            try:
                begin = out.tell()
                with self.open_blob(repository, descriptor, begin, seen) as reader:
                    shutil.copyfileobj(reader, out, BLOCK)
            except IntegrityError:
                partial.unlink(missing_ok=True)
                raise

    def tags(self, repository: Repository) -> list[str]:
        """Return the repository's tags, sorted; none where there is no such repository."""
        found: set[str] = set()
        path = f"{repository.path}/tags/list?n={_PAGE}"
        for _ in range(_MAX_PAGES):
            answer = self._api.ask("GET", path, Access(repository.path))
            if answer.status == HTTPStatus.NOT_FOUND:
                break
            if answer.status != HTTPStatus.OK:
                raise self._api.unexpected("list its tags", answer)
            names = parse_json(answer.body, "the registry's list of tags").get("tags") or []
            if not isinstance(names, list):
                raise IntegrityError("the registry's list of tags is malformed", where=answer.url)
            found.update(name for name in names if isinstance(name, str) and is_tag(name))
            if not (path := self._next(answer)):
                break
        return sorted(found)

    def delete(self, repository: Repository, digest: str) -> None:
        """Remove a manifest and all its tags; one that is not there is no error."""
        path = _manifests(repository, digest)
        answer = self._api.ask("DELETE", path, Access(repository.path, "delete"))
        if answer.status not in (HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.NOT_FOUND):
            remedy = ""
            if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
                remedy = "allow deletion in the registry's configuration"
            raise self._api.unexpected("delete a manifest", answer, remedy)

    def referrers(
        self, repository: Repository, digest: str, artifact_type: str = ""
    ) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`, of one artifact type or of all."""
        found: list[Descriptor] = []
        query = f"?artifactType={quote(artifact_type, '')}" if artifact_type else ""
        path = f"{repository.path}/referrers/{digest}{query}"
        for _ in range(_MAX_PAGES):
            answer = self._api.ask("GET", path, Access(repository.path))
            if answer.status == HTTPStatus.NOT_FOUND:  # the specification's sign of no such API
                return matching(self._fallback(repository, digest), artifact_type)
            if answer.status != HTTPStatus.OK:
                raise self._api.unexpected("list referrers", answer)
            # A registry may ignore the filter.
            found += matching(Index.parse(answer.body), artifact_type)
            if not (path := self._next(answer)):
                break
        return found

    def add_referrer(
        self,
        repository: Repository,
        subject: Descriptor,
        document: Document,
        artifact_type: str,
        annotations: Mapping[str, str],
    ) -> None:
        """Store a manifest whose subject is `subject`, so that `referrers` finds it."""
        answer = self._put(repository, document.digest, document)
        if answer.headers.get("OCI-Subject") == subject.digest:  # the registry keeps the list
            return
        size = len(document.data)
        entry = Descriptor(document.media_type, document.digest, size, annotations, artifact_type)
        with self._index_lock:
            # Another client may write the index between our reading and writing it: look again.
            for _ in range(_INDEX_TRIES):
                held = self._fallback(repository, subject.digest)
                if entry in held.manifests:
                    return
                index = with_referrer(held, entry).document()
                self._put(repository, fallback_tag(subject.digest), index)
        raise UpstreamError(
            "the registry's list of referrers does not keep an entry",
            where=f"{repository}:{fallback_tag(subject.digest)}",
            expected=entry.digest,
            remedy="run the verb again when no other client writes to this image",
        )

    def _fallback(self, repository: Repository, digest: str) -> Index:
        document = self.document(repository, fallback_tag(digest))
        return Index.parse(document.data) if document else Index(())

    def _put(self, repository: Repository, reference: str, document: Document) -> Answer:
        answer = self._api.ask(
            "PUT",
            _manifests(repository, reference),
            Access(repository.path, "pull,push"),
            headers={"Content-Type": document.media_type},
            body=document.data,
        )
        if answer.status not in (HTTPStatus.CREATED, HTTPStatus.OK, HTTPStatus.ACCEPTED):
            raise self._api.unexpected("take a manifest", answer)
        _compare(repository, document.digest, document.digest, answer)
        return answer

    def _next(self, answer: Answer) -> str:
        """Return the address of the next page (RFC 8288), or an empty text."""
        link = re.search(r'<([^>]*)>\s*;[^,]*\brel="?next"?', answer.headers.get("Link", ""))
        return self._api.beside(answer.url, link[1]) if link else ""


@lru_cache(maxsize=16)
def _of_host(host: str) -> Registry:
    return Registry(host)


def registry_of(repository: Repository) -> Registry:
    """Return the client of the repository's host, one for all its users in this process."""
    return _of_host(repository.host)


def _manifests(repository: Repository, reference: str) -> str:
    return f"{repository.path}/manifests/{reference}"


def _media_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").split(";")[0].strip()


def _compare(repository: Repository, reference: str, digest: str, answer: Answer) -> None:
    """Raise IntegrityError unless `digest` is what was asked for and what the answer claims."""
    claimed = answer.headers.get("Docker-Content-Digest", digest)
    for wanted in (reference if is_digest(reference) else digest, claimed):
        if wanted.startswith("sha256:") and wanted != digest:
            raise IntegrityError(
                "the registry's document is not the one that its digest names",
                where=f"{repository}@{reference}"
                if is_digest(reference)
                else f"{repository}:{reference}",
                expected=wanted,
                got=digest,
                remedy="push the image again; do not trust the registry if it happens twice",
            )
