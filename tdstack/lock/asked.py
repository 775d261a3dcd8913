"""The hand-written side: images/versions.toml."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tdstack.errors import UsageError
from tdstack.lock.model import (
    Arch,
    CudaLine,
    LayerName,
    Platform,
    PythonMinor,
    TorchVariant,
    entry_errors,
)

ASKED_FILE = Path("images/versions.toml")
Requirement = Annotated[str, StringConstraints(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Targets(_Strict):
    """The Python versions and platforms that a resolution must cover."""

    python: list[PythonMinor]
    platform: list[Platform]


class AskedLine(_Strict):
    """One CUDA line as asked for."""

    set: str
    toolkit: Requirement
    ptxas: str
    driver_floor: str
    archs: list[Arch]
    experimental: str = ""


class AskedTorch(_Strict):
    """One torch variant of a set: what its torch layer asks for, and where it exists."""

    layers: dict[Literal["torch"], list[Requirement]]
    targets: Targets | None = None


class AskedSet(_Strict):
    """One Python set: requirements per layer, and its torch variants."""

    layers: dict[LayerName, list[Requirement]]
    torch: dict[TorchVariant, AskedTorch]


class AskedBase(_Strict):
    """A root file system to build with mmdebstrap; the first that fits is chosen."""

    suite: str
    python: PythonMinor
    glibc: str
    platform: list[Platform]
    pockets: list[Literal["main", "security"]]
    packages: list[Requirement]


class AskedTritonDistributed(_Strict):
    """Where Triton-distributed comes from when no wheel is given."""

    repository: str
    subdirectory: str = ""
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    submodule: str = ""
    submodule_commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    base_version: str
    sets: list[str]


class Asked(_Strict):
    """The whole of images/versions.toml."""

    schema_version: Literal[2] = Field(alias="schema")
    targets: Targets
    lines: dict[CudaLine, AskedLine]
    sets: dict[str, AskedSet]
    bases: list[AskedBase]
    triton_distributed: AskedTritonDistributed


def asked_digest(text: str) -> str:
    """Return the sha256 of the asked-for data, blind to comments and layout."""
    canonical = repr(_sorted(tomllib.loads(text)))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_asked(root: Path) -> tuple[Asked, str]:
    """Read images/versions.toml under `root`.

    Returns: the model and its digest.
    Raises: UsageError naming the bad entry.
    """
    path = root / ASKED_FILE
    try:
        text = path.read_text()
        return Asked.model_validate(tomllib.loads(text)), asked_digest(text)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {ASKED_FILE}", where=str(path), got=str(error)) from error
    except ValidationError as error:
        raise UsageError(
            f"{ASKED_FILE} does not fit its schema",
            where=entry_errors(error),
            remedy="correct the entry; docs/lock.md lists every field",
        ) from error


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value
