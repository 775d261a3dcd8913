"""Images as tdstack made them, described again from what an engine or a registry keeps of them.

The label `io.tdstack.blobs` lists sha256, size and origin of every layer tar, so that an image's
configuration, and with it its id, follows from labels and environment alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tdstack.assemble.image import Image, Step
from tdstack.assemble.tar import Blob
from tdstack.engines.base import StoredImage
from tdstack.errors import IntegrityError
from tdstack.lock.model import Platform
from tdstack.plan import LABEL, PREFIX

BLOBS = f"{LABEL}.blobs"


def blobs_label(steps: Sequence[Step]) -> str:
    """Return the label's text for `steps`. Pure."""
    rows = [[step.blob.sha256, step.blob.size, step.made_by] for step in steps]
    return json.dumps(rows, separators=(",", ":"))


def steps_of(labels: Mapping[str, str]) -> tuple[Step, ...]:
    """Return the steps that the label lists; none without the label. Pure.

    Raises: IntegrityError for a label that is malformed.
    """
    text = labels.get(BLOBS, "[]")
    try:
        return tuple(
            Step(Blob(str(sha256), int(size)), str(made_by))
            for sha256, size, made_by in json.loads(text)
        )
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"the label {BLOBS} is malformed", got=text[:100]) from error


def health_check(layer: str) -> tuple[str, ...]:
    """Return the health check of an image that ends with `layer`. Pure."""
    return (f"/{PREFIX}/bin/tdstack-verify", "--quick") if layer == "kernels" else ()


def described(stored: StoredImage, ref: str, platform: Platform) -> Image:
    """Return the description of an image of ours in an engine, without exporting it. Pure.

    Raises: IntegrityError when it is not as tdstack made it.
    """
    image = Image(
        platform,
        steps_of(stored.labels),
        env=stored.env,
        labels=stored.labels,
        healthcheck=health_check(stored.labels.get(f"{LABEL}.layer", "")),
    )
    if image.id != stored.id:
        raise IntegrityError(
            "an image of the engine is not as tdstack made it",
            where=ref,
            expected=f"image id {image.id[:12]}, which follows from its labels",
            got=f"image id {stored.id[:12]}",
            remedy="remove it from the engine and build it again",
        )
    return image
