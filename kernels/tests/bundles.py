"""Runs the compiler as a user does, and says what is compiled once for several test files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gemm_allreduce
from gemm_allreduce.dispatch import Shape, choose, reachable_variants
from gemm_allreduce.variants import Dtype, Operand, Variant

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
ARCHS = ("sm_80", "sm_90")
CALLS: tuple[tuple[int, int, Dtype, Operand | None], ...] = (
    (16, 8, "bf16", None),
    (128, 1, "fp16", None),
    (64, 4, "bf16", None),
    (513, 2, "fp16", "int8"),
    (17, 4, "bf16", "fp8e4m3"),
)
"""M, W, types: one-shot, direct, two-shot with and without split, and each kind of operand."""


def variants_of(arch: str) -> tuple[Variant, ...]:
    """What an architecture runs for `CALLS`; sm_80 has no FP8.

    By a rank of few multiprocessors: its two-shot with split is that of every architecture. With a
    K that lets none start early, which the oldest cannot.
    """
    calls = [call for call in CALLS if call[3] != "fp8e4m3" or arch != "sm_80"]
    return tuple(
        choose(Shape(tokens, 8192, 14784, ranks, arch, dtype, operand, 48)).variant
        for tokens, ranks, dtype, operand in calls
    )


SELECTED = variants_of("sm_90")
WANTED = [
    (arch, variant)
    for arch in ARCHS
    for variant in reachable_variants(arch)
    if variant in {*variants_of("sm_80"), *SELECTED}
]
"""What `selection` compiles, in the table's order."""


@dataclass(frozen=True)
class Compiled:
    """What one run of the compiler left: the bundle, its report, the cache, the home folder."""

    out: Path
    report: dict[str, Any]
    cache: Path
    home: Path


@cache
def triton_problem() -> str | None:
    """Return why Triton cannot be imported, or None."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", "import triton; triton.compile"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


needs_triton = pytest.mark.skipif(
    triton_problem() is not None, reason=f"Triton cannot be imported: {triton_problem()}"
)


def environment_of(sources: Path, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment for a program that uses the package in `sources`."""
    environment = dict(os.environ) | {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "GEMM_AR_CUBINS"):
        environment.pop(name, None)
    return environment | variables


def run_module(
    module: str, *arguments: str | Path, sources: Path = SOURCES, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of the package; return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", f"gemm_allreduce.{module}", *map(str, arguments)],
        env=environment_of(sources, variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_compile(
    *arguments: str | Path, sources: Path = SOURCES, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the compiler; return how it ended."""
    return run_module("compile", *arguments, sources=sources, **variables)


def selection(out: Path) -> list[str | Path]:
    """Return the arguments that compile `WANTED` into a folder."""
    archs = [part for arch in ARCHS for part in ("--arch", arch)]
    variants = dict.fromkeys(variant for _, variant in WANTED)
    names = [part for variant in variants for part in ("--variant", variant.name)]
    return [*archs, *names, "--out", out, "--json"]


def compile_selection(folder: Path) -> Compiled:
    """Compile `WANTED` there, with an empty cache."""
    made = Compiled(folder / "out", {}, folder / "cache", folder / "home")
    made.home.mkdir()
    done = run_compile(*selection(made.out), "--cache", made.cache, HOME=str(made.home))
    assert done.returncode == 0, done.stderr
    made.report.update(json.loads(done.stdout))
    return made
