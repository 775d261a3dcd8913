"""Keyless signatures: who signed is an identity that an issuer vouches for, not a key. Pure.

The form is the one that cosign writes since version 3: an in-toto statement about the manifest's
digest in a DSSE envelope, in a sigstore bundle 0.3 (sigstore/protobuf-specs), attached to the image
as sigstore/cosign's specs/BUNDLE_SPEC.md says.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from tdstack.attest.artifacts import Attachment
from tdstack.attest.provenance import MEDIA_TYPE as STATEMENT_TYPE
from tdstack.attest.provenance import STATEMENT
from tdstack.errors import IntegrityError, UsageError

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE = "https://sigstore.dev/cosign/sign/v1"
CONTENT_ANNOTATION = "dev.sigstore.bundle.content"
PREDICATE_ANNOTATION = "dev.sigstore.bundle.predicateType"
# Fulcio's certificate extension with the issuer's URL (sigstore/fulcio, docs/oid-info.md).
ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")


@dataclass(frozen=True)
class Identity:
    """Who signed: an e-mail address or a URI, as the certificate has it, and who vouches for it."""

    name: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.name} ({self.issuer})"


@dataclass(frozen=True)
class SignedStatement:
    """What a bundle holds that was verified: the payload and its media type."""

    media_type: str
    payload: bytes


def identity_of(name: str, issuer: str) -> Identity | None:
    """Return the identity that --identity and --issuer name; None for neither.

    Raises: UsageError for one without the other: a name means nothing without its issuer.
    """
    if bool(name) != bool(issuer):
        raise UsageError(
            "an identity is a name and the issuer that vouches for it",
            where="--identity" if name else "--issuer",
            expected="--identity WHO --issuer URL",
            remedy="the issuer of GitHub's workflows is https://token.actions.githubusercontent.com"
            if name
            else "name who must have signed with --identity",
        )
    return Identity(name, issuer) if name else None


def identity_in(certificate: x509.Certificate) -> Identity:
    """Return whom a certificate of Fulcio names; what it lacks is empty."""
    name = issuer = ""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = extension.value
            found = names.get_values_for_type(x509.RFC822Name)
            found += names.get_values_for_type(x509.UniformResourceIdentifier)
            name = found[0] if found else ""
        elif extension.oid == ISSUER and isinstance(extension.value, x509.UnrecognizedExtension):
            issuer = extension.value.value.decode(errors="replace")
    return Identity(name, issuer)


def statement_for(digest: str) -> bytes:
    """Return the statement that an image's manifest is signed; equal digests give equal bytes."""
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": "", "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE,
        "predicate": {},
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def attachment_of(bundle: bytes) -> Attachment:
    """Return a bundle as it is attached to an image."""
    told = {CONTENT_ANNOTATION: "dsse-envelope", PREDICATE_ANNOTATION: PREDICATE}
    return Attachment(bundle, BUNDLE_TYPE, BUNDLE_TYPE, told)


def claims_to_sign(bundle: bytes) -> bool:
    """Return whether a bundle says that it signs an image: other statements are bundles, too.

    Nobody vouches for the answer; it chooses which bundles are verified.
    """
    try:
        envelope: dict[str, Any] = json.loads(bundle)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        return bool(json.loads(payload)["predicateType"] == PREDICATE)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return False


def check_signed(statement: SignedStatement, digest: str, where: str, remedy: str) -> None:
    """Compare a verified statement with the image that it is found at.

    Raises: IntegrityError when it is no signature of an image, or of another one.
    """
    try:
        data: dict[str, Any] = json.loads(statement.payload)
        kind = statement.media_type, data["_type"], data["predicateType"]
        subjects = {f"sha256:{s['digest']['sha256']}" for s in data["subject"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(
            "the signed statement cannot be read",
            where=where,
            expected=f"{STATEMENT} with {PREDICATE}",
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    if kind != (STATEMENT_TYPE, STATEMENT, PREDICATE):
        raise IntegrityError(
            "what was signed is no signature of an image",
            where=where,
            expected=f"{STATEMENT} with {PREDICATE}",
            got=", ".join(map(str, kind))[:200],
            remedy=remedy,
        )
    if subjects != {digest}:
        raise IntegrityError(
            "the signature belongs to another image",
            where=where,
            expected=digest,
            got=", ".join(sorted(subjects))[:400] or "no subject",
            remedy=remedy,
        )
