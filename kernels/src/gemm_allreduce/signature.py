"""What a compiler is told about a kernel, the same for ahead of time and just in time.

Also the digest of everything that decides compiled code: a bundle of cubins serves the package
whose digest it holds.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources
from typing import Any, Final

from .arguments import ARGUMENTS
from .variants import ENABLE_FP_FUSION, Variant

SOURCES: Final = (
    "arguments.py",
    "cells.py",
    "device.py",
    "direct.py",
    "lamport.py",
    "layout.py",
    "multimem.py",
    "one_shot.py",
    "signature.py",
    "two_shot.py",
    "variants.py",
)
"""Files of this package that decide what is compiled, and how it is called."""

_ELEMENTS: Final = {"bf16": "bf16", "fp16": "fp16", "fp8e4m3": "fp8e4nv", "int8": "i8"}
_FIXED: Final = {
    "heap_table": "*i64",
    "status_ptr": "*i32",
}


def constexprs(variant: Variant) -> dict[str, Any]:
    """Return the compile-time arguments of a variant."""
    values = {
        "W": variant.world_size,
        "BM": variant.tile.block_m,
        "BN": variant.tile.block_n,
        "BK": variant.block_k,
        "SPLIT": variant.split,
        "SCALED": variant.scaled,
        "BULK": variant.tile.bulk,
        "EARLY": variant.early,
    }
    if variant.algorithm != "direct":
        values["PRODUCT"] = variant.product
    if variant.algorithm == "two_shot":
        values["MULTIMEM"] = variant.multimem
    return values


def compile_options(variant: Variant) -> dict[str, Any]:
    """Return the compiler's options for a variant."""
    return {
        "num_warps": variant.tile.num_warps,
        "num_stages": variant.tile.num_stages,
        "enable_fp_fusion": ENABLE_FP_FUSION,
        # CTAs wait for each other: a grid that is not resident at once must fail, not hang.
        "launch_cooperative_grid": True,
        "launch_pdl": variant.early > 0,
    }


def signature(variant: Variant) -> dict[str, str]:
    """Return the type of every argument in Triton's notation, compile-time ones included."""
    types = dict.fromkeys(ARGUMENTS, "i32") | _FIXED
    types.update(dict.fromkeys(("x_ptr", "weight_ptr"), f"*{_ELEMENTS[variant.operand]}"))
    types.update(dict.fromkeys(("y_ptr", "bias_ptr", "residual_ptr"), f"*{variant.dtype}"))
    # Without scales a launch gives the status record in their place, see launch.pointers_of.
    scale = "*fp32" if variant.scaled else _FIXED["status_ptr"]
    types.update(dict.fromkeys(("x_scale_ptr", "weight_scale_ptr"), scale))
    types.update(dict.fromkeys(constexprs(variant), "constexpr"))
    return types


def kernel_of(variant: Variant) -> Any:
    """Return the Triton function of a variant. Imports Triton."""
    if variant.algorithm == "direct":
        from .direct import gemm_allreduce_direct

        return gemm_allreduce_direct
    if variant.algorithm == "one_shot":
        from .one_shot import gemm_allreduce_one_shot

        return gemm_allreduce_one_shot
    if variant.algorithm == "lamport":
        from .lamport import gemm_allreduce_lamport

        return gemm_allreduce_lamport
    from .two_shot import gemm_allreduce_two_shot

    return gemm_allreduce_two_shot


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Return the sha256, in hex, over the names and bytes of `SOURCES`."""
    digest = hashlib.sha256()
    for name in SOURCES:
        data = resources.files(__package__).joinpath(name).read_bytes()
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()
