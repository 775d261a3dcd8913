"""Edges of what a call may be: sizes, memory around it, its inputs and its output's life."""

from __future__ import annotations

import torch

from gemm_allreduce.layout import EMPTY
from smoke_tests.checks.registry import check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, expected, require_equal


@check()
def most_tokens_and_one_more(ranks: Ranks) -> None:
    """M = 0, max_tokens, one more, and twice as many and some: split into several launches."""
    scale, w = ranks.scale, ranks.world_size
    most = 64 if ranks.kind == "cpu" else 256
    with ranks.workspace(max_tokens=most) as workspace:
        source = Source(ranks.device, 70)
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        for tokens in (0, most, most + 1, 2 * most + 33, 0):
            x = source.integers(workspace.dtype, w, tokens, scale.depths[0])
            y = ranks.call(workspace, x, weight)
            assert y.shape[1] == tokens
            want = expected(x, weight, workspace.dtype)
            ranks.require_equal(y, want, f"M {tokens}")


@check()
def features_and_depths_that_are_multiples_of_eight(ranks: Ranks) -> None:
    """N and K from 8 on, most of them no multiple of a tile."""
    w = ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 80)
        for features, depth in ((8, 8), (16, 24), (72, 40), (104, 136), (200, 264)):
            for tokens in (1, 65):
                x = source.integers(workspace.dtype, w, tokens, depth)
                weight = source.integers(workspace.dtype, w, features, depth)
                y = ranks.call(workspace, x, weight)
                want = expected(x, weight, workspace.dtype)
                ranks.require_equal(y, want, f"M {tokens} N {features} K {depth}")


@check()
def nothing_is_read_or_written_beyond_the_tensors(ranks: Ranks) -> None:
    """NaN around the inputs and in all slots, sentinels around the output, at every edge."""
    scale, w = ranks.scale, ranks.world_size
    pad = 1024
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 90)
        dtype, depth, features = workspace.dtype, scale.depths[-1], scale.features - 8
        # The last: in one-shot of two ranks its tiles reach into the cells, if it is one launch.
        for tokens in (1, 17, 65, *[256] * (scale.max_tokens >= 256)):
            words = workspace.words()
            words[:, workspace.layout.slots // 4 :] = -1  # NaN in bf16 and in fp16
            workspace.cells()[:] = EMPTY  # as it is between calls
            ranks.synchronize()
            ranks.gather(None)  # a peer may push only into what is poisoned already
            x = _guarded(source.integers(dtype, w, tokens, depth), float("nan"), pad)
            weight = _guarded(source.integers(dtype, w, features, depth), float("nan"), pad)
            before = x.clone(), weight.clone()
            lead = len(ranks.local)
            out = _guarded(
                torch.full((lead, tokens, features), float("nan"), dtype=dtype, device=x.device),
                -7.0,
                pad,
            )
            own_x = x if ranks.virtual else x[ranks.rank : ranks.rank + 1]
            assert own_x.data_ptr() % 16 == 0
            ranks.call(workspace, x, weight, out=out)
            ranks.synchronize()
            want = expected(x, weight, dtype)
            ranks.require_equal(out, want, f"M {tokens}")
            around = torch.as_strided(
                out, (out.numel() + 2 * pad,), (1,), out.storage_offset() - pad
            )
            assert bool((around[:pad] == -7).all() and (around[-pad:] == -7).all()), "output guard"
            ranks.gather(None)  # nobody is sending any more
            assert bool((workspace.cells() == EMPTY).all()), f"M {tokens}: cells were not emptied"
            require_equal(x, before[0], "x")
            require_equal(weight, before[1], "weight")
            ranks.gather(None)


def _guarded(values: torch.Tensor, guard: float, pad: int) -> torch.Tensor:
    buffer = torch.full(
        (values.numel() + 2 * pad,), guard, dtype=values.dtype, device=values.device
    )
    view = buffer[pad : pad + values.numel()].view(values.shape)
    view.copy_(values)
    return view


@check()
def a_result_outlives_later_calls(ranks: Ranks) -> None:
    """y is no view of the heap: later calls leave it alone."""
    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 100)
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        kept = []
        for tokens in (64, 64, 1, 64, scale.tokens[-1], 64):
            x = source.integers(workspace.dtype, w, tokens, scale.depths[0])
            y = ranks.call(workspace, x, weight)
            kept.append((y, expected(x, weight, workspace.dtype)))
        for call, (y, want) in enumerate(kept):
            ranks.require_equal(y, want, f"call {call}")
