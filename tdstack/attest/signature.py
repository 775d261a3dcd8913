"""Signatures of images in cosign's "simple signing" form. Pure.

The payload is the JSON of containers/image's `docs/containers-signature.5.md` (`critical`,
`optional`); the signature is over its bytes. cosign's SIGNATURE_SPEC.md says how both are kept:
an image manifest at the tag `sha256-<hex>.sig` with one layer per signature, the payload as the
layer's blob, the signature in base64 as an annotation of its descriptor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tdstack.attest.keys import PublicKey, Signer
from tdstack.errors import IntegrityError

PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
KIND = "cosign container image signature"


@dataclass(frozen=True)
class Signature:
    """One signature: the signed bytes, and the 64 bytes over them."""

    payload: bytes
    signature: bytes

    def signed_digest(self, where: str) -> str:
        """Return the digest of the manifest that the payload names.

        Raises: IntegrityError for a payload that is none of cosign's.
        """
        try:
            critical = json.loads(self.payload)["critical"]
            kind, digest = critical["type"], critical["image"]["docker-manifest-digest"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(
                "the signed payload cannot be read",
                where=where,
                expected="cosign's simple signing",
                got=f"{type(error).__name__}: {error}"[:200],
            ) from error
        if kind != KIND or not isinstance(digest, str):
            raise IntegrityError(
                "the signed payload is not for an image",
                where=where,
                expected=KIND,
                got=str(kind)[:100],
            )
        return digest

    def signer_among(self, keys: Sequence[PublicKey]) -> PublicKey | None:
        """Return the key whose signature this is, or None."""
        return next((k for k in keys if k.verifies(self.signature, self.payload)), None)


def payload_for(repository: str, digest: str) -> bytes:
    """Return what is signed for the manifest `digest` in `repository` (host/path).

    Equal arguments give equal bytes.
    """
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": KIND,
    }
    payload = {"critical": critical, "optional": None}
    return json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()


def sign(repository: str, digest: str, signer: Signer) -> Signature:
    """Return the signature of the manifest `digest`."""
    payload = payload_for(repository, digest)
    return Signature(payload, signer.sign(payload))


def tag_of(digest: str) -> str:
    """Return the tag at which cosign looks for the signatures of `digest`."""
    return f"{digest.replace(':', '-')}.sig"


def config_for(diff_ids: Sequence[str]) -> bytes:
    """Return the configuration of a signatures' manifest: what cosign writes, without a clock."""
    config = {
        "architecture": "",
        "config": {},
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
