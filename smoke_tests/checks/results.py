"""Are the numbers right, and the same everywhere?"""

from __future__ import annotations

from collections import ChainMap

import torch

from smoke_tests.checks.registry import PROCESSES, check
from smoke_tests.ranks import TORCH_DTYPES, Ranks
from smoke_tests.reference import (
    Source,
    bound,
    expected,
    fingerprint,
    partials,
    require_bound,
    require_equal,
    sum_in_rank_order,
)


@check()
def integers_are_exact(ranks: Ranks) -> str:
    """Every M, K and type of the scale through the dispatch table, compared with ==."""
    scale, w, count = ranks.scale, ranks.world_size, 0
    for dtype in ranks.dtypes:
        with ranks.workspace(dtype) as workspace:
            for depth in scale.depths:
                source = Source(ranks.device, 1000 + depth)
                weight = source.integers(TORCH_DTYPES[dtype], w, scale.features, depth)
                for tokens in scale.tokens:
                    x = source.integers(TORCH_DTYPES[dtype], w, tokens, depth)
                    y = ranks.call(workspace, x, weight)
                    want = expected(x, weight, workspace.dtype)
                    ranks.require_equal(y, want, f"{dtype} M {tokens} K {depth}")
                    count += 1
    return f"{count} shapes"


@check()
def random_values_are_within_the_bound(ranks: Ranks) -> str:
    """Normal inputs against a float64 product, with a bound derived from K and W."""
    scale, w, worst = ranks.scale, ranks.world_size, 0.0
    for dtype in ranks.dtypes:
        with ranks.workspace(dtype) as workspace:
            for depth in scale.depths:
                source = Source(ranks.device, 2000 + depth)
                weight = source.normal(TORCH_DTYPES[dtype], w, scale.features, depth)
                for tokens in scale.tokens[1::3]:
                    x = source.normal(TORCH_DTYPES[dtype], w, tokens, depth)
                    y = ranks.call(workspace, x, weight)
                    exact, error = bound(x, weight, workspace.dtype)
                    for index, rank in enumerate(ranks.local):
                        what = f"{dtype} M {tokens} K {depth} rank {rank}"
                        worst = max(worst, require_bound(y[index], exact, error, what))
    return f"at most {worst:.2f} of the bound"


@check()
def every_rank_counts_once(ranks: Ranks) -> None:
    """Rank r adds 2**r: a missing or doubled rank shows as a missing or doubled bit."""
    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        for tokens in scale.tokens:
            x = torch.zeros(w, tokens, scale.depths[0], dtype=workspace.dtype, device=ranks.device)
            weight = torch.zeros(
                w, scale.features, scale.depths[0], dtype=workspace.dtype, device=ranks.device
            )
            x[:, :, -1] = 1
            weight[:, :, -1] = 2.0 ** torch.arange(w, device=ranks.device)[:, None]
            y = ranks.call(workspace, x, weight)
            want = torch.full_like(y[0], 2.0**w - 1)
            ranks.require_equal(y, want, f"M {tokens}")


@check()
def ranks_runs_and_algorithms_agree_bit_for_bit(ranks: Ranks) -> str:
    """Random values, one tile: all its kernels, twice, on all ranks: one bit pattern."""
    scale, w, compared = ranks.scale, ranks.world_size, 0
    for dtype in ranks.dtypes:
        for choices in ranks.families(dtype):
            now = [""]
            with ranks.workspace(dtype, dispatch=lambda _: choices[now[0]]) as workspace:  # noqa: B023
                source = Source(ranks.device, 3000)
                weight = source.normal(workspace.dtype, w, scale.features, scale.depths[0])
                for tokens in (1, 17, min(64, workspace.layout.small_tokens)):
                    x = source.normal(workspace.dtype, w, tokens, scale.depths[0])
                    seen: dict[str, str] = {}
                    serving = [n for n, c in choices.items() if ranks.most_tokens(c) >= tokens]
                    if not serving:  # a tile that only few rows have
                        continue
                    for name in (*serving, *serving):
                        now[0] = name
                        y = ranks.call(workspace, x, weight)
                        for index, rank in enumerate(ranks.local):
                            seen[f"{name} rank {rank}"] = fingerprint(y[index])
                    everywhere = set().union(*(set(v.values()) for v in ranks.gather(seen)))
                    assert len(everywhere) == 1, f"{dtype} M {tokens}: {seen}"
                    compared += len(seen)
    assert compared, "there is no kernel to compare"
    return f"{compared} results of this process"


