"""Prints what decides the code of some kernels, launched just in time and compiled ahead of time.

A line per kernel: its name, and two of Triton's digests over sources, types, constants and options.
No GPU: a driver that only says which architecture it is of.
"""

from __future__ import annotations

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from gemm_allreduce.compiler import Job, run_job
from gemm_allreduce.jit import _sample
from gemm_allreduce.launch import Grid, Ranks, integers_of, pointers_of
from gemm_allreduce.layout import DESCRIPTOR_BYTES, MOST_CTAS, STATUS_WORDS, HeapLayout
from gemm_allreduce.signature import compile_options, constexprs, kernel_of
from gemm_allreduce.toolchain import find_ptxas
from gemm_allreduce.variants import Tile, Variant

VARIANTS = (
    Variant("direct", "bf16", "bf16", 1, Tile(16, 64, 64, 3, 4)),
    Variant("one_shot", "fp16", "fp16", 2, Tile(16, 128, 64, 3, 4), early=48),
    Variant("two_shot", "bf16", "fp8e4m3", 4, Tile(64, 64, 64, 3, 4, bulk=True), 4),
)


class Hopper:
    """What a compilation asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def main() -> None:
    driver.set_active(Hopper())
    taken: list[str] = []
    compile_ = triton.compiler.compile

    def noted(*arguments: object, **options: object) -> object:
        made = compile_(*arguments, **options)
        taken.append(made.hash)
        return made

    triton.compile = triton.compiler.compile = noted
    layout = HeapLayout(4, 64, 64)
    for variant in VARIANTS:
        ranks = Ranks(
            layout,
            torch.zeros(4, dtype=torch.int64),
            torch.zeros(4, STATUS_WORDS, dtype=torch.int32),
            torch.zeros(MOST_CTAS * DESCRIPTOR_BYTES // 4, dtype=torch.int32),
            0,
            True,
        )
        made = kernel_of(variant).warmup(
            *pointers_of(ranks, _sample(variant, ranks)),
            *integers_of(ranks, _sample(variant, ranks), Grid(1, 1, 0), 1),
            grid=(1, 1),
            **constexprs(variant),
            **compile_options(variant),
        )
        taken.clear()
        run_job(Job(variant, "sm_90", find_ptxas("sm_90"), ""))
        print(variant.name, made.hash, *taken)


if __name__ == "__main__":
    main()
