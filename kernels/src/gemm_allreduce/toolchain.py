"""The compilers at hand: Triton and ptxas, what they are, and what is known to be wrong with them.

Imports Triton only when asked for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_PTXAS_VARIABLES: Final = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
_OTHER_VARIABLES: Final = ("DISABLE_PTXAS_OPT", "PTXAS_OPTIONS", "DISABLE_LLVM_OPT")

_FORK_MARK: Final = b"distributed.get_rank"
"""An operation that Triton-distributed adds to the compiler; stock Triton does not know it."""

_IDENTITY: Final = ("**/*.py", "_C/libtriton*.so", "backends/nvidia/lib/*.bc")
"""Files of the package triton that decide what it makes. ptxas is told apart by itself."""


class MissingToolError(Exception):
    """Triton or ptxas is missing on this host; the message says what to do."""


@dataclass(frozen=True)
class Ptxas:
    """The ptxas that Triton uses for an architecture: path, version like ``12.8.93``, digest."""

    path: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Triton:
    """The Triton at hand.

    Attributes:
        version: what it says of itself.
        distribution: version in the metadata that pip wrote, or empty where there is none.
        distributed: whether it is Triton-distributed.
        sha256: over all its files that decide what it makes.
    """

    version: str
    distribution: str
    distributed: bool
    sha256: str


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


def import_triton() -> Any:
    """Return the module triton.

    Raises:
        MissingToolError: it is missing, or what is there is not usable.
    """
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


def find_triton() -> Triton:
    """Return what the Triton at hand is. Reads all of its compiler: half a second.

    Raises:
        MissingToolError: Triton can't be imported, or its files can't be read.
    """
    module = import_triton()
    root = Path(module.__file__).resolve().parent
    digest = hashlib.sha256()
    distributed = False
    try:
        files = sorted({path for pattern in _IDENTITY for path in root.glob(pattern)})
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
            if not size:
                continue  # cannot be mapped
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                digest.update(data)
                if path.suffix == ".so":
                    distributed = distributed or data.find(_FORK_MARK) >= 0
    except OSError as error:
        raise MissingToolError(f"Triton's files can't be read: {error}") from error
    return Triton(str(module.__version__), _distribution(root), distributed, digest.hexdigest())


def _distribution(root: Path) -> str:
    """Version in the metadata of the Triton in that folder; another's may come first."""
    for found in importlib.metadata.distributions(name="triton"):
        if Path(str(found.locate_file("triton"))).resolve() == root:
            return found.version
    return ""


def find_ptxas(arch: str) -> Ptxas:
    """Return the ptxas that Triton will run for an architecture.

    Raises:
        MissingToolError: Triton can't be imported, or would silently use another ptxas than the
            one that the environment names.
    """
    version = import_triton().__version__
    try:
        from triton.backends.nvidia.compiler import get_ptxas
    except ImportError as error:
        raise MissingToolError(f"Triton {version} has no NVIDIA backend: {error}") from error

    capability = int(arch.removeprefix("sm_"))
    # Triton 3.6 and later keep a second ptxas for Blackwell, and ask for the architecture.
    arguments = [capability] if inspect.signature(get_ptxas).parameters else []
    try:
        path = str(get_ptxas(*arguments).path)
        found = _identify(path)
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
        raise MissingToolError(f"no working ptxas for {arch}: {error}") from error
    variable = _PTXAS_VARIABLES[1 if arguments and capability >= 100 else 0]
    wanted = os.environ.get(variable, "").strip()
    if wanted and wanted != path:
        raise MissingToolError(
            f"{variable} names {wanted}, which is not a working ptxas (Triton would quietly use "
            f"{path}); correct or unset it"
        )
    return found


@lru_cache
def _identify(path: str) -> Ptxas:
    """Raises OSError, SubprocessError, or ValueError for one that names no version."""
    output = subprocess.run(
        [path, "--version"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", output)
    if match is None:
        raise ValueError(f"{path} --version names no version: {output.strip()!r}")
    with open(path, "rb") as file:
        return Ptxas(path, match.group(1), hashlib.file_digest(file, "sha256").hexdigest())


def check_line(cuda: str, arch: str, ptxas: Ptxas) -> None:
    """Check that a ptxas is that of a CUDA line.

    Raises:
        MissingToolError: it is another one's: drivers of the line might not load what it makes.
    """
    if ptxas.version.rpartition(".")[0] != cuda:
        raise MissingToolError(
            f"{arch}: {ptxas.path} is ptxas {ptxas.version}, not that of CUDA {cuda}; let "
            f"TRITON_PTXAS_PATH name the ptxas of CUDA {cuda}, or leave --cuda out"
        )


def warnings_for(arch: str) -> list[str]:
    """Return known faults of the Triton at hand on an architecture."""
    version = str(import_triton().__version__)
    if arch in ("sm_100", "sm_103") and version.startswith("3.6."):
        return [f"{arch}: Triton {version} has a fault in tl.dot there (#9871); use 3.7 or later"]
    return []
