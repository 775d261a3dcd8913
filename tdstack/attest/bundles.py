"""Keyless signatures in a registry: sigstore bundles, attached to an image and found again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tdstack.attest.artifacts import attached, blob_of, put_attachment
from tdstack.attest.keyless import (
    BUNDLE_TYPE,
    Identity,
    SignedStatement,
    attachment_of,
    check_signed,
    claims_to_sign,
    statement_for,
)
from tdstack.errors import IntegrityError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository

ASK = "do not use it; ask whoever published it, and whether --identity and --issuer are theirs"


class KeylessSigner(Protocol):
    """Whoever can sign a statement as an identity."""

    def sign(self, statement: bytes) -> bytes:
        """Return the bundle, as JSON, of the signed statement."""


class Verifier(Protocol):
    """What tells whether a bundle was signed by an identity."""

    def verify(self, bundle: bytes, identity: Identity, where: str) -> SignedStatement:
        """Return what a bundle holds.

        Raises: IntegrityError for one that was not signed by this identity, or does not hold.
        """


def put_bundle(
    registry: Registry, repository: Repository, image: Descriptor, signer: KeylessSigner
) -> str:
    """Sign a manifest and attach the bundle; return the digest of what was attached.

    Every signing is an entry in a public log with a time of its own, so signing again adds a
    bundle.
    Raises: UpstreamError; HostError and TimeLimitError as the signer does.
    """
    bundle = signer.sign(statement_for(image.digest))
    return put_attachment(registry, repository, image, attachment_of(bundle))


@dataclass(frozen=True)
class Keyless:
    """Who must have signed images, and what tells whether they did."""

    identity: Identity
    verifier: Verifier

    def check(self, registry: Registry, repository: Repository, image: Descriptor) -> Identity:
        """Return the identity, which signed the manifest `image`.

        Raises: IntegrityError for a manifest without a keyless signature, or with those of others,
        of other bytes or of another manifest alone; UpstreamError.
        """
        where = f"{repository}@{image.digest}"
        refused: list[IntegrityError] = []
        for bundle in _bundles(registry, repository, image):
            try:
                statement = self.verifier.verify(bundle, self.identity, where)
                check_signed(statement, image.digest, where, ASK)
                return self.identity
            except IntegrityError as error:
                # Anybody who may push can attach more; one that holds is enough.
                refused.append(error)
        raise _none_holds(refused, self.identity, where)


def _none_holds(
    refused: Sequence[IntegrityError], identity: Identity, where: str
) -> IntegrityError:
    if len(refused) > 1:
        return IntegrityError(
            "none of the image's keyless signatures holds",
            where=where,
            expected=f"a signature of {identity}",
            got="; ".join(f"{error.what}: {error.got}" for error in refused)[:1000],
            remedy=ASK,
        )
    if refused:
        return refused[0]
    return IntegrityError(
        "the image has no keyless signature, or it was removed",
        where=where,
        expected=f"a signature of {identity}",
        got="none",
        remedy=ASK,
    )


def _bundles(registry: Registry, repository: Repository, image: Descriptor) -> Iterator[bytes]:
    for manifest in attached(registry, repository, image.digest, [BUNDLE_TYPE]):
        bundle = blob_of(registry, repository, manifest)
        if claims_to_sign(bundle):
            yield bundle
