"""Launches the one-shot kernel: compile-time options and argument order in one place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .layout import HeapLayout
from .variants import ENABLE_FP_FUSION, Variant

if TYPE_CHECKING:
    import torch


def launch_one_shot(
    variant: Variant,
    layout: HeapLayout,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    heap_table: torch.Tensor,
    *,
    rank: int,
    ctas: int,
    spin_limit: int,
    virtual: bool,
) -> None:
    """Launch the kernel on the current stream without waiting for it. Checks no shapes.

    Args:
        variant: what was fixed at compile time.
        layout: layout of the heaps behind ``heap_table``.
        x: [M, K], or [W, M, K] if ``virtual``; contiguous, as the two below.
        weight: [N, K] or [W, N, K].
        out: [M, N] or [W, M, N]; written.
        heap_table: int64 [W], address of each rank's heap in this process.
        rank: this rank; ignored if ``virtual``.
        ctas: CTAs of the launch, of all ranks together if ``virtual``; all must fit on the GPU.
        spin_limit: polls of one flag before a wait gives up.
        virtual: run all ranks in this launch.

    Raises:
        RuntimeError: neither a CUDA device nor an interpreter that can run it.
    """
    import triton

    from .one_shot import gemm_allreduce_one_shot as kernel

    options: dict[str, Any] = {}
    if not isinstance(kernel, triton.JITFunction):  # TRITON_INTERPRET=1
        if virtual and variant.world_size > 1:
            raise RuntimeError(
                "Triton's interpreter runs CTAs one after another: several virtual ranks "
                "would wait for each other; use one process per rank"
            )
        if variant.dtype == "bf16":
            raise RuntimeError("tl.dot on bf16 is wrong in Triton's interpreter; use fp16")
    elif out.device.type != "cuda":
        raise RuntimeError(
            f"the kernel needs a CUDA device, or TRITON_INTERPRET=1 set before Triton is imported "
            f"(TRITON_INTERPRET is {os.environ.get('TRITON_INTERPRET')!r}); got {out.device}"
        )
    else:
        options = {
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
            "enable_fp_fusion": ENABLE_FP_FUSION,
            # CTAs wait for each other: a grid that is not resident at once must fail, not hang.
            "launch_cooperative_grid": True,
        }
    tokens, depth, features = x.shape[-2], x.shape[-1], weight.shape[-2]
    kernel[(ctas,)](
        x,
        weight,
        out,
        heap_table,
        tokens,
        features,
        depth,
        rank,
        layout.flags_offset,
        layout.slots_offset,
        layout.source_stride,
        layout.row_stride,
        spin_limit,
        W=variant.world_size,
        BM=variant.block_m,
        BN=variant.block_n,
        BK=variant.block_k,
        VIRTUAL=virtual,
        **options,
    )
