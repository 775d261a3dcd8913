"""What a version says of itself: share/tdstack/install.json, written when all else is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tdstack.tags import line_tag

PLACE = Path("share", "tdstack", "install.json")


@dataclass(frozen=True)
class Record:
    """One version. `key` is its folder's name, `plan` the content key of its last layer.

    `environment` are variables for its programs; of those in `cached` the value is a path below
    the cache folder of whoever uses the version. `wheels` are the sha256 of all that is installed.
    """

    key: str
    plan: str
    cuda: str
    triton: str
    torch: str
    python: str
    interpreter: str
    archs: tuple[str, ...]
    driver_floor: str
    lock_slice: str
    wheels: tuple[str, ...]
    environment: Mapping[str, str]
    cached: Mapping[str, str]

    @property
    def module(self) -> str:
        """Return the version's name as an environment module."""
        return f"{line_tag(self.cuda)}-{self.key[:8]}"

    @property
    def title(self) -> str:
        """Return one line for people."""
        return (
            f"CUDA {self.cuda}, Triton {self.triton}, torch {self.torch}, Python {self.python}, "
            f"for {', '.join(self.archs)}"
        )

    def text(self) -> str:
        """Return it as the file has it."""
        return json.dumps({"schema": 1, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def read_record(version: Path) -> Record | None:
    """Return what a version says of itself, or None for a folder without such a file."""
    try:
        told = json.loads((version / PLACE).read_text())
        told.pop("schema")
        lists = {name: tuple(told[name]) for name in ("archs", "wheels")}
        return Record(**{**told, **lists})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
