"""The CUDA lines of versions.lock, as far as the doctor needs them. Standard library only.

tdstack/lock/ reads and checks the whole lock, with packages that an image does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tdstack.errors import UsageError

LOCK = "versions.lock"


@dataclass(frozen=True)
class KnownLine:
    """One CUDA line; `experimental` says why it is, or is empty."""

    driver_floor: str
    archs: tuple[str, ...]
    experimental: str


@cache
def lines_of(root: Path) -> Mapping[str, KnownLine]:
    """Return the lines of the lock in a folder.

    Raises: UsageError where there is no lock, or none that has lines.
    """
    path = root / LOCK
    try:
        lines = json.loads(path.read_text())["lines"]
        return {
            cuda: KnownLine(line["driver_floor"], tuple(line["archs"]), line["experimental"])
            for cuda, line in lines.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"cannot read the CUDA lines of {LOCK}",
            where=str(path),
            got=f"{type(error).__name__}: {error}"[:200],
            remedy="restore it from version control, or run `invoke lock`",
        ) from error
