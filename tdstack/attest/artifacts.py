"""Things attached to an image: manifests with a `subject` (image-spec 1.1), found as referrers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import EMPTY, EMPTY_TYPE, Descriptor, Document, ImageManifest
from tdstack.registry.reference import Repository

# More than this many attachments of one kind are not looked at: nobody makes them in good faith.
MOST = 64
TRIES = 6
SHORTEST_S, LONGEST_S = 0.1, 3.0


@dataclass(frozen=True)
class Attachment:
    """What is attached: one blob, its media type, and the artifact type it is found by."""

    data: bytes
    media_type: str
    artifact_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    def document(self, subject: Descriptor) -> Document:
        """Return the manifest that attaches it; equal arguments give equal bytes. Pure."""
        return ImageManifest(
            Descriptor.of(EMPTY, EMPTY_TYPE),
            (Descriptor.of(self.data, self.media_type),),
            bare(subject),
            self.artifact_type,
            self.annotations,
        ).document()


def bare(descriptor: Descriptor) -> Descriptor:
    """Return a descriptor as `subject` has it: media type, digest and size. Pure."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


def put_attachment(
    registry: Registry, repository: Repository, subject: Descriptor, attachment: Attachment
) -> str:
    """Attach something to an image; return its manifest's digest, or "" when it was there.

    Raises: UpstreamError; IntegrityError.
    """
    document = attachment.document(subject)
    if is_listed(registry, repository, subject.digest, document, attachment.artifact_type):
        return ""
    put_bytes(registry, repository, EMPTY, EMPTY_TYPE)
    put_bytes(registry, repository, attachment.data, attachment.media_type)
    list_document(
        registry, repository, subject, document, attachment.artifact_type, attachment.annotations
    )
    return document.digest


def list_document(
    registry: Registry,
    repository: Repository,
    subject: Descriptor,
    document: Document,
    artifact_type: str,
    annotations: Mapping[str, str],
) -> None:
    """Put a manifest whose blobs are there, so that it is listed as a referrer of its subject.

    Where the registry has no referrers API, the list is an index at a tag that every client reads
    and writes anew (distribution-spec 1.1, "Referrers Tag Schema"); two at once may lose an entry.
    So it is read again after it was written.
    Raises: UpstreamError when others keep overwriting it.
    """
    for attempt in range(TRIES):
        begin = time.monotonic()
        registry.add_referrer(repository, bare(subject), document, artifact_type, annotations)
        settle(begin, attempt)
        if is_listed(registry, repository, subject.digest, document, artifact_type):
            return
    raise UpstreamError(
        "the list of what is attached to the image does not keep an entry",
        where=f"{repository}@{subject.digest}",
        expected=f"{artifact_type} {document.digest}",
        remedy="push again when no other push of this image is running",
    )


def settle(begin: float, attempt: int) -> None:
    """Wait until whoever read a list before we wrote it has written, too.

    We read it at time `begin`; others take about as long as we did. After the first attempt
    clients wait for different times, so that one of them is alone.
    """
    spread = random.uniform(0.05, 0.2) * 2**attempt if attempt else 0.0
    took = time.monotonic() - begin
    time.sleep(min(max(2 * took, SHORTEST_S), LONGEST_S) + spread)


def is_listed(
    registry: Registry, repository: Repository, digest: str, document: Document, artifact_type: str
) -> bool:
    """Return whether a document is among the referrers of `digest`, and is still there."""
    listed = registry.referrers(repository, digest, artifact_type)
    return any(d.digest == document.digest for d in listed) and (
        registry.head(repository, document.digest) is not None
    )


def put_bytes(registry: Registry, repository: Repository, data: bytes, media_type: str) -> None:
    """Put a small blob where it is not there yet."""
    registry.put_blob(repository, data, Descriptor.of(data, media_type))


def attached(
    registry: Registry, repository: Repository, digest: str, artifact_types: Sequence[str]
) -> Iterator[ImageManifest]:
    """Yield the manifests of these types that are attached to the manifest `digest`.

    A list may name what is gone: that is passed over.
    Raises: UpstreamError; IntegrityError for a document that is not what its digest says, that
    is malformed, or that belongs to another image.
    """
    for artifact_type in artifact_types:
        for descriptor in registry.referrers(repository, digest, artifact_type)[:MOST]:
            document = registry.document(repository, descriptor.digest)
            if document is None:
                continue
            manifest = ImageManifest.parse(document.data)
            if manifest.subject is None or manifest.subject.digest != digest:
                raise IntegrityError(
                    "something is listed as attached to the image that belongs to another",
                    where=f"{repository}@{descriptor.digest}",
                    expected=digest,
                    got=manifest.subject.digest if manifest.subject else "no subject",
                    remedy="delete the list's entry, and push the image's attachments again",
                )
            yield manifest


def blob_of(registry: Registry, repository: Repository, manifest: ImageManifest) -> bytes:
    """Return the one blob of an attachment.

    Raises: IntegrityError for none or several, and as Registry.get_blob does; UpstreamError.
    """
    if len(manifest.layers) != 1:
        raise IntegrityError(
            "an attachment has not one blob", where=str(repository), got=str(len(manifest.layers))
        )
    return registry.get_blob(repository, manifest.layers[0])
