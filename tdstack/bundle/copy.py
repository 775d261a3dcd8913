"""Images from one registry to another, with what is attached to them; tags come last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tdstack.assemble.tar import CHUNK
from tdstack.attest.signature import tag_of
from tdstack.errors import IntegrityError
from tdstack.registry.client import Registry
from tdstack.registry.oci import INDEX_TYPES, Descriptor, Document, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.space import check_room


@dataclass
class Copier:
    """Copies images; `sent` counts the bytes that the target did not have.

    A blob lies in `folder` while it is on its way, one at a time.
    """

    source: Registry
    target: Registry
    folder: Path
    say: Callable[[str], None]
    sent: int = 0
    _homes: dict[str, Repository] = field(default_factory=dict)

    def image(self, origin: Repository, place: Repository, image: Descriptor) -> None:
        """Copy a manifest with its blobs, its referrers and its signatures.

        Raises: IntegrityError when something is missing or has other bytes; UpstreamError.
        """
        self._manifest(origin, place, image.digest)
        for referrer in self.source.referrers(origin, image.digest):
            document = self._blobs(origin, place, referrer.digest)
            held = self.target.referrers(place, image.digest, referrer.artifact_type)
            if all(other.digest != referrer.digest for other in held):
                self.target.add_referrer(
                    place, image, document, referrer.artifact_type, referrer.annotations
                )
        self._signatures(origin, place, image)

    def _signatures(self, origin: Repository, place: Repository, image: Descriptor) -> None:
        tag = tag_of(image.digest)
        document = self.source.document(origin, tag)
        if document is None:
            return
        held = self.target.document(place, tag)
        if held is None:
            self._blobs(origin, place, document.digest)
            self.target.put_document(place, tag, document)
        elif held.digest != document.digest:
            self.say(f"  {place}:{tag} holds other signatures; they stay")

    def _manifest(self, origin: Repository, place: Repository, digest: str) -> None:
        document = self._blobs(origin, place, digest)
        self.target.put_document(place, digest, document)

    def _blobs(self, origin: Repository, place: Repository, digest: str) -> Document:
        document = self.source.document(origin, digest)
        if document is None or document.media_type in INDEX_TYPES:
            raise IntegrityError("an image's manifest is missing", where=f"{origin}@{digest}")
        manifest = ImageManifest.parse(document.data)
        for blob in {b.digest: b for b in (manifest.config, *manifest.layers)}.values():
            self._blob(origin, place, blob)
        return document

    def _blob(self, origin: Repository, place: Repository, blob: Descriptor) -> None:
        home = self._homes.setdefault(blob.digest, place)
        if self.target.has_blob(place, blob.digest):
            return
        if home != place and self.target.mount_blob(place, blob, home):
            return
        check_room(self.folder, blob.size, "for a layer on its way")
        spool = self.folder / "blob"
        with self.source.open_blob(origin, blob) as stream, spool.open("wb") as out:
            while piece := stream.read(CHUNK):
                out.write(piece)
        if self.target.put_blob(place, spool, blob):
            self.sent += blob.size
        spool.unlink()
