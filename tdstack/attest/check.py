"""Is what is attached to an image true, and of this image? Each check raises, or returns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tdstack.attest import dsse, provenance, sbom
from tdstack.attest.artifacts import attached, blob_of
from tdstack.attest.contents import Contents, differences, identity_of
from tdstack.attest.keys import PublicKey
from tdstack.attest.provenance import Statement, parse_statement
from tdstack.attest.sbom import KERNELS
from tdstack.attest.signatures import ASK, check_signature
from tdstack.errors import IntegrityError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository

__all__ = [
    "check_sbom",
    "check_signature",
    "check_statement",
    "read_provenance",
    "read_sbom",
]

SHOWN = 5
PUSH = "push the image again with its attachments"


def check_statement(statement: Statement, digest: str, contents: Contents, where: str) -> None:
    """Compare a statement with the image: its digest, and the materials of its slice. Pure.

    Raises: IntegrityError naming what differs.
    """
    if statement.subjects != {digest}:
        raise _elsewhere(statement, digest, where)
    found = dict(statement.packages)
    if fork := contents.fork:
        source = f"pkg:generic/triton-distributed@{fork.sha256[:8]}"
        if found.pop(source, "") != fork.sha256:
            raise _disagree("provenance", [f"{fork.name} is not listed"], where)
    # What had no hash when it was built cannot be listed as a material.
    unhashed = {m.identity: "" for m in contents.materials if not m.sha256}
    if wrong := differences(contents, {**unhashed, **found}):
        raise _disagree("provenance", wrong, where)


def check_sbom(data: bytes, digest: str, contents: Contents, where: str) -> int:
    """Compare a bill with the image: its digest, packages with hashes, cubins. Pure.

    Returns: the number of components.
    Raises: IntegrityError naming what differs.
    """
    subject, components = _parsed(data, where)
    if subject != digest:
        raise IntegrityError(
            "the bill of materials is of another image",
            where=where,
            expected=digest,
            got=subject or "no image",
            remedy=ASK,
        )
    own = "pkg:generic/tdstack/"
    kernels = contents.kernels
    ours = {f"{own}{name}@{kernels.version}" for name in (KERNELS, contents.cubins_name)}
    found = {i: h for i, (h, _) in components.items() if i not in ours}
    wrong = differences(contents, found)
    wrong += [f"{name} is not listed" for name in sorted(ours - components.keys())]
    cubins = components.get(f"{own}{contents.cubins_name}@{kernels.version}", ("", {}))[1]
    wanted = {f"tdstack:cubins:{arch}": str(n) for arch, n in kernels.cubins.items()}
    wanted |= {"tdstack:triton": kernels.triton, "tdstack:ptxas": kernels.ptxas}
    if kernels.bundle:
        wanted["tdstack:manifest-sha256"] = kernels.bundle
    wrong += [
        f"{name}: {cubins.get(name, 'not listed')}, the image's is {text}"
        for name, text in wanted.items()
        if cubins.get(name) != text
    ]
    if wrong:
        raise _disagree("bill of materials", wrong, where)
    return len(components)


def read_provenance(
    registry: Registry, repository: Repository, image: Descriptor, keys: Sequence[PublicKey]
) -> tuple[Statement, str]:
    """Return an image's provenance, and the fingerprint of the one of `keys` that signed it.

    Without keys the fingerprint is empty, and nobody vouches for what the statement says.
    Raises: IntegrityError when it is not there, not signed by these keys, altered, or of another
    image; UpstreamError.
    """
    where = f"{repository}@{image.digest}: provenance"
    refused: IntegrityError | None = None
    types = [dsse.MEDIA_TYPE, provenance.MEDIA_TYPE]
    for manifest in attached(registry, repository, image.digest, types):
        blob = blob_of(registry, repository, manifest)
        signed = manifest.layers[0].media_type == dsse.MEDIA_TYPE
        try:
            payload, signed_by = _payload(blob, signed, keys, where)
            statement = parse_statement(payload, where)
            if image.digest in statement.subjects:
                return statement, signed_by
            raise _elsewhere(statement, image.digest, where)
        except IntegrityError as error:
            # Anybody who may push can attach more; one that holds is enough.
            refused = refused or error
    raise refused or IntegrityError(
        "the image has no provenance, or it was removed", where=where, remedy=PUSH
    )


def _payload(blob: bytes, signed: bool, keys: Sequence[PublicKey], where: str) -> tuple[bytes, str]:
    if not signed and keys:
        raise IntegrityError(
            "the provenance is not signed",
            where=where,
            expected=f"a signature of {', '.join(key.fingerprint for key in keys)}",
            remedy=ASK,
        )
    if not signed:
        return blob, ""
    if not keys:
        return dsse.payload_of(blob, provenance.MEDIA_TYPE, where), ""
    payload, key = dsse.open_envelope(blob, provenance.MEDIA_TYPE, keys, where)
    return payload, key.fingerprint


def read_sbom(
    registry: Registry, repository: Repository, image: Descriptor, statement: Statement
) -> bytes:
    """Return the bill of materials that a provenance names by its sha256.

    So one signature is over both.
    Raises: IntegrityError when it is not there, or another one is; UpstreamError.
    """
    where = f"{repository}@{image.digest}: bill of materials"
    got = []
    for manifest in attached(registry, repository, image.digest, [sbom.MEDIA_TYPE]):
        blob = blob_of(registry, repository, manifest)
        got.append(hashlib.sha256(blob).hexdigest())
        if got[-1] == statement.sbom:
            return blob
    raise IntegrityError(
        "the bill of materials is not the one that the provenance names"
        if got
        else "the image has no bill of materials, or it was removed",
        where=where,
        expected=f"sha256 {statement.sbom}",
        got=", ".join(f"sha256 {digest}" for digest in got),
        remedy=PUSH,
    )


def _parsed(data: bytes, where: str) -> tuple[str, dict[str, tuple[str, Mapping[str, str]]]]:
    """Return the image's digest, and per identity sha256 and properties."""
    try:
        bill: dict[str, Any] = json.loads(data)
        if (bill["bomFormat"], bill["specVersion"]) != ("CycloneDX", "1.6"):
            raise ValueError(f"{bill['bomFormat']} {bill['specVersion']}"[:100])
        subject = _sha256(bill["metadata"]["component"])
        components: dict[str, tuple[str, Mapping[str, str]]] = {}
        for component in bill["components"]:
            identity = identity_of(component["purl"])
            if identity in components:
                raise ValueError(f"{identity} is listed twice")
            told = {p["name"]: p["value"] for p in component.get("properties", ())}
            components[identity] = (_sha256(component), told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "the bill of materials cannot be read",
            where=where,
            expected="CycloneDX 1.6, as `invoke sbom` writes it",
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
    return f"sha256:{subject}" if subject else "", components


def _sha256(component: Mapping[str, Any]) -> str:
    hashes = [h["content"] for h in component.get("hashes", ()) if h["alg"] == "SHA-256"]
    return str(hashes[0]) if hashes else ""


def _elsewhere(statement: Statement, digest: str, where: str) -> IntegrityError:
    return IntegrityError(
        "the provenance is of another image",
        where=where,
        expected=digest,
        got=", ".join(sorted(statement.subjects)) or "no subject",
        remedy=ASK,
    )


def _disagree(what: str, wrong: Sequence[str], where: str) -> IntegrityError:
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return IntegrityError(
        f"the {what} does not agree with the image",
        where=where,
        expected="what the image's own slice of the lock says",
        got="; ".join(wrong[:SHOWN]) + more,
        remedy=ASK,
    )