@check()
def bias_and_residual_are_added_once(ranks: Ranks) -> None:
    """Each alone and both, with every kernel; residual may be the output."""
    scale, w = ranks.scale, ranks.world_size
    choices = dict(ChainMap(*ranks.families(ranks.dtypes[0])))
    now = [""]
    with ranks.workspace(dispatch=lambda _: choices[now[0]]) as workspace:
        source = Source(ranks.device, 4000)
        dtype, tokens = workspace.dtype, 33
        weight = source.integers(dtype, w, scale.features, scale.depths[0])
        x = source.integers(dtype, w, tokens, scale.depths[0])
        bias = source.integers(dtype, scale.features, limit=9)
        residual = source.integers(dtype, tokens, scale.features, limit=9)
        parts = partials(x, weight, dtype)
        for now[0], choice in choices.items():
            rows = slice(min(tokens, ranks.most_tokens(choice)))
            some, summands = x[:, rows].contiguous(), parts[:, rows]
            for extras in (
                {"bias": bias},
                {"residual": residual[rows]},
                {"bias": bias, "residual": residual[rows]},
            ):
                y = ranks.call(workspace, some, weight, **extras)
                want = sum_in_rank_order(summands, **extras)
                ranks.require_equal(y, want, f"{now[0]} {sorted(extras)}")
            if not ranks.virtual:
                changed = residual[rows].clone()
                ranks.call(workspace, some, weight, residual=changed, out=changed[None])
                want = sum_in_rank_order(summands, residual=residual[rows])
                require_equal(changed, want, "in place")


@check()
def eight_bit_operands_with_scales(ranks: Ranks) -> str:
    """int8, and FP8 where the device has it, with per-token and per-channel scales."""
    scale, w = ranks.scale, ranks.world_size
    depth = 80 if ranks.kind == "cpu" else scale.depths[1]
    types = [torch.int8] if ranks.kind == "cpu" else [torch.int8, torch.float8_e4m3fn]
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 5000)
        for dtype in types:
            for tokens in scale.tokens[:3]:
                x = source.integers(torch.float32, w, tokens, depth)
                weight = source.integers(torch.float32, w, scale.features, depth)
                # Powers of two: exact, so that a scale on the wrong row or column shows.
                x_scale = 2.0 ** source.integers(torch.float32, w, tokens, limit=2)
                weight_scale = 2.0 ** source.integers(torch.float32, w, scale.features, limit=2)
                y = ranks.call(
                    workspace,
                    x.to(dtype),
                    weight.to(dtype),
                    x_scale=x_scale,
                    weight_scale=weight_scale,
                )
                want = expected(
                    x * x_scale[:, :, None], weight * weight_scale[:, :, None], workspace.dtype
                )
                ranks.require_equal(y, want, f"{dtype} M {tokens}")
    return ", ".join(map(str, types))


@check(*PROCESSES)  # a layer holds the weight of one rank
def row_parallel_layer_equals_a_linear_layer(ranks: Ranks) -> None:
    """RowParallelLinear on [batch, tokens, K_local], with bias, against the unsplit layer."""
    from gemm_allreduce import RowParallelLinear

    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 6000)
        depth = scale.depths[0]
        layer = RowParallelLinear(workspace, depth, scale.features, bias=True)
        weight = source.integers(workspace.dtype, w, scale.features, depth)
        layer.weight.copy_(weight[ranks.rank])
        assert layer.bias is not None
        layer.bias.copy_(source.integers(workspace.dtype, scale.features))
        x = source.integers(workspace.dtype, w, 6, depth)
        y = layer(x[ranks.rank].view(2, 3, depth))
        want = sum_in_rank_order(partials(x, weight, workspace.dtype), layer.bias)
        require_equal(y, want.view(2, 3, -1), "layer")
