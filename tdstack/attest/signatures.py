"""Signatures in a registry: put beside the others of an image, and read back."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tdstack.assemble.image import CONFIG_TYPE
from tdstack.attest import signature
from tdstack.attest.artifacts import (
    MOST,
    TRIES,
    attached,
    bare,
    is_listed,
    list_document,
    put_bytes,
    settle,
)
from tdstack.attest.keys import PublicKey, Signer
from tdstack.attest.signature import Signature
from tdstack.errors import IntegrityError, UpstreamError, UsageError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, Document, ImageManifest, digest_of
from tdstack.registry.reference import Repository

# Which key it was, for messages alone: nobody signed this annotation.
HINT = "io.tdstack.key"
ASK = "do not use it; ask whoever published it, and whether --key is theirs"


@dataclass(frozen=True)
class Found:
    """A signature in the registry, and the fingerprint that it claims (empty: none)."""

    signature: Signature
    hint: str


def put_signature(
    registry: Registry, repository: Repository, image: Descriptor, signer: Signer
) -> str:
    """Sign a manifest; return the digest of its signatures, or "" when this one was there.

    Signatures by other keys stay.
    Raises: UpstreamError, also when others keep overwriting the tag; IntegrityError when
    something else lies at the tag of the signatures.
    """
    ours = signature.sign(str(repository), image.digest, signer)
    layer = Descriptor(
        signature.PAYLOAD_TYPE,
        digest_of(ours.payload),
        len(ours.payload),
        {
            signature.ANNOTATION: base64.b64encode(ours.signature).decode(),
            HINT: signer.public.fingerprint,
        },
    )
    tag = signature.tag_of(image.digest)
    for attempt in range(TRIES + 1):
        begin = time.monotonic()
        held = registry.document(repository, tag)
        layers = ImageManifest.parse(held.data).layers if held else ()
        if held and any(_same(layer, other) for other in layers):
            if is_listed(registry, repository, image.digest, held, signature.ARTIFACT_TYPE):
                return held.digest if attempt else ""
            _list(registry, repository, image, held)
            return held.digest
        if attempt == TRIES:
            break
        document = _document(image, (*layers, layer))
        put_bytes(registry, repository, ours.payload, signature.PAYLOAD_TYPE)
        put_bytes(registry, repository, _config((*layers, layer)), CONFIG_TYPE)
        _list(registry, repository, image, document)
        registry.put_document(repository, tag, document)
        settle(begin, attempt)
    raise UpstreamError(
        "the signatures' tag does not keep a signature",
        where=f"{repository}:{tag}",
        remedy="push again when no other push of this image is running",
    )


def check_signature(
    registry: Registry, repository: Repository, image: Descriptor, keys: Sequence[PublicKey]
) -> str:
    """Return the fingerprint of the one of `keys` that signed a manifest.

    Raises: IntegrityError for a manifest that is not signed, or by other keys alone, or whose
    signature is of other bytes or another manifest; UpstreamError; UsageError without keys.
    """
    if not keys:
        raise UsageError("there is no key to check with", where="--key", expected="a public key")
    where = f"{repository}@{image.digest}"
    ours = ", ".join(key.fingerprint for key in keys)
    others: list[Found] = []
    elsewhere: list[str] = []
    for found in signatures_of(registry, repository, image):
        key = found.signature.signer_among(keys)
        if key is None:
            others.append(found)
            continue
        digest = found.signature.signed_digest(where)
        if digest == image.digest:
            return key.fingerprint
        elsewhere.append(digest)
    if elsewhere:
        raise IntegrityError(
            "the signature belongs to another image",
            where=where,
            expected=image.digest,
            got=elsewhere[0],
            remedy=ASK,
        )
    if not others:
        raise IntegrityError(
            "the image is not signed, or its signature was removed",
            where=where,
            expected=f"a signature of {ours}",
            got="none",
            remedy=ASK,
        )
    hints = [found.hint for found in others]
    altered = any(hint in {key.fingerprint for key in keys} for hint in hints)
    raise IntegrityError(
        "the signature does not belong to these bytes: they were altered"
        if altered
        else "the image is signed with a foreign key",
        where=where,
        expected=f"a signature of {ours}",
        got=", ".join(hint or "an unnamed key" for hint in hints),
        remedy=ASK,
    )


def signatures_of(registry: Registry, repository: Repository, image: Descriptor) -> Iterator[Found]:
    """Yield the signatures of a manifest: those at cosign's tag, then those listed as referrers.

    Raises: IntegrityError for malformed manifests; UpstreamError.
    """
    seen: set[tuple[str, str]] = set()
    for layer in _layers(registry, repository, image):
        text = layer.annotations.get(signature.ANNOTATION, "")
        if layer.media_type != signature.PAYLOAD_TYPE or (layer.digest, text) in seen:
            continue
        seen.add((layer.digest, text))
        if len(seen) > MOST:
            return
        payload, raw = registry.get_blob(repository, layer), b""
        with suppress(binascii.Error, ValueError):  # nonsense is a signature of nobody's
            raw = base64.b64decode(text, validate=True)
        yield Found(Signature(payload, raw), layer.annotations.get(HINT, ""))


def _layers(registry: Registry, repository: Repository, image: Descriptor) -> Iterator[Descriptor]:
    if held := registry.document(repository, signature.tag_of(image.digest)):
        yield from ImageManifest.parse(held.data).layers
    for manifest in attached(registry, repository, image.digest, [signature.ARTIFACT_TYPE]):
        yield from manifest.layers


def _document(image: Descriptor, layers: tuple[Descriptor, ...]) -> Document:
    config = Descriptor.of(_config(layers), CONFIG_TYPE)
    return ImageManifest(config, layers, bare(image), signature.ARTIFACT_TYPE).document()


def _config(layers: tuple[Descriptor, ...]) -> bytes:
    return signature.config_for([layer.digest for layer in layers])


def _list(
    registry: Registry, repository: Repository, image: Descriptor, document: Document
) -> None:
    list_document(registry, repository, image, document, signature.ARTIFACT_TYPE, {})


def _same(one: Descriptor, other: Descriptor) -> bool:
    return one.digest == other.digest and (
        one.annotations.get(signature.ANNOTATION) == other.annotations.get(signature.ANNOTATION)
    )
