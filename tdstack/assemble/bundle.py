"""A bundle on disk: the cubins of `gemm_allreduce.compile`, as their manifest names them.

What a cubin is made of is `gemm_allreduce.check`'s business; here it is a file with a hash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import field_validator as validator

from tdstack.errors import HostError, IntegrityError
from tdstack.lock.model import Arch, CudaLine, Sha256, entry_errors
from tdstack.wheelhouse.store import sha256_of

MANIFEST = "manifest.json"
REMEDY = "compile it again: `invoke compile`"

# The pattern admits no way out of the bundle's folder.
CubinPath = Annotated[str, StringConstraints(pattern=r"^sm_\d+/\w[\w.-]*\.cubin$")]


class _Read(BaseModel):
    # Not "forbid": the compiler says more of a cubin than matters to who ships it.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Cubin(_Read):
    """One cubin. `size` is in bytes."""

    name: str
    arch: Arch
    file: CubinPath
    sha256: Sha256
    size: int = Field(ge=1)


class Bundle(_Read):
    """A manifest: whose kernels, for which CUDA line (empty: compiled without one), which files."""

    schema_version: Literal[2] = Field(alias="schema")
    package: Literal["gemm_allreduce"]
    version: str
    cuda: CudaLine | Literal[""]
    cubins: Annotated[list[Cubin], Field(min_length=1)]

    @validator("version")
    @classmethod
    def _is_a_version(cls, version: str) -> str:
        try:
            # It becomes part of a file name and of a requirement.
            return str(Version(version))
        except InvalidVersion as error:
            raise ValueError(str(error)) from error

    @property
    def files(self) -> list[str]:
        """Return the paths of the bundle's files below its folder, sorted."""
        return sorted([MANIFEST, *(cubin.file for cubin in self.cubins)])


def read_bundle(folder: Path) -> Bundle:
    """Return a bundle's manifest after reading the bytes of every file that it names.

    Raises: HostError when there is no bundle; IntegrityError for a manifest that is none, and
    for files that are missing or are not the manifest's.
    """
    path = folder / MANIFEST
    try:
        bundle = Bundle.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise HostError("there is no bundle of cubins", where=str(path), remedy=REMEDY) from error
    except ValidationError as error:
        raise IntegrityError(
            "the manifest of the cubins cannot be used",
            where=str(path),
            expected="schema 2, as gemm_allreduce.compile writes it",
            got=entry_errors(error),
            remedy=REMEDY,
        ) from error
    wrong = [problem for cubin in bundle.cubins if (problem := _problem(folder, cubin))]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise IntegrityError(
            "the cubins are not those of their manifest",
            where=str(folder),
            expected=f"{len(bundle.cubins)} files with the manifest's sha256",
            got=shown,
            remedy=REMEDY,
        )
    return bundle


def _problem(folder: Path, cubin: Cubin) -> str:
    try:
        got = sha256_of(folder / cubin.file)
    except OSError as error:
        return f"{cubin.file}: {error.strerror}"
    return "" if got == cubin.sha256 else f"{cubin.file}: sha256 {got[:12]}"
