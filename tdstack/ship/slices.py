"""The lock slice that an image says it was built from, read out of its layer tars. Pure."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tdstack.assemble.image import Step
from tdstack.errors import IntegrityError
from tdstack.plan import PREFIX, Plan, slice_of

PLACE = f"{PREFIX}/manifest.json"
MAX_BYTES = 16 << 20


def check_slice(plan: Plan, blobs: Path, steps: Sequence[Step], where: str) -> None:
    """Compare the manifest in the topmost of `steps` that has one with the plan's.

    `blobs` is the folder of the layer tars.
    Raises: IntegrityError when there is none, or it differs, naming the fields.
    """
    found = next((text for s in reversed(steps) if (text := _read(blobs / s.blob.sha256))), None)
    try:
        has = json.loads(found or "null")
    except ValueError:
        has = None
    wanted = json.loads(json.dumps(slice_of(plan.stack)))
    if has == wanted:
        return
    differing = sorted(
        name
        for name in {*wanted, *(has if isinstance(has, dict) else ())}
        if not isinstance(has, dict) or has.get(name) != wanted.get(name)
    )
    raise IntegrityError(
        "the image holds another slice of the lock than the plan",
        where=f"{where}: /{PLACE}",
        expected=f"lock slice {plan.lock_slice[:12]}",
        got=f"differs in {', '.join(differing)}" if has else "none",
        remedy="push the right image again, and do not use this one",
    )


def _read(path: Path) -> str | None:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name.removeprefix("./") != PLACE:
                    continue
                stream = archive.extractfile(member) if member.size <= MAX_BYTES else None
                return stream.read().decode() if stream else None
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise IntegrityError(
            "a layer of the image is no tar", where=path.name, got=str(error)
        ) from error
    return None
