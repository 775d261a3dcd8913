"""How an image came to be, as an in-toto statement with a SLSA predicate. Pure.

https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1. There is no time and no number
of a run in it: the same build of the same plan gives the same statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packageurl import PackageURL

from tdstack import __version__
from tdstack.attest.contents import Contents, identity_of
from tdstack.attest.sbom import MEDIA_TYPE as SBOM_TYPE
from tdstack.errors import IntegrityError
from tdstack.lock.io import LOCK_FILE
from tdstack.lock.model import LayerName
from tdstack.plan import FORMAT
from tdstack.rootfs import SOURCE_DATE_EPOCH

MEDIA_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:tdstack:build:1"
# No build service vouches for what runs on somebody's own machine.
BUILDER = "urn:tdstack:local"


@dataclass(frozen=True)
class BuildFacts:
    """What a statement says of the build beyond the image's contents.

    `lock` is the sha256 of versions.lock; `recipes` maps layers to the digest of their recipe
    and sources; `keys` maps layers to content keys; `sbom` is the sha256 of the bill.
    """

    lock: str
    recipes: Mapping[LayerName, str]
    keys: Mapping[LayerName, str]
    backend: str
    engine: str
    sbom: str


@dataclass(frozen=True)
class Statement:
    """A statement read back.

    `packages` maps identities of package URLs to sha256, `sources` maps names in the checkout;
    `sbom` is the sha256 of the bill that it names, empty for none.
    """

    subjects: frozenset[str]
    packages: Mapping[str, str]
    sources: Mapping[str, str]
    sbom: str
    builder: str
    engine: str

    @property
    def lock(self) -> str:
        """Return the sha256 of the versions.lock that the image was built from."""
        return self.sources.get(str(LOCK_FILE), "")


def render_statement(repository: str, digest: str, contents: Contents, facts: BuildFacts) -> bytes:
    """Return the statement about the image `digest` (`sha256:<hex>`) in `repository`."""
    slice_ = contents.slice
    parameters: dict[str, object] = {
        "cuda": slice_.cuda,
        "triton": slice_.triton,
        "torch": slice_.torch,
        "platform": slice_.platform,
        "python": slice_.python,
        "base": slice_.base.image,
        "arch": list(slice_.archs),
    }
    if slice_.base.cpython:
        parameters["cpython"] = slice_.base.cpython.name
    if slice_.fork:
        parameters["wheel"] = slice_.fork.name
        parameters["incomplete"] = not slice_.fork.complete
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": repository, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "internalParameters": {
                    "format": FORMAT,
                    "epoch": SOURCE_DATE_EPOCH,
                    "hatchling": facts.backend,
                    "lockSlice": slice_.digest,
                    "layerKeys": dict(facts.keys),
                },
                "resolvedDependencies": [*_packages(contents), *_sources(facts)],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {"tdstack": __version__, "engine": facts.engine or "unknown"},
                },
                "byproducts": [
                    {
                        "name": "sbom.cdx.json",
                        "mediaType": SBOM_TYPE,
                        "digest": {"sha256": facts.sbom},
                    }
                ],
            },
        },
    }
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def _packages(contents: Contents) -> Iterator[dict[str, object]]:
    for material in contents.materials:
        if material.sha256:
            yield {
                "name": material.file or material.name,
                "uri": material.purl,
                "digest": {"sha256": material.sha256},
            }
    if fork := contents.fork:
        found: dict[str, object] = {
            "name": fork.name,
            "uri": PackageURL("generic", None, "triton-distributed", fork.sha256[:8]).to_string(),
            "digest": {"sha256": fork.sha256},
        }
        yield found | ({"annotations": {"commit": fork.commit}} if fork.commit else {})


def _sources(facts: BuildFacts) -> Iterator[dict[str, object]]:
    yield {"name": str(LOCK_FILE), "digest": {"sha256": facts.lock}}
    for layer, digest in facts.recipes.items():
        yield {
            "name": f"images/{layer}",
            "digest": {"sha256": digest},
            # A folder has no bytes; its listing has.
            "annotations": {"of": "the listing of names, modes and sha256 of the layer's sources"},
        }


def parse_statement(payload: bytes, where: str) -> Statement:
    """Read a statement.

    Raises: IntegrityError for what is none, or has another predicate.
    """
    try:
        data: dict[str, Any] = json.loads(payload)
        kind, predicate_type = data["_type"], data["predicateType"]
        if (kind, predicate_type) != (STATEMENT, PREDICATE):
            raise ValueError(f"{kind}, {predicate_type}"[:200])
        predicate = data["predicate"]
        listed = predicate["buildDefinition"]["resolvedDependencies"]
        details = predicate["runDetails"]
        sboms = [b for b in details.get("byproducts", ()) if b.get("mediaType") == SBOM_TYPE]
        return Statement(
            frozenset(f"sha256:{s['digest']['sha256']}" for s in data["subject"]),
            {identity_of(m["uri"]): m["digest"]["sha256"] for m in listed if "uri" in m},
            {m["name"]: m["digest"]["sha256"] for m in listed if "uri" not in m},
            sboms[0]["digest"]["sha256"] if sboms else "",
            str(details["builder"]["id"]),
            str(details["builder"].get("version", {}).get("engine", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            "the provenance cannot be read",
            where=where,
            expected=f"{STATEMENT} with {PREDICATE}",
            got=f"{type(error).__name__}: {error}"[:200],
        ) from error
