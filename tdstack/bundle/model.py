"""What a bundle says of itself: `bundle.json`, its first member."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import field_validator as validator

from tdstack.errors import IntegrityError, UsageError
from tdstack.lock.model import (
    Arch,
    CudaLine,
    Platform,
    PythonMinor,
    Sha256,
    TorchVariant,
    entry_errors,
)
from tdstack.stack import Flavour

SCHEMA: Literal[1] = 1
MANIFEST, CHECKSUM, SIGNATURE = "bundle.json", "bundle.sha256", "bundle.dsse"
PAYLOAD_TYPE = "application/vnd.tdstack.bundle.v1+json"
Contents = Literal["images", "wheelhouse"]
KINDS: tuple[Contents, ...] = ("images", "wheelhouse")
# No way out of the folder that a bundle is unpacked into.
MemberPath = Annotated[str, StringConstraints(pattern=r"^[^/\x00]+(/[^/\x00]+)*$", max_length=4000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Frozen):
    """One file of a bundle. `name` is a file of the lock's own name, where the path is its hash."""

    path: MemberPath
    sha256: Sha256
    size: int = Field(ge=0)
    executable: bool = False
    name: str = ""

    @validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if any(part in (".", "..") for part in path.split("/")):
            raise ValueError("a path that leaves the bundle")
        return path


class Asked(_Frozen):
    """The options of the plan that the bundle is of."""

    cuda: CudaLine
    triton: Flavour
    torch: TorchVariant
    platform: Platform
    python: PythonMinor
    base: str
    archs: tuple[Arch, ...]
    incomplete: bool = False


class BundleManifest(_Frozen):
    """The whole of bundle.json.

    `key` is the content key of the image, `tag` the one of its names that contains it, `lock` the
    sha256 of versions.lock. `tools_python` is the Python that the wheels in tools/ are for, empty
    without them. `members` are in the bundle's order.
    """

    schema_version: Literal[1] = Field(alias="schema")
    contents: Contents
    asked: Asked
    key: Sha256
    tag: str
    lock: Sha256
    tools_python: str
    members: list[Member]

    @validator("members")
    @classmethod
    def _each_once(cls, members: list[Member]) -> list[Member]:
        paths = [m.path for m in members]
        if len(set(paths)) != len(paths) or {MANIFEST, CHECKSUM, SIGNATURE} & set(paths):
            raise ValueError("a path is listed twice")
        return members

    def data(self) -> bytes:
        """Return the document's bytes; equal manifests give equal bytes."""
        told = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(told, sort_keys=True, indent=1) + "\n").encode()

    def below(self, folder: str) -> list[Member]:
        """Return the members in a folder of the bundle."""
        return [m for m in self.members if m.path.startswith(f"{folder}/")]


def parse_manifest(data: bytes, where: str) -> BundleManifest:
    """Read bundle.json.

    Raises: IntegrityError for what is none; UsageError for a schema of another tdstack.
    """
    try:
        told = json.loads(data)
        if isinstance(told, dict) and told.get("schema") not in (None, SCHEMA):
            raise UsageError(
                f"a bundle of schema {told['schema']!r}, which this tdstack cannot read",
                where=where,
                expected=str(SCHEMA),
                remedy="use the tdstack in the bundle: `tar -xf FILE checkout`",
            )
        return BundleManifest.model_validate(told)
    except (ValueError, RecursionError) as error:
        got = entry_errors(error) if isinstance(error, ValidationError) else str(error)[:200]
        raise IntegrityError("this is no bundle", where=f"{where}: {MANIFEST}", got=got) from error
