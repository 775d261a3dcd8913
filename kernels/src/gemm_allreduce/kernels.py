"""Where kernels come from: cubins of a bundle, or Triton at run time. Never silently the latter.

| asked for | bundle that fits | result |
|---|---|---|
| ``auto`` | yes | cubins; a variant that the bundle lacks is compiled, with one logged line |
| ``auto`` | no | compiled at run time, with one logged line that says why |
| ``cubins``, or ``auto`` with GEMM_AR_NO_JIT=1 | yes | cubins; a lacking variant is an error |
| ``cubins``, or ``auto`` with GEMM_AR_NO_JIT=1 | no | error |
| ``jit``, or ``auto`` with GEMM_AR_CUBINS=none | not looked for | compiled at run time |

A bundle that GEMM_AR_CUBINS names must fit. A damaged manifest, or a cubin whose bytes are not the
manifest's, is an error everywhere.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, Protocol

from .bundle import (
    VARIABLE,
    Bundle,
    BundleError,
    MissingCubinError,
    installed_bundles,
    named_bundle,
    read_bundle,
)
from .jit import JitKernels

if TYPE_CHECKING:
    from .launch import Grid, Operands, Ranks
    from .variants import Variant

Mode = Literal["auto", "cubins", "jit"]
MODES: Final = ("auto", "cubins", "jit")
NO_JIT: Final = "GEMM_AR_NO_JIT"
NONE: Final = "none"
_LOG: Final = logging.getLogger(__package__)


class Kernels(Protocol):
    """What a workspace launches with."""

    @property
    def identity(self) -> str:
        """Return what must be the same on all ranks."""

    def describe(self) -> str:
        """Return one sentence on where the kernels come from."""

    def serves(self, variant: Variant) -> bool:
        """Return whether the variant can be launched, compiled before if need be."""

    def prepare(self, variant: Variant, ranks: Ranks) -> bool:
        """Compile or load a kernel; return whether there was something to do."""

    def launch(
        self, variant: Variant, ranks: Ranks, operands: Operands, grid: Grid, spin_limit: int
    ) -> None:
        """Launch on the current stream without waiting for it."""


def choose_kernels(mode: Mode, arch: str, device: int | None) -> Kernels:
    """Return the kernels for a device; `device` None is a CPU, which only Triton can interpret.

    Raises:
        ValueError: an unknown mode, or no cubins while GEMM_AR_NO_JIT forbids to compile.
        CubinError: as the table above says.
    """
    if mode not in MODES:
        raise ValueError(f"kernels must be one of {', '.join(MODES)}, got {mode!r}")
    forbidden = os.environ.get(NO_JIT, "") not in ("", "0")
    if device is None:
        if mode == "cubins":
            raise MissingCubinError("kernels is 'cubins', which need a CUDA device")
        return JitKernels("no GPU")
    if mode == "jit" or (mode == "auto" and os.environ.get(VARIABLE) == NONE):
        if forbidden:
            raise ValueError(f"{NO_JIT}=1 forbids compiling at run time, which was asked for")
        return JitKernels("as was asked for")
    must = mode == "cubins" or forbidden
    fallback = None if must or not _has_triton() else JitKernels("the bundle lacks it")
    try:
        from .loader import CubinKernels

        return CubinKernels(find_bundle(arch, device), arch, device, fallback)
    except MissingCubinError as error:
        return _without_bundle(str(error), must=must)


def find_bundle(arch: str, device: int | None = None) -> Bundle:
    """Return the bundle for an architecture: the one named, or the newest CUDA line installed.

    With a ``device`` the lines whose CUDA major version its driver does not know are left out.

    Raises:
        MissingCubinError: none is installed, or none of those fits; says why of each.
        BundleError: a manifest cannot be read, or the bundle that was named does not fit.
        CubinError: the driver cannot be asked.
    """
    if named := named_bundle():
        bundle = read_bundle(named)
        bundle.require_current()
        if arch not in bundle.archs:
            raise BundleError(
                f"{VARIABLE} names {named}, which is for {', '.join(bundle.archs)}, not for {arch}"
            )
        return bundle
    reasons, fitting = [], []
    for folder in installed_bundles():
        bundle = read_bundle(folder)
        reason = _reason_against(bundle, arch, device)
        reasons.append(reason)
        if not reason:
            fitting.append(bundle)
    if not fitting:
        remedy = "install the wheel gemm_allreduce_cubins_* of your CUDA line"
        raise MissingCubinError("; ".join(reasons) or f"no cubins are installed ({remedy})")
    return max(fitting, key=lambda b: _numbers(b.cuda))


def _reason_against(bundle: Bundle, arch: str, device: int | None) -> str:
    try:
        bundle.require_current()
    except BundleError as error:
        return str(error)
    if arch not in bundle.archs:
        return f"{bundle.folder} is for {', '.join(bundle.archs)}, not for {arch}"
    if device is not None:
        from .loader import driver_version

        newest = driver_version() // 1000
        if _numbers(bundle.cuda)[:1] > (newest,):
            return f"{bundle.folder} is for CUDA {bundle.cuda}, the driver's is {newest}"
    return ""


def _without_bundle(reason: str, *, must: bool) -> Kernels:
    if must:
        raise MissingCubinError(f"{reason}; compiling at run time is switched off")
    if not _has_triton():
        raise MissingCubinError(f"{reason}; there is no Triton either, to compile at run time")
    _say_once(reason)
    return JitKernels(reason)


@lru_cache(maxsize=64)
def _say_once(reason: str) -> None:
    _LOG.warning("gemm_allreduce compiles its kernels at run time: %s", reason)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _numbers(line: str) -> tuple[int, ...]:
    return tuple(int(part) for part in line.split(".") if part.isdigit())
