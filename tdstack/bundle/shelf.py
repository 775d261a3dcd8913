"""A registry in a folder or in a bundle: an OCI layout (image-spec 1.1) with several repositories.

Push, pull and everything that checks images work on it as on any registry, so that what a bundle
holds is what a registry would hold, attachments and signatures included.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import requests

from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.download import BlobReader
from tdstack.registry.oci import (
    INDEX_TYPES,
    Descriptor,
    Document,
    ImageManifest,
    Index,
    digest_of,
)
from tdstack.registry.reference import Repository, is_digest
from tdstack.retry import Backoff, TransientError
from tdstack.wheelhouse.store import sha256_of

# No such host can be looked up (RFC 2606): a mistake ends with that, not somewhere else.
ROOT = Repository("bundle.invalid", "tdstack")
NAME = "org.opencontainers.image.ref.name"
PLACE = "io.tdstack.repository"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Files(Protocol):
    """Files by their paths."""

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        ...

    def open(self, path: str) -> io.BufferedReader:
        """Return a file's bytes; the file is there."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder."""

    root: Path

    def size(self, path: str) -> int | None:
        """Return a file's size in bytes, None where there is none."""
        try:
            return (self.root / path).stat().st_size
        except OSError:
            return None

    def open(self, path: str) -> io.BufferedReader:
        """Return a file's bytes."""
        return (self.root / path).open("rb")


