"""Bundles: kernels compiled ahead of time, as cubins and the manifest that describes them.

A bundle is a folder: ``manifest.json`` and ``<arch>/<variant>.cubin``; compile.py writes it. This
module finds and reads bundles. It needs neither CUDA nor torch nor Triton.

The wheels ``gemm_allreduce_cubins_*`` put one folder per CUDA line into the namespace package
``gemm_allreduce_cubins``. ``GEMM_AR_CUBINS`` names a folder to use instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Final

from . import __version__
from .arguments import ARGUMENTS
from .elf import cubin_sm
from .signature import sources_digest

SCHEMA: Final = 2
MANIFEST: Final = "manifest.json"
NAMESPACE: Final = "gemm_allreduce_cubins"
VARIABLE: Final = "GEMM_AR_CUBINS"


class CubinError(RuntimeError):
    """Kernels compiled ahead of time cannot be used; the message says why and what to do."""


class BundleError(CubinError):
    """A bundle has no manifest that can be read, or is not for this version of the package."""


class MissingCubinError(CubinError):
    """There is no cubin for a call, and none may be compiled now."""


class CubinIntegrityError(CubinError):
    """The bytes of a cubin are not those that its manifest names."""


@dataclass(frozen=True)
class Record:
    """One cubin, as the manifest describes it.

    Attributes:
        name: of the variant; see `Variant.name`.
        arch: like ``sm_90``.
        file: its path in the bundle, with slashes.
        entry: name of the kernel in it.
        sha256, size: of its bytes; size in bytes.
        shared: dynamic shared memory per CTA, bytes.
        num_warps: warps per CTA.
        cooperative: must be launched so that all CTAs are resident at once.
        scratch: null pointers that follow the arguments.
        registers: per thread.
        local_bytes: local memory per thread, bytes.
        ptxas: version of the assembler.
        key: sha256 of everything that decided its bytes.
    """

    name: str
    arch: str
    file: str
    entry: str
    sha256: str
    size: int
    shared: int
    num_warps: int
    cooperative: bool
    scratch: int
    registers: int
    local_bytes: int
    ptxas: str
    key: str


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read; its cubins are read, and their hashes checked, by `read`.

    Attributes:
        folder: where it is.
        digest: sha256 of the manifest, hex.
        version, sources: of the package that it was compiled from; see `sources_digest`.
        cuda: CUDA line, like ``12.4``, or empty.
        triton: version of the compiler, as its distribution's metadata has it.
        arguments: of every kernel, in order.
        records: by architecture and name of the variant.
    """

    folder: Path
    digest: str
    version: str
    sources: str
    cuda: str
    triton: str
    arguments: tuple[str, ...]
    records: Mapping[tuple[str, str], Record]

    @property
    def archs(self) -> tuple[str, ...]:
        """Return the architectures that have cubins, in the manifest's order."""
        return tuple(dict.fromkeys(arch for arch, _ in self.records))

    def require_current(self) -> None:
        """Check that it was compiled from the sources of this package.

        Raises: BundleError.
        """
        remedy = f"install the cubins of gemm_allreduce {__version__}, or compile them again"
        if self.version != __version__:
            raise BundleError(
                f"{self.folder} was compiled from gemm_allreduce {self.version}, "
                f"this is {__version__}; {remedy}"
            )
        if self.sources != sources_digest() or self.arguments != tuple(ARGUMENTS):
            raise BundleError(
                f"{self.folder} was compiled from other sources of the same version "
                f"({self.sources[:12]}, these are {sources_digest()[:12]}); {remedy}"
            )

    def record(self, name: str, arch: str) -> Record:
        """Return the record of a variant.

        Raises: MissingCubinError naming what the bundle has.
        """
        if found := self.records.get((arch, name)):
            return found
        if arch not in self.archs:
            raise MissingCubinError(f"{self.folder} is for {', '.join(self.archs)}, not for {arch}")
        raise MissingCubinError(f"{self.folder} has no {name} for {arch}")

    def read(self, record: Record) -> bytes:
        """Return the bytes of a cubin, once they are known to be the manifest's.

        Raises: CubinIntegrityError for other bytes, a missing file, or another architecture.
        """
        path = self.folder / record.file
        remedy = "install the bundle again"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CubinIntegrityError(f"{path} cannot be read: {error}; {remedy}") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != record.sha256:
            raise CubinIntegrityError(
                f"{path} was changed: sha256 {sha256}, {len(data)} bytes; the manifest has "
                f"{record.sha256}, {record.size} bytes; {remedy}"
            )
        try:
            sm = cubin_sm(data)
        except ValueError as error:
            raise CubinIntegrityError(f"{path} is no cubin: {error}; {remedy}") from error
        if f"sm_{sm}" != record.arch:
            raise CubinIntegrityError(
                f"{path} is for sm_{sm}, the manifest says {record.arch}; {remedy}"
            )
        return data


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest.

    Raises: BundleError when it is missing, damaged, or of another schema.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{folder} is no bundle: {path.name} cannot be read: {error.strerror}"
        ) from error
    try:
        data = json.loads(text)
        if (schema := data["schema"]) != SCHEMA or data["package"] != "gemm_allreduce":
            raise BundleError(
                f"{path} has schema {schema} of {data['package']}; gemm_allreduce {__version__} "
                f"reads schema {SCHEMA} of gemm_allreduce"
            )
        records = [_record(entry) for entry in data["cubins"]]
        bundle = Bundle(
            folder=folder,
            digest=hashlib.sha256(text).hexdigest(),
            version=str(data["version"]),
            sources=str(data["sources"]),
            cuda=str(data["cuda"]),
            triton=str(data["triton"]["distribution"] or data["triton"]["version"]),
            arguments=tuple(data["arguments"]),
            records={(record.arch, record.name): record for record in records},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if len(bundle.records) != len(records):
        raise BundleError(f"{path} is damaged: it names a cubin twice")
    return bundle


_TYPES: Final = {"str": str, "int": int, "bool": bool}


def _record(entry: Any) -> Record:
    wanted = {field.name: _TYPES[str(field.type)] for field in fields(Record)}
    if set(entry) != set(wanted):
        raise ValueError(f"a cubin has {sorted(entry)}, expected {sorted(wanted)}")
    for name, kind in wanted.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{name} of a cubin is {entry[name]!r}")
    record = Record(**entry)
    place = PurePosixPath(record.file)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{record.file} is outside of the bundle")
    return record


def installed_bundles() -> list[Path]:
    """Return the folders of the bundles that wheels have installed, by name."""
    spec = importlib.util.find_spec(NAMESPACE)
    places = spec.submodule_search_locations if spec else None
    found = [path.parent for place in places or () for path in Path(place).glob(f"*/{MANIFEST}")]
    return sorted(found, key=lambda folder: (folder.name, str(folder)))


def named_bundle() -> Path | None:
    """Return the folder that GEMM_AR_CUBINS names, or None."""
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named else None
