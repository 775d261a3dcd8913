"""The documents of a registry as data: descriptors, manifests, indexes (OCI image-spec 1.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tdstack.assemble.image import MANIFEST_TYPE
from tdstack.errors import IntegrityError
from tdstack.registry.reference import is_digest

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
# What Docker wrote before the OCI; the fields that are read here are the same.
DOCKER_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (MANIFEST_TYPE, DOCKER_MANIFEST_TYPE)
INDEX_TYPES = (INDEX_TYPE, DOCKER_INDEX_TYPE)
# What a registry is asked for. One that got no such list may convert the document.
ACCEPTED = (*MANIFEST_TYPES, *INDEX_TYPES)
# The config of a manifest that is no image (image-spec 1.1, "guidance for an empty descriptor").
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
MAX_DOCUMENT = 4 << 20  # bytes; the limit that distribution-spec tells registries to keep


def digest_of(data: bytes) -> str:
    """Return `sha256:<hex>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Descriptor:
    """What names other content: its media type, digest and size in bytes.

    `platform` is `os/architecture` or `os/architecture/variant`, empty where none is given.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    platform: str = ""

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Descriptor:
        """Return the descriptor of `data`."""
        return cls(media_type, digest_of(data), len(data))

    @property
    def sha256(self) -> str:
        """Return the digest's hex digits."""
        return self.digest.removeprefix("sha256:")

    def as_json(self) -> dict[str, object]:
        """Return the descriptor as it stands in a document; empty fields are left out."""
        data: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        if self.artifact_type:
            data["artifactType"] = self.artifact_type
        if self.platform:
            names = ("os", "architecture", "variant")
            data["platform"] = dict(zip(names, self.platform.split("/"), strict=False))
        return data


@dataclass(frozen=True)
class Document:
    """A manifest or an index as its exact bytes, which its digest stands for."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        """Return `sha256:<hex>` of the bytes."""
        return digest_of(self.data)

    def descriptor(self) -> Descriptor:
        """Return the descriptor of this document."""
        return Descriptor.of(self.data, self.media_type)


@dataclass(frozen=True)
class ImageManifest:
    """A manifest: a config and layers from the bottom up, or an artifact and its `subject`."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, data: bytes) -> ImageManifest:
        """Read an OCI manifest or Docker's (version 2, schema 2).

        Raises: IntegrityError, with the place in the document, for anything else.
        """
        top = _top(data, MANIFEST_TYPES, MANIFEST_TYPE)
        # A document that can be read as either kind would mean two images under one digest.
        if "manifests" in top:
            raise _malformed("manifests", "no such field beside config and layers", "one")
        subject = top.get("subject")
        return cls(
            _descriptor(top.get("config"), "config"),
            _descriptors(top.get("layers"), "layers"),
            None if subject is None else _descriptor(subject, "subject"),
            _text(top.get("artifactType", ""), "artifactType"),
            _annotations(top.get("annotations"), "annotations"),
        )

    def document(self) -> Document:
        """Return the manifest's canonical bytes: sorted keys, no spaces."""
        data: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.config.as_json(),
            "layers": [layer.as_json() for layer in self.layers],
        }
        if self.subject:
            data["subject"] = self.subject.as_json()
        if self.artifact_type:
            data["artifactType"] = self.artifact_type
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        return Document(_canonical(data), MANIFEST_TYPE)


@dataclass(frozen=True)
class Index:
    """An image index: manifests, one for each platform or one for each referrer."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, data: bytes) -> Index:
        """Read an OCI index or Docker's manifest list.

        Raises: IntegrityError, with the place in the document, for anything else.
        """
        top = _top(data, INDEX_TYPES, INDEX_TYPE)
        if found := [name for name in ("config", "layers") if name in top]:
            raise _malformed(found[0], "no such field beside manifests", "one")
        return cls(
            _descriptors(top.get("manifests"), "manifests"),
            _annotations(top.get("annotations"), "annotations"),
        )

    def document(self) -> Document:
        """Return the index's canonical bytes: sorted keys, no spaces."""
        data: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [manifest.as_json() for manifest in self.manifests],
        }
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        return Document(_canonical(data), INDEX_TYPE)


def parse_json(data: bytes, what: str) -> Mapping[str, Any]:
    """Return the JSON object in `data`.

    Raises: IntegrityError, naming the document as `what`, when it is none.
    """
    try:
        top = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{what} is not JSON", got=str(error)[:200]) from error
    if not isinstance(top, dict):
        raise IntegrityError(f"{what} is not a JSON object", got=type(top).__name__)
    return top


def _top(data: bytes, types: tuple[str, ...], default: str) -> Mapping[str, Any]:
    top = parse_json(data, "the registry's document")
    if top.get("schemaVersion") != 2:
        raise _malformed("schemaVersion", "2", repr(top.get("schemaVersion")))
    # The OCI lets a document leave its type out.
    if (found := top.get("mediaType", default)) not in types:
        raise _malformed("mediaType", " or ".join(types), repr(found))
    return top


def _descriptors(value: object, where: str) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise _malformed(where, "a list of descriptors", type(value).__name__)
    return tuple(_descriptor(entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _malformed(where, "a descriptor", type(value).__name__)
    size, digest = value.get("size"), value.get("digest")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _malformed(f"{where}.size", "a number of bytes", repr(size))
    if not isinstance(digest, str) or not is_digest(digest):
        raise _malformed(f"{where}.digest", "sha256: and 64 hex digits", repr(digest))
    return Descriptor(
        _text(value.get("mediaType"), f"{where}.mediaType"),
        digest,
        size,
        _annotations(value.get("annotations"), f"{where}.annotations"),
        _text(value.get("artifactType", ""), f"{where}.artifactType"),
        _platform(value.get("platform"), f"{where}.platform"),
    )


def _platform(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise _malformed(where, "a platform", type(value).__name__)
    parts = [_text(value.get(name), f"{where}.{name}") for name in ("os", "architecture")]
    if variant := value.get("variant"):
        parts.append(_text(variant, f"{where}.variant"))
    return "/".join(parts)


def _annotations(value: object, where: str) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _malformed(where, "an object of strings", type(value).__name__)
    return {name: _text(text, f"{where}.{name}") for name, text in value.items()}


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _malformed(where, "a string", type(value).__name__)
    return value


def _malformed(where: str, expected: str, got: str) -> IntegrityError:
    what = "the registry's document is malformed"
    return IntegrityError(what, where=where, expected=expected, got=got[:200])


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
