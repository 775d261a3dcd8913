"""DSSE 1.0 envelopes: a payload, its type, and signatures over both. Pure.

https://github.com/secure-systems-lab/dsse: protocol.md and envelope.md.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from tdstack.attest.keys import PublicKey, Signer
from tdstack.errors import IntegrityError

MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, signer: Signer) -> bytes:
    """Return the envelope as JSON; equal payloads and keys give equal bytes."""
    signature = signer.sign(pae(payload_type, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": signer.public.fingerprint, "sig": base64.b64encode(signature).decode()}
        ],
    }
    return json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()


def payload_of(envelope: bytes, payload_type: str, where: str) -> bytes:
    """Return an envelope's payload without asking who signed it.

    Raises: IntegrityError for what is no envelope, or one of another type.
    """
    return _parsed(envelope, payload_type, where)[0]


def open_envelope(
    envelope: bytes, payload_type: str, keys: Sequence[PublicKey], where: str
) -> tuple[bytes, PublicKey]:
    """Return the payload, and the key of `keys` that signed it.

    The key that an envelope names is a hint which nobody signed, so every key is tried.
    Raises: IntegrityError for what is no envelope, one of another type, or none of the keys'.
    """
    payload, named, signatures = _parsed(envelope, payload_type, where)
    signed = pae(payload_type, payload)
    for key in keys:
        if any(key.verifies(signature, signed) for signature in signatures):
            return payload, key
    ours = {key.fingerprint for key in keys}
    raise IntegrityError(
        "the signature does not belong to these bytes: they were altered"
        if ours & set(named)
        else "signed with a foreign key",
        where=where,
        expected=f"a signature of {', '.join(sorted(ours))}",
        got=", ".join(named) or "no signature",
        remedy="do not use it; ask whoever published it",
    )


def _parsed(envelope: bytes, payload_type: str, where: str) -> tuple[bytes, list[str], list[bytes]]:
    try:
        data = json.loads(envelope)
        found = str(data["payloadType"])
        payload = _decoded(data["payload"])
        named = [str(s.get("keyid", "")) for s in data["signatures"]]
        signatures = [_decoded(s["sig"]) for s in data["signatures"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "this is no DSSE envelope", where=where, got=f"{type(error).__name__}: {error}"[:200]
        ) from error
    if found != payload_type:
        raise IntegrityError(
            "the envelope holds something else", where=where, expected=payload_type, got=found[:100]
        )
    return payload, named, signatures


def _decoded(text: str) -> bytes:
    # Both alphabets must be accepted (protocol.md).
    try:
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
