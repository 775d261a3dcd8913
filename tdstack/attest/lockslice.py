"""The slice of the lock that an image carries as /opt/tdstack/manifest.json, read back. Pure.

`tdstack.plan.slice_of` writes it; the label `io.tdstack.lock-slice` is its sha256.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tdstack.errors import IntegrityError
from tdstack.lock.model import (
    Arch,
    CudaLine,
    LayerName,
    LockedFile,
    LockedForkWheel,
    Platform,
    PythonMinor,
    Sha256,
    TorchVariant,
    entry_errors,
)
from tdstack.plan import slice_digest
from tdstack.stack import Flavour


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SlicePackage(_Frozen):
    """One package; `file` and `sha256` are empty while Triton-distributed is not acquired."""

    name: str
    version: str
    file: str
    sha256: Sha256 | Literal[""]
    origin: Literal["index", "wheel", "commit"]


class SliceFork(LockedForkWheel):
    """The wheel of Triton-distributed as it was built; `complete`: with all that it imports."""

    complete: bool


class SliceBase(_Frozen):
    """The base: `packages` maps Debian packages to versions; `tar` is empty for other images."""

    image: str
    suite: str
    cpython: LockedFile | None = None
    tar: Sha256 | Literal[""]
    packages: dict[str, str]


class LockSlice(_Frozen):
    """The whole slice."""

    schema_version: Literal[1] = Field(alias="schema")
    fork: SliceFork | None = None
    cuda: CudaLine
    triton: Flavour
    torch: TorchVariant
    platform: Platform
    python: PythonMinor
    driver_floor: str
    ptxas: str
    toolkit: tuple[SlicePackage, ...]
    archs: tuple[Arch, ...]
    base: SliceBase
    layers: dict[LayerName, tuple[SlicePackage, ...]]

    @property
    def digest(self) -> str:
        """Return the sha256 that the image's label must have."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        if self.fork is None:
            del data["fork"]
        if self.base.cpython is None:
            del data["base"]["cpython"]
        return slice_digest(data)

    def version_of(self, name: str) -> str:
        """Return the version of a package, or an empty string."""
        every = (p for packages in self.layers.values() for p in packages)
        return next((p.version for p in every if p.name == name), "")


def parse_slice(data: bytes | dict[str, Any], where: str) -> LockSlice:
    """Return a slice from its JSON.

    Raises: IntegrityError naming the entry that does not fit.
    """
    try:
        return LockSlice.model_validate(json.loads(data) if isinstance(data, bytes) else data)
    except (ValidationError, ValueError, RecursionError) as error:
        raise IntegrityError(
            "the image's slice of the lock cannot be read",
            where=where,
            expected="schema 1, as `invoke build` writes it",
            got=entry_errors(error) if isinstance(error, ValidationError) else str(error)[:200],
        ) from error
