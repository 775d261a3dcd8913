"""Compiles one kernel of each kind with the Triton and the sources at hand, and lints it.

``python ptx_cases.py OUT [--arch sm_90 ...] [--kind one_shot ...]``

A program of its own, since a process has one Triton and one gemm_allreduce: PYTHONPATH chooses
both. Writes ``OUT/<arch>.<kind>.ptx`` and ``.cubin``, and a JSON report to stdout, which also
compares what is read from the cubins with what NVIDIA's own tools say of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent))

from disassembly import accesses, resource_usage
from ptx_lint import WIDE, Expected, lint

from gemm_allreduce.arguments import ARGUMENTS
from gemm_allreduce.checks import check_cubin
from gemm_allreduce.compiler import Job, make_cubin, run_job
from gemm_allreduce.dispatch import Shape, choose
from gemm_allreduce.forked import run_forked
from gemm_allreduce.layout import ELEMENT_BYTES
from gemm_allreduce.resources import read_kernel
from gemm_allreduce.sass import count_accesses
from gemm_allreduce.toolchain import compile_environment, find_ptxas
from gemm_allreduce.variants import MULTIMEM_ELEMENTS, WARP, Operand, Variant

ARCHS = ("sm_80", "sm_90", "sm_100")

# Calls, not variants: what is linted follows the dispatch table.
KINDS: dict[str, tuple[int, int, Operand]] = {
    "direct": (16, 1, "bf16"),
    "direct_early": (16, 1, "bf16"),
    "direct_large": (8192, 1, "bf16"),
    "one_shot": (32, 4, "bf16"),
    "one_shot_early": (32, 4, "bf16"),
    "one_shot_two_ranks": (128, 2, "bf16"),
    "lamport": (16, 8, "bf16"),
    "lamport_early": (16, 8, "bf16"),
    "lamport_two_ranks_fp16": (16, 2, "fp16"),
    "two_shot_split": (64, 8, "bf16"),
    "two_shot_split_early": (64, 8, "bf16"),
    "two_shot": (8192, 8, "bf16"),
    "two_shot_early": (8192, 8, "bf16"),
    "two_shot_int8": (8192, 8, "int8"),
    "two_shot_split_fp8": (128, 8, "fp8e4m3"),
    "two_shot_multimem": (8192, 8, "bf16"),
    "two_shot_multimem_fp16": (8192, 8, "fp16"),
    "two_shot_split_multimem": (128, 8, "bf16"),
    "two_shot_split_multimem_fp16": (128, 8, "fp16"),
}
"""M, W and operand; N 8192, K 1024. Dispatch chooses no multimem: that is asked for, as an early
start is, and one-shot and Lamport, of which one serves a call."""


def kinds_of(arch: str) -> list[str]:
    """The kinds that an architecture has."""
    lacking = ("fp8", "multimem", "early") if arch == "sm_80" else ()
    return [kind for kind in KINDS if not any(name in kind for name in lacking)]


def variant_of(kind: str, arch: str) -> Variant:
    tokens, ranks, operand = KINDS[kind]
    dtype = "fp16" if operand == "fp16" else "bf16"
    variant = choose(Shape(tokens, 8192, 1024, ranks, arch, dtype, operand)).variant
    if variant.algorithm in ("one_shot", "lamport"):
        algorithm = "lamport" if kind.startswith("lamport") else "one_shot"
        variant = dataclasses.replace(variant, algorithm=algorithm)
    return dataclasses.replace(variant, multimem="multimem" in kind, early=512 * ("early" in kind))


def expected_of(variant: Variant) -> Expected:
    """Read off the sources: each wait_flags there, and each publish."""
    threads, ranks = WARP * variant.tile.num_warps, variant.world_size
    plain = {"threads": threads, "scaled": variant.scaled}
    plain |= {"bulk": variant.tile.bulk, "early": variant.early > 0}
    width = min(WIDE, variant.tile.area * ELEMENT_BYTES // threads)
    if variant.algorithm == "direct":
        return Expected(0, 0, ranks=0, tile_width=width, **plain)
    if variant.algorithm in ("one_shot", "lamport"):
        plain |= {"ranks": ranks, "tile_width": width, "unit_width": width, "empties": True}
        plain |= {"tile_pieces": variant.tile.area * ELEMENT_BYTES // (threads * width)}
        flags = variant.algorithm == "one_shot"
        return Expected(int(flags), int(flags), cells=not flags, **plain)
    unit = variant.unit_rows * variant.tile.block_n
    return Expected(
        *(2, 2),
        **plain,
        ranks=ranks,
        tile_width=width,
        unit_width=min(WIDE, unit * ELEMENT_BYTES // threads),
        multimem=unit // MULTIMEM_ELEMENTS // threads if variant.multimem else 0,
        element="bf16" if variant.dtype == "bf16" else "f16",
    )


def examine(job: Job, out: Path, stem: str) -> dict[str, Any]:
    import triton

    output = run_job(job)
    (out / f"{stem}.ptx").write_text(output.ptx)
    binary = out / f"{stem}.cubin"
    binary.write_bytes(output.data)
    cubin = make_cubin(job, output.data, output.shared)
    kernel = read_kernel(cubin.data)
    counts = count_accesses(kernel.code, kernel.sm).counts
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    usage = resource_usage(tools / "cuobjdump", binary)
    return {
        "variant": job.variant.name,
        "lint": lint(output.ptx, expected_of(job.variant), list(ARGUMENTS)),
        "findings": [str(f) for f in check_cubin(job.variant, cubin.record, cubin.data)],
        "local_bytes": kernel.local_bytes,
        "differences": {
            "registers": [kernel.registers, usage["REG"]],
            "local_bytes": [kernel.local_bytes, usage["STACK"] + usage["LOCAL"]],
            "accesses": [_sorted(counts), _sorted(accesses(tools / "nvdisasm", binary))],
        },
    }


def _sorted(counts: Mapping[Any, int]) -> list[str]:
    return sorted(f"{count} x {kind} {width}" for (kind, width), count in counts.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Lint the kernels' PTX.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--arch", action="append", choices=ARCHS)
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with compile_environment():
        import triton

        jobs = {
            f"{arch}.{kind}": Job(variant_of(kind, arch), arch, find_ptxas(arch), "")
            for arch in options.arch or ARCHS
            for kind in options.kind or kinds_of(arch)
        }
        stems = list(jobs)

        def examined(stem: str) -> dict[str, Any]:
            return examine(jobs[stem], options.out, stem)

        for done in run_forked(stems, examined, len(os.sched_getaffinity(0))):
            if done.result is None:
                print(f"{stems[done.index]}: {done.error}", file=sys.stderr)
                return 1
            results[stems[done.index]] = done.result
    import gemm_allreduce

    report = {
        "triton": triton.__version__,
        "sources": str(Path(gemm_allreduce.__file__).parent.parent),
        "results": results,
    }
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