class Shelf(Registry):
    """The registry; without `folder` it can only be read. Thread-safe."""

    def __init__(self, files: Files, folder: Path | None = None) -> None:
        self.host = ROOT.host
        self._files, self._folder = files, folder
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Descriptor] = {}
        self._tags: dict[tuple[str, str], str] = {}
        if folder is None:
            self._load()

    def document(self, repository: Repository, reference: str) -> Document | None:
        """Return a manifest or an index by tag or digest; None where there is none."""
        digest = (
            reference if is_digest(reference) else self._tags.get((_place(repository), reference))
        )
        found = self._held.get((_place(repository), digest or ""))
        if found is None:
            return None
        data = self.get_blob(repository, found)
        return Document(data, found.media_type)

    def head(self, repository: Repository, reference: str) -> Descriptor | None:
        """Return the descriptor of a manifest or an index; None where there is none."""
        document = self.document(repository, reference)
        return document.descriptor() if document else None

    def put_document(self, repository: Repository, reference: str, document: Document) -> None:
        """Store a manifest or an index under a tag or its digest."""
        tag = "" if is_digest(reference) else reference
        self._keep(repository, document, tag, _artifact_type(document))

    def has_blob(self, repository: Repository, digest: str) -> bool:
        """Return whether the blob is there; all repositories share them."""
        return self._files.size(_path(digest)) is not None

    def put_blob(
        self,
        repository: Repository,
        source: Path | bytes,
        descriptor: Descriptor,
    ) -> bool:
        """Store a blob; return False where it was there.

        Raises: IntegrityError when `source` is not the descriptor's bytes.
        """
        if self.has_blob(repository, descriptor.digest):
            return False
        if self._folder is None:
            raise UpstreamError("a bundle cannot be written to", where=descriptor.digest)
        got = digest_of(source) if isinstance(source, bytes) else f"sha256:{sha256_of(source)}"
        if got != descriptor.digest:
            raise IntegrityError(
                "a blob is not what it is said to be", expected=descriptor.digest, got=got
            )
        target = self._folder / _path(descriptor.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{threading.get_ident()}")
        if isinstance(source, bytes):
            temporary.write_bytes(source)
        else:
            try:
                os.link(source, temporary)
            except OSError:  # another file system
                shutil.copyfile(source, temporary)
        temporary.replace(target)
        return True

    def mount_blob(
        self, repository: Repository, descriptor: Descriptor, origin: Repository
    ) -> bool:
        """Return whether the blob is there; all repositories share them."""
        return self.has_blob(repository, descriptor.digest)

    def open_blob(
        self,
        repository: Repository,
        descriptor: Descriptor,
        begin: int = 0,
        seen: hashlib._Hash | None = None,
    ) -> BlobReader:
        """Return a blob as a stream whose digest is checked, as of any registry."""
        path = _path(descriptor.digest)
        size = self._files.size(path)

        def opener(begin: int) -> requests.Response:
            answer = requests.Response()
            answer.url = f"{self.host}/{path}"
            answer.status_code = 404 if size is None else 200
            if size is not None:
                answer.headers["Content-Length"] = str(size)
                answer.raw = self._files.open(path)
            return answer

        return BlobReader(descriptor, opener, _at_once, lambda _d, _n: None, begin, seen)

    def tags(self, repository: Repository) -> list[str]:
        """Return the repository's tags, sorted."""
        return sorted(tag for place, tag in self._tags if place == _place(repository))

    def delete(self, repository: Repository, digest: str) -> None:
        """Refuse: nothing is removed from a bundle."""
        raise UpstreamError("nothing can be deleted in a bundle", where=digest)

    def referrers(
        self, repository: Repository, digest: str, artifact_type: str = ""
    ) -> list[Descriptor]:
        """Return the manifests whose subject is `digest`, of one artifact type or of all."""
        found = []
        for (place, _), descriptor in sorted(self._held.items()):
            if place != _place(repository) or descriptor.media_type in INDEX_TYPES:
                continue
            if artifact_type and descriptor.artifact_type != artifact_type:
                continue
            manifest = ImageManifest.parse(self.get_blob(repository, descriptor))
            if manifest.subject and manifest.subject.digest == digest:
                found.append(replace(descriptor, annotations=manifest.annotations))
        return found

    def add_referrer(
        self,
        repository: Repository,
        subject: Descriptor,
        document: Document,
        artifact_type: str,
        annotations: Mapping[str, str],
    ) -> None:
        """Store a manifest whose subject is `subject`."""
        self._keep(repository, document, "", artifact_type)

    def places(self) -> list[Repository]:
        """Return the repositories that hold something, sorted."""
        names = {place for place, _ in self._held}
        return [ROOT.child(name) if name else ROOT for name in sorted(names)]

    def documents(self, repository: Repository) -> list[Descriptor]:
        """Return every document of a repository, by digest."""
        place = _place(repository)
        return [d for (at, _), d in sorted(self._held.items()) if at == place]

    def save(self) -> None:
        """Write index.json; equal contents give equal bytes.

        Raises: OSError.
        """
        assert self._folder is not None
        entries = []
        for (place, digest), descriptor in sorted(self._held.items()):
            tags = sorted(t for (at, t), d in self._tags.items() if (at, d) == (place, digest))
            for tag in tags or [""]:
                name = {NAME: f"{place}:{tag}" if place else tag} if tag else {}
                entries.append(replace(descriptor, annotations={PLACE: place, **name}))
        (self._folder / "index.json").write_bytes(Index(tuple(entries)).document().data)
        (self._folder / "oci-layout").write_bytes(LAYOUT)

    def _keep(self, repository: Repository, document: Document, tag: str, kind: str) -> None:
        self.put_blob(repository, document.data, document.descriptor())
        place = _place(repository)
        with self._lock:
            held = self._held.get((place, document.digest))
            # A manifest may tell no artifact type of its own; whoever lists it does.
            kind = kind or (held.artifact_type if held else "")
            self._held[place, document.digest] = replace(document.descriptor(), artifact_type=kind)
            if tag:
                self._tags[place, tag] = document.digest

    def _load(self) -> None:
        if self._files.size("index.json") is None:
            raise IntegrityError("the bundle's images have no index", where="images/index.json")
        with self._files.open("index.json") as stream:
            index = Index.parse(stream.read())
        for entry in index.manifests:
            place, name = entry.annotations.get(PLACE, ""), entry.annotations.get(NAME, "")
            self._held[place, entry.digest] = replace(entry, annotations={})
            if name:
                self._tags[place, name.rpartition(":")[2]] = entry.digest


def _artifact_type(document: Document) -> str:
    if document.media_type in INDEX_TYPES:
        return ""
    return ImageManifest.parse(document.data).artifact_type


def _place(repository: Repository) -> str:
    return repository.path.removeprefix(ROOT.path).lstrip("/")


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _at_once(what: str, action: Callable[[], bytes], backoff: Backoff) -> bytes:
    # Waiting makes no file whole.
    try:
        return action()
    except TransientError as error:
        raise IntegrityError("a blob ends too early", where=what, got=error.reason) from error
