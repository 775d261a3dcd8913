"""The generated side: the schema of versions.lock.

The lock names files by name, size and sha256, never by address: the bytes are the same on
every index, mirror and disk, and which of those a host may use is the host's business.
"""

from __future__ import annotations

from typing import Annotated, Literal

from packaging.utils import parse_wheel_filename
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

SCHEMA: Literal[2] = 2

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
CudaLine = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
Arch = Annotated[str, StringConstraints(pattern=r"^sm_\d+$")]
PythonMinor = Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]
Platform = Literal["linux/amd64", "linux/arm64"]
TorchVariant = Literal["cuda", "cpu", "none"]
LayerName = Literal["base", "torch", "nvshmem", "triton", "cuda", "kernels"]
PackageRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*==[^\s=]+$")]
Glibc = Annotated[str, StringConstraints(pattern=r"^2\.\d+$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LockedFile(_Frozen):
    """One file from outside. `size` is in bytes."""

    name: str = Field(min_length=1)
    sha256: Sha256
    size: int = Field(ge=1)


class LockedWheel(LockedFile):
    """One wheel; its name says for which Python, ABI and platform."""

    @field_validator("name")
    @classmethod
    def _is_a_wheel(cls, name: str) -> str:
        parse_wheel_filename(name)  # its errors are ValueErrors, which the model reports
        return name


class LockedDeb(LockedFile):
    """One Debian package; `name` is its path in the archive's pool."""

    package: str
    version: str
    archive: Literal["main", "security"]


class LockedLine(_Frozen):
    """One CUDA line: which set it uses, and its toolkit per platform."""

    set: str
    ptxas: str
    driver_floor: str
    archs: list[Arch]
    experimental: str
    toolkit: dict[Platform, list[PackageRef]]


class Closure(_Frozen):
    """The whole closure of one (set, torch variant, Python, platform), per layer.

    `missing` holds what was asked for but has no wheel for this target.
    """

    set: str
    torch: TorchVariant
    python: PythonMinor
    platform: Platform
    layers: dict[LayerName, list[PackageRef]]
    missing: list[str]


class LockedRootfs(_Frozen):
    """A root file system: its packages, and the tar that mmdebstrap makes of them.

    `made_with` names the tools whose output `tar` is; other versions of these tools may
    lay out the same packages in other bytes.
    """

    platform: Platform
    suite: str
    python: PythonMinor
    glibc: Glibc
    asked: list[str]
    packages: list[LockedDeb]
    tar: LockedFile
    made_with: dict[str, str]


class LockedForkWheel(LockedWheel):
    """A wheel of Triton-distributed as it was built, with what it needs of its base.

    `python` and `glibc` are read from its library, empty where that does not tell.
    """

    python: str = ""
    glibc: str = ""
    commit: str = ""


class LockedTritonDistributed(_Frozen):
    """The pinned source of Triton-distributed, and the wheels recorded on first sight.

    `subdirectory` holds setup.py; `submodule` is the path of the fork of Triton itself.
    """

    repository: str
    subdirectory: str = ""
    commit: str
    submodule: str = ""
    submodule_commit: str
    base_version: str
    sets: list[str]
    wheels: list[LockedForkWheel]


class Lock(_Frozen):
    """The whole of versions.lock."""

    schema_version: Literal[2] = Field(alias="schema")
    asked: Sha256
    resolver: str
    lines: dict[CudaLine, LockedLine]
    closures: list[Closure]
    packages: dict[PackageRef, Annotated[list[LockedWheel], Field(min_length=1)]]
    rootfs: list[LockedRootfs]
    triton_distributed: LockedTritonDistributed

    @model_validator(mode="after")
    def _references_resolve(self) -> Lock:
        for index, closure in enumerate(self.closures):
            for layer, refs in closure.layers.items():
                for ref in refs:
                    if ref not in self.packages:
                        raise ValueError(f"closures.{index}.layers.{layer}: {ref} has no files")
        sets = {closure.set for closure in self.closures}
        for name, line in self.lines.items():
            if line.set not in sets:
                raise ValueError(f"lines.{name}.set: no closure for set {line.set}")
            wanted = {c.platform for c in self.closures if c.set == line.set}
            if lacking := wanted - line.toolkit.keys():
                raise ValueError(f"lines.{name}.toolkit: nothing for {', '.join(sorted(lacking))}")
            for platform, refs in line.toolkit.items():
                for ref in refs:
                    if ref not in self.packages:
                        raise ValueError(f"lines.{name}.toolkit.{platform}: {ref} has no files")
        return self


def entry_errors(error: ValidationError) -> str:
    """Render a validation error as `path.of.entry: what is wrong`, one per finding."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or '(top level)'}: {item['msg']}"
        for item in error.errors()[:5]
    )
