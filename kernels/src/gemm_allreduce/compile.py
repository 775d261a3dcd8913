"""Compiles the kernels ahead of time, without a GPU, into cubins and a manifest.

``python -m gemm_allreduce.compile --arch sm_90 [--arch sm_80 ...] --out DIR
[--variant NAME ... | --quick] [--multimem] [--json]``

Without a selection: every variant that the dispatch table can choose on the architecture.
``--multimem`` adds a form of the selected two-shot kernels that dispatch never chooses and
`launch` refuses; see multimem.py.

Writes ``DIR/<arch>/<variant>.cubin`` and, last, ``DIR/manifest.json``. If anything fails, nothing
is written. Two runs with one Triton and one ptxas give the same bytes.

``TRITON_PTXAS_PATH`` chooses the ptxas for all architectures: newer Tritons have a second one for
Blackwell, which only ``TRITON_PTXAS_BLACKWELL_PATH`` would otherwise replace.

Exit codes: 0 done; 1 a compilation or check failed; 2 usage; 3 Triton, or the ptxas that
TRITON_PTXAS_PATH names, is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import __version__
from .arguments import POINTERS
from .dispatch import ARCHS, Shape, choose, reachable_variants
from .elf import cubin_sm
from .signature import compile_options, constexprs, kernel_of, signature
from .variants import Variant

MANIFEST_SCHEMA: Final = 1

SHARED_LIMITS: Final[dict[str, int]] = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_103": 227 * 1024,
    "sm_120": 99 * 1024,
    "sm_121": 99 * 1024,
}
"""Valid architectures, and the shared memory in bytes that one CTA can have on each."""

assert tuple(SHARED_LIMITS) == ARCHS

_NO_MULTIMEM: Final = ("sm_80", "sm_86", "sm_89")

QUICK_VARIANT: Final = choose(Shape(16, 8192, 1024, 8, "sm_90")).variant
"""One variant that compiles for every architecture."""

_PTXAS_VARIABLES: Final = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
_OTHER_VARIABLES: Final = ("DISABLE_PTXAS_OPT", "PTXAS_OPTIONS", "DISABLE_LLVM_OPT")


class CompileError(Exception):
    """A variant did not compile, or its cubin failed a check."""


class MissingToolError(Exception):
    """Triton or ptxas is missing on this host; the message says what to do."""


@dataclass(frozen=True)
class Ptxas:
    """The ptxas that Triton uses for an architecture: path, and version such as ``12.8.93``."""

    path: str
    version: str


@dataclass(frozen=True)
class Cubin:
    """One compiled variant, checked. ``shared`` is shared memory per CTA in bytes."""

    variant: Variant
    arch: str
    entry: str
    shared: int
    num_warps: int
    triton: str
    ptxas: Ptxas
    data: bytes
    ptx: str

    @property
    def file(self) -> str:
        """Path inside the output folder."""
        return f"{self.arch}/{self.variant.name}.cubin"

    def manifest_entry(self) -> dict[str, Any]:
        """Return the manifest's record; without ptxas's path, which differs between hosts."""
        return {
            "name": self.variant.name,
            "arch": self.arch,
            "file": self.file,
            "entry": self.entry,
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "size": len(self.data),
            "shared": self.shared,
            "num_warps": self.num_warps,
            "cooperative": True,
            "triton": self.triton,
            "ptxas": self.ptxas.version,
        }


@contextlib.contextmanager
def compile_environment() -> Iterator[None]:
    """Give Triton a private cache, and an environment that can't change the bytes it makes.

    Must be entered before Triton's first import in the process for TRITON_INTERPRET to be
    ignored. Restores the environment on exit.
    """
    saved_environment = dict(os.environ)
    saved_tempdir = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="gemm_allreduce_") as scratch:
        for name in saved_environment:
            if name in _PTXAS_VARIABLES:
                continue
            if name.startswith("TRITON_") or name in _OTHER_VARIABLES:
                del os.environ[name]
        os.environ["TRITON_HOME"] = scratch
        os.environ["TRITON_CACHE_DIR"] = os.path.join(scratch, "cache")
        # Line info would put this file's absolute path into the cubin.
        os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
        ptxas, blackwell = (os.environ.get(name) for name in _PTXAS_VARIABLES)
        if ptxas and not blackwell:
            os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = ptxas
        # Triton leaves its input to a failed ptxas in the temporary folder.
        tempfile.tempdir = scratch
        try:
            yield
        finally:
            tempfile.tempdir = saved_tempdir
            os.environ.clear()
            os.environ.update(saved_environment)


def find_ptxas(arch: str) -> Ptxas:
    """Return the ptxas that Triton will run for an architecture.

    Raises:
        MissingToolError: Triton can't be imported, or would silently use another ptxas than the
            one that the environment names.
    """
    version = _import_triton().__version__
    try:
        from triton.backends.nvidia.compiler import get_ptxas
    except ImportError as error:
        raise MissingToolError(f"Triton {version} has no NVIDIA backend: {error}") from error

    capability = int(arch.removeprefix("sm_"))
    # Triton 3.6 and later keep a second ptxas for Blackwell, and ask for the architecture.
    arguments = [capability] if inspect.signature(get_ptxas).parameters else []
    try:
        path = str(get_ptxas(*arguments).path)
        output = subprocess.run(
            [path, "--version"], check=True, capture_output=True, text=True, timeout=60
        ).stdout
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise MissingToolError(f"no working ptxas for {arch}: {error}") from error
    variable = _PTXAS_VARIABLES[1 if arguments and capability >= 100 else 0]
    wanted = os.environ.get(variable, "").strip()
    if wanted and wanted != path:
        raise MissingToolError(
            f"{variable} names {wanted}, which is not a working ptxas (Triton would quietly use "
            f"{path}); correct or unset it"
        )
    match = re.search(r"V(\d+\.\d+\.\d+)", output)
    if match is None:
        raise MissingToolError(f"{path} --version names no version: {output.strip()!r}")
    return Ptxas(path, match.group(1))


def compile_variant(variant: Variant, arch: str) -> Cubin:
    """Compile one variant for one architecture; call it inside :func:`compile_environment`.

    Raises:
        ValueError: the architecture is unknown, or lacks the variant's instructions.
        MissingToolError: Triton or ptxas is missing.
        CompileError: Triton or ptxas failed, or the cubin is not what was asked for.
    """
    if arch not in SHARED_LIMITS:
        raise ValueError(f"unknown architecture {arch!r}; valid: {', '.join(SHARED_LIMITS)}")
    if variant.multimem and arch in _NO_MULTIMEM:
        raise ValueError(_without_multimem(arch))
    triton = _import_triton()
    ptxas = find_ptxas(arch)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = int(arch.removeprefix("sm_"))
    what = f"{variant.name} for {arch}"
    try:
        kernel = kernel_of(variant)
        types = signature(variant)
        source = ASTSource(
            kernel,
            {name: types[name] for name in kernel.arg_names},
            constexprs(variant),
            {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in POINTERS},
        )
        # Triton 3.6 prints the whole PTX when ptxas fails, into what --json reports.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options=compile_options(variant),
            )
    except Exception as error:  # Triton's and LLVM's errors share no base class
        raise CompileError(f"{what}: {_first_lines(error)}") from error
    cubin = Cubin(
        variant=variant,
        arch=arch,
        entry=compiled.metadata.name,
        shared=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        triton=triton.__version__,
        ptxas=ptxas,
        data=compiled.asm["cubin"],
        ptx=compiled.asm["ptx"],
    )
    check_cubin(cubin)
    return cubin


def _without_multimem(arch: str) -> str:
    return f"{arch} has no multimem instructions; sm_90 and later have"


def check_cubin(cubin: Cubin) -> None:
    """Check that a cubin is for its architecture and fits on it.

    Raises:
        CompileError: it is for another one, needs too much shared memory, or lost its warps.
    """
    what = f"{cubin.variant.name} for {cubin.arch}"
    try:
        sm = cubin_sm(cubin.data)
    except ValueError as error:
        raise CompileError(f"{what}: {error}") from error
    if f"sm_{sm}" != cubin.arch:
        raise CompileError(f"{what}: the cubin is for sm_{sm}")
    limit = SHARED_LIMITS[cubin.arch]
    if cubin.shared > limit:
        raise CompileError(f"{what}: needs {cubin.shared} bytes of shared memory of {limit}")
    if cubin.num_warps != cubin.variant.tile.num_warps:
        raise CompileError(f"{what}: {cubin.num_warps} warps, asked {cubin.variant.tile.num_warps}")


def warnings_for(arch: str) -> list[str]:
    """Return known faults of the Triton at hand on an architecture."""
    version = str(_import_triton().__version__)
    if arch in ("sm_100", "sm_103") and version.startswith("3.6."):
        return [f"{arch}: Triton {version} has a fault in tl.dot there (#9871); use 3.7 or later"]
    return []


def write_bundle(cubins: Sequence[Cubin], out: Path) -> None:
    """Write the cubins, then the manifest that names them, each file in one step.

    Files that an earlier run left in ``out`` under other names stay; the manifest decides.

    Raises:
        OSError: ``out`` can't be written.
    """
    for cubin in cubins:
        _replace(out / cubin.file, cubin.data)
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "package": "gemm_allreduce",
        "version": __version__,
        "cubins": [cubin.manifest_entry() for cubin in cubins],
    }
    _replace(out / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (see the module's docstring)."""
    options = _parse(arguments)
    started = time.monotonic()
    tools: dict[str, Ptxas] = {}
    cubins: list[Cubin] = []
    warnings: list[str] = []
    errors: list[str] = []
    code = 0
    with compile_environment():
        try:
            for arch in options.arch:
                tools[arch] = find_ptxas(arch)
                _say(f"{arch}: ptxas {tools[arch].version} at {tools[arch].path}")
                warnings += warnings_for(arch)
                for variant in _selected(options, arch):
                    try:
                        cubins.append(compile_variant(variant, arch))
                    except CompileError as error:
                        errors.append(str(error))
                        continue
                    _say(f"{cubins[-1].file}: {len(cubins[-1].data)} bytes")
        except MissingToolError as error:
            errors.append(str(error))
            code = 3
    if not errors:
        try:
            write_bundle(cubins, options.out)
        except OSError as error:
            errors.append(f"cannot write the bundle: {error}")
    seconds = round(time.monotonic() - started, 2)
    if options.json:
        report = {
            "ok": not errors,
            "out": str(options.out),
            "seconds": seconds,
            "ptxas": {
                arch: {"path": tool.path, "version": tool.version} for arch, tool in tools.items()
            },
            "cubins": [cubin.manifest_entry() for cubin in cubins],
            "warnings": warnings,
            "errors": errors,
        }
        print(json.dumps(report, indent=2))
    for message in warnings:
        _say(f"warning: {message}")
    for message in errors:
        _say(f"error: {message}")
    if errors:
        _say("no manifest was written")
        return code or 1
    _say(f"{len(cubins)} cubins and manifest.json in {options.out}, {seconds} s")
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gemm_allreduce.compile",
        description="Compile the GEMM + all-reduce kernels ahead of time, without a GPU.",
    )
    parser.add_argument(
        "--arch",
        action="append",
        required=True,
        metavar="ARCH",
        help=f"GPU architecture, repeatable: {', '.join(SHARED_LIMITS)}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME",
        help="variant, repeatable; default: every variant that dispatch can choose",
    )
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_VARIANT.name}")
    parser.add_argument(
        "--multimem",
        action="store_true",
        help="also the multimem form of each selected two-shot kernel of several ranks: "
        "for sm_90 and later, and never run",
    )
    parser.add_argument("--json", action="store_true", help="report on stdout as JSON")
    options = parser.parse_args(arguments)
    unknown = [arch for arch in options.arch if arch not in SHARED_LIMITS]
    if unknown:
        parser.error(
            f"unknown architecture {', '.join(unknown)}; valid: {', '.join(SHARED_LIMITS)}"
        )
    options.arch = [arch for arch in SHARED_LIMITS if arch in options.arch]
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is not a folder")
    if options.quick and options.variant:
        parser.error("--quick and --variant exclude each other")
    if options.quick and options.multimem:
        parser.error("--quick and --multimem exclude each other: it is a one-shot kernel")
    if options.multimem and (lacking := [a for a in options.arch if a in _NO_MULTIMEM]):
        parser.error(_without_multimem(lacking[0]))
    names = {v.name for arch in options.arch for v in reachable_variants(arch)}
    if absent := sorted(set(options.variant) - names):
        parser.error(f"unknown variant {', '.join(absent)}; valid: {', '.join(sorted(names))}")
    return options


def _selected(options: argparse.Namespace, arch: str) -> Sequence[Variant]:
    if options.quick:
        return (QUICK_VARIANT,)
    variants = reachable_variants(arch)
    selected = [v for v in variants if not options.variant or v.name in options.variant]
    return [*selected, *multimem_forms(selected)] if options.multimem else selected


def multimem_forms(variants: Sequence[Variant]) -> list[Variant]:
    """Return the multimem form of each variant that has one: two-shot, for several ranks."""
    return [
        dataclasses.replace(variant, multimem=True)
        for variant in variants
        if variant.algorithm == "two_shot" and variant.world_size > 1
    ]


def _import_triton() -> Any:
    try:
        import triton
    except ImportError as error:
        raise MissingToolError(
            f'Triton is missing ({error}); install it with: pip install "gemm-allreduce[jit]"'
        ) from error
    except Exception as error:
        raise MissingToolError(f"Triton is installed but its import fails: {error}") from error
    if not hasattr(triton, "compile"):
        raise MissingToolError(
            "Triton is an empty namespace package, left over from an uninstall; "
            "remove site-packages/triton and install it again"
        )
    return triton


def _first_lines(error: Exception, limit: int = 12) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n  ".join([type(error).__name__, *lines[:limit]])


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
