"""Compiles one variant for one architecture, without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Final

from .arguments import ARGUMENTS, POINTERS
from .bundle import Record
from .dispatch import BEFORE_SM_90, Shape, choose_from, package_rules
from .layout import DESCRIPTOR_BYTES
from .limits import NO_MULTIMEM, SHARED_LIMITS
from .resources import read_kernel
from .signature import compile_options, constexprs, kernel_of, signature, sources_digest
from .toolchain import MissingToolError, Ptxas, Triton, import_triton
from .variants import WARP, Variant

FORMAT: Final = 1
"""To be raised with every change of this file that gives other bytes for the same sources."""


def quick_variant(arch: str) -> Variant:
    """Return the one kernel that ``--quick`` compiles: what dispatch chooses for M 16, 8 ranks."""
    return choose_from(package_rules(), Shape(16, 8192, 1024, 8, arch)).variant


class CompileError(Exception):
    """A variant did not compile, or its cubin is not what was asked for."""


@dataclass(frozen=True)
class Job:
    """What is to be compiled, and the sha256 of everything that decides the bytes."""

    variant: Variant
    arch: str
    ptxas: Ptxas
    key: str

    def __str__(self) -> str:
        return f"{self.variant.name} for {self.arch}"


@dataclass(frozen=True)
class Cubin:
    """One compiled variant: the manifest's record, and the bytes."""

    record: Record
    data: bytes


@dataclass(frozen=True)
class Output:
    """What the compiler made of a job: the cubin, the shared memory to launch it with, the PTX."""

    data: bytes
    shared: int
    ptx: str


def plan_job(variant: Variant, arch: str, triton: Triton, ptxas: Ptxas) -> Job:
    """Return the job with its key. Pure, but for the sources that it hashes.

    Raises:
        ValueError: the architecture is unknown, or lacks the variant's instructions.
    """
    if arch not in SHARED_LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; valid: {', '.join(SHARED_LIMITS)}")
    if variant.multimem and arch in NO_MULTIMEM:
        raise ValueError(without_multimem(arch))
    if variant.early and arch in BEFORE_SM_90:
        raise ValueError(f"{arch} has no programmatic dependent launches; sm_90 and later have")
    decisive = {
        "format": FORMAT,
        "sources": sources_digest(),
        "variant": asdict(variant),
        "arch": arch,
        "options": compile_options(variant),
        "triton": triton.sha256,
        "ptxas": ptxas.sha256,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return Job(variant, arch, ptxas, key)


def without_multimem(arch: str) -> str:
    """Return why an architecture has no multimem forms."""
    return f"{arch} has no multimem instructions; sm_90 and later have"


def multimem_forms(variants: Sequence[Variant]) -> list[Variant]:
    """Return the multimem form of each variant that has one: two-shot, for several ranks, with
    units of a piece or more for each thread.
    """
    return [
        replace(variant, multimem=True)
        for variant in variants
        if variant.algorithm == "two_shot" and variant.world_size > 1 and variant.fits_multimem
    ]


def prepare(jobs: Sequence[Job]) -> None:
    """Do once what each process would do anew: imports, and Triton's hash over itself.

    Half of the time of a small kernel, if left to the forked processes. Starts no thread.
    """
    import_triton()
    import_module("triton.backends.nvidia.compiler")
    for job in jobs:
        kernel_of(job.variant)
    for name in ("triton.runtime.cache", "triton.compiler.compiler"):  # from 3.5 on; before
        if key := getattr(import_module(name), "triton_key", None):
            key()
            return


def run_job(job: Job) -> Output:
    """Compile; call it inside :func:`toolchain.compile_environment`.

    Raises:
        MissingToolError: Triton is missing.
        CompileError: Triton or ptxas failed, or the kernel would need memory that no launch gives.
    """
    triton = import_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = int(job.arch.removeprefix("sm_"))
    try:
        kernel = kernel_of(job.variant)
        types = signature(job.variant)
        source = ASTSource(
            kernel,
            {name: types[name] for name in kernel.arg_names},
            constexprs(job.variant),
            {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in POINTERS},
        )
        # Triton 3.6 prints the whole PTX when ptxas fails, into what --json reports.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options=compile_options(job.variant),
            )
    except MissingToolError:
        raise
    except Exception as error:  # Triton's and LLVM's errors share no base class
        raise CompileError(f"{job}: {_first_lines(error)}") from error
    given = {"global_scratch_size": DESCRIPTOR_BYTES if job.variant.tile.bulk else 0}
    for name in ("global_scratch_size", "profile_scratch_size"):
        size, most = getattr(compiled.metadata, name, 0), given.get(name, 0)
        if size > most:
            raise CompileError(f"{job}: wants {size} bytes ({name}), the launch gives {most}")
    return Output(compiled.asm["cubin"], compiled.metadata.shared, compiled.asm["ptx"])


def make_cubin(job: Job, data: bytes, shared: int) -> Cubin:
    """Return the record of a job's cubin, as far as possible read from its bytes. Pure.

    Raises:
        CompileError: the bytes are no cubin of one kernel for the architecture.
    """
    try:
        kernel = read_kernel(data)
    except ValueError as error:
        raise CompileError(f"{job}: {error}") from error
    if f"sm_{kernel.sm}" != job.arch:
        raise CompileError(f"{job}: the cubin is for sm_{kernel.sm}")
    record = Record(
        name=job.variant.name,
        arch=job.arch,
        file=f"{job.arch}/{job.variant.name}.cubin",
        entry=kernel.entry,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        shared=shared,
        num_warps=(kernel.threads or 0) // WARP,
        cooperative=True,
        scratch=len(kernel.parameters) - len(ARGUMENTS),
        registers=kernel.registers,
        local_bytes=kernel.local_bytes,
        ptxas=job.ptxas.version,
        key=job.key,
    )
    return Cubin(record, data)


def _first_lines(error: Exception, limit: int = 12) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n  ".join([type(error).__name__, *lines[:limit]])
