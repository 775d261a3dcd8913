"""Triton-distributed's own fused operator, where it is installed."""

from __future__ import annotations

from typing import Any

import torch

from smoke_tests.checks.registry import check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, bound, require_bound

CALLS = 20
FEATURES, DEPTH = 8192, 1024
CASES = (("low-latency", True, 16), ("two-stream", False, 1024))
"""Name, whether it is the low-latency kernel, M."""


def without_multimem(layer: Any) -> Any:
    """Return the layer, told to load and store; multicast may be unusable where it is present.

    Raises: AssertionError when that cannot be told: then the operator must not run.
    """
    layer.USE_MULTIMEM_ST = False
    for context in getattr(layer.ctx, "ctxs", [layer.ctx]):
        method = getattr(context, "all_reduce_method", None)
        if method is None or "multimem" not in method.name.lower():
            continue  # older ones have no such choice
        plain = [m for m in type(method) if m.name == method.name.replace("Multimem", "Load")]
        assert plain, f"{type(method).__name__} has nothing but multicast for {method.name}"
        context.all_reduce_method = plain[0]
    return layer


@check("nvshmem", least_ranks=2, own_gpu=True, needs="triton_dist")
def triton_distributed_gemm_all_reduce_is_right(ranks: Ranks) -> str:
    """`GemmARLayer`, by loads: within the bound of sums that are rounded W times; and how fast."""
    from triton_dist.layers.nvidia import GemmARLayer

    transport = ranks.connect()  # starts NVSHMEM, which can be started once
    w, dtype = ranks.world_size, torch.bfloat16
    said = []
    for name, low_latency, tokens in CASES:
        layer = without_multimem(
            GemmARLayer(
                ranks.group,
                tokens,
                FEATURES,
                DEPTH,
                dtype,
                dtype,
                local_world_size=w,
                use_ll_kernel=low_latency,
            )
        )
        source = Source(ranks.device, 220)
        x = source.normal(dtype, w, tokens, DEPTH)
        weight = source.normal(dtype, w, FEATURES, DEPTH)
        mine = x[ranks.rank].contiguous(), weight[ranks.rank].contiguous()
        with ranks.step(f"{name}, M {tokens}"):
            y = layer(*mine)
            torch.cuda.synchronize(ranks.device)
        exact, error = bound(x, weight, dtype)
        require_bound(y, exact, error * w, f"{name}, M {tokens}")
        said.append(f"{name} M {tokens}: {_call_us(layer, mine):.0f} us")
        ranks.synchronize()
        ranks.gather(None)
        layer.finalize()
    transport.close()
    return "; ".join(said)


def _call_us(layer: Any, operands: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return microseconds of an eager call, of many in a row."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    layer(*operands)
    begin.record()
    for _ in range(CALLS):
        layer(*operands)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end) * 1000 / CALLS)
