"""Many calls on one workspace: order, reuse, graphs, epochs, late ranks."""

from __future__ import annotations

import random
import time
from collections import ChainMap

import torch

from gemm_allreduce.dispatch import Choice
from smoke_tests.checks.registry import GPU, check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, expected


@check()
def calls_back_to_back_without_a_host_sync(ranks: Ranks) -> str:
    """A distinct payload and another M in every call; results are looked at only at the end."""
    scale, w = ranks.scale, ranks.world_size
    order = random.Random(7)
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 10)
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        payloads = [
            source.integers(workspace.dtype, w, order.choice(scale.tokens), scale.depths[0])
            for _ in range(scale.calls)
        ]
        ranks.synchronize()
        results = [ranks.call(workspace, x, weight) for x in payloads]
        ranks.synchronize()
        for call, (x, y) in enumerate(zip(payloads, results, strict=True)):
            ranks.require_equal(y, expected(x, weight, workspace.dtype), f"call {call}")
    return f"{scale.calls} calls"


@check()
def layers_and_algorithms_alternate_on_one_workspace(ranks: Ranks) -> None:
    """Another layer (N, K) and another algorithm and tile in every call, M up and down."""
    scale, w = ranks.scale, ranks.world_size
    named = dict(ChainMap(*ranks.families(ranks.dtypes[0])))
    now = [""]
    with ranks.workspace(dispatch=lambda _: named[now[0]]) as workspace:
        source = Source(ranks.device, 20)
        layers = [
            source.integers(workspace.dtype, w, features, depth)
            for features, depth in ((scale.features, scale.depths[0]), (104, 48), (8, 16))
        ]
        order = random.Random(8)
        done = []
        for call in range(scale.calls):
            now[0] = order.choice(list(named))
            weight = layers[call % len(layers)]
            fits = [m for m in scale.tokens if m <= ranks.most_tokens(named[now[0]])]
            x = source.integers(workspace.dtype, w, order.choice(fits), weight.shape[2])
            done.append((now[0], x, weight, ranks.call(workspace, x, weight)))
        ranks.synchronize()
        for name, x, weight, y in done:
            what = f"{name} M {x.shape[1]} N {weight.shape[1]}"
            ranks.require_equal(y, expected(x, weight, workspace.dtype), what)


@check()
def epoch_wraps_around(ranks: Ranks) -> None:
    """The call counter passes 2**31 - 1 and 0, with every algorithm of the table."""
    scale, w = ranks.scale, ranks.world_size
    for first in (2**31 - 3, -3):
        with ranks.workspace(first_epoch=first) as workspace:
            source = Source(ranks.device, 30)
            weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
            for call, tokens in enumerate((1, 64, 17, scale.tokens[-1], 33, 1)):
                x = source.integers(workspace.dtype, w, tokens, scale.depths[0])
                y = ranks.call(workspace, x, weight)
                ranks.require_equal(y, expected(x, weight, workspace.dtype), f"call {call}")
            last = (first + 6 + 2**31) % 2**32 - 2**31
            assert set(workspace.epochs()) == {last}, (workspace.epochs(), last)


@check(least_ranks=2)
def flags_that_rest_are_kept_from_growing_old(ranks: Ranks) -> None:
    """A flag that lags by 2**31 calls would look set: every 64th call lifts one that is old."""
    with ranks.workspace() as workspace:
        layout = workspace.layout
        first, end = layout.partial_flags // 4, layout.slots // 4
    word = end - first - 1
    epoch = 64 * word
    with ranks.workspace(first_epoch=epoch - 1) as workspace:
        flags = workspace.words()[:, first:end]
        old = epoch - 2**30 - 1
        flags[:, word - 1 :] = old
        ranks.synchronize()
        ranks.gather(None)
        source = Source(ranks.device, 35)
        x = source.integers(workspace.dtype, ranks.world_size, 1, 16)
        weight = source.integers(workspace.dtype, ranks.world_size, 8, 16)
        y = ranks.call(workspace, x, weight)
        ranks.require_equal(y, expected(x, weight, workspace.dtype), "call")
        rows = flags[:, word - 1 :].tolist()
        assert all(row == [old, epoch - 1] for row in rows), rows


@check("cpu", "nvshmem", "symmetric")
def each_rank_late_in_turn(ranks: Ranks) -> None:
    """A rank that comes late to a call, or is ahead by one, changes no result."""
    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 40)
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        for late in range(w):
            done = []
            for call in range(3):
                # With flags and without, as far as the table has both.
                x = source.integers(workspace.dtype, w, (80, 1, 33)[call], scale.depths[0])
                if ranks.rank == late:
                    time.sleep(0.2)
                    if ranks.device.type == "cuda":
                        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call] # clock cycles
                done.append((x, ranks.call(workspace, x, weight)))
            for call, (x, y) in enumerate(done):
                want = expected(x, weight, workspace.dtype)
                ranks.require_equal(y, want, f"rank {late} late, call {call}")


@check()
def a_rank_may_be_one_call_ahead(ranks: Ranks) -> None:
    """Calls of one tile in a row: only the protocol, with flags or not, keeps ranks together."""
    w = ranks.world_size
    kernels: dict[str, Choice] = {}
    for choice in dict(ChainMap(*ranks.families(ranks.dtypes[0]))).values():
        if choice.variant.algorithm in ("direct", "one_shot", "lamport"):
            kernels.setdefault(choice.variant.algorithm, choice)
    now = [next(iter(kernels.values()))]
    with ranks.workspace(dispatch=lambda _: now[0]) as workspace:
        source = Source(ranks.device, 45)
        weight = source.integers(workspace.dtype, w, 64, 32)
        payloads = [source.integers(workspace.dtype, w, 1 + call % 3, 32) for call in range(8)]
        for now[0] in kernels.values():
            ranks.synchronize()
            ranks.gather(None)
            results = [ranks.call(workspace, x, weight) for x in payloads]
            for call, (x, y) in enumerate(zip(payloads, results, strict=True)):
                want = expected(x, weight, workspace.dtype)
                ranks.require_equal(y, want, f"{now[0].variant.name} call {call}")


@check(*GPU)
def graphs_of_odd_and_even_length_mix_with_eager_calls(ranks: Ranks) -> None:
    """Captures of 1, 2 and 3 calls, replayed with new payloads between eager calls."""
    scale, w = ranks.scale, ranks.world_size
    for length in (1, 2, 3):
        with ranks.workspace() as workspace:
            source = Source(ranks.device, 50 + length)
            depth, dtype = scale.depths[0], workspace.dtype
            weight = source.integers(dtype, w, scale.features, depth)
            sizes = (16, 64, 512)[:length]
            inputs = [source.integers(dtype, w, m, depth) for m in sizes]
            shapes = [(len(ranks.local), m, scale.features) for m in sizes]
            outputs = [torch.empty(s, dtype=dtype, device=ranks.device) for s in shapes]
            mine = [x if ranks.virtual else x[ranks.rank : ranks.rank + 1] for x in inputs]
            static = [x.clone() for x in mine]
            own_weight = weight if ranks.virtual else weight[ranks.rank]

            def run(
                static: list[torch.Tensor] = static,
                outputs: list[torch.Tensor] = outputs,
                own_weight: torch.Tensor = own_weight,
            ) -> None:
                from gemm_allreduce import gemm_allreduce

                for x, out in zip(static, outputs, strict=True):
                    if ranks.virtual:
                        gemm_allreduce(x, own_weight, workspace, out=out)
                    else:
                        gemm_allreduce(x[0], own_weight, workspace, out=out[0])

            run()  # compiles
            ranks.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            for replay in range(4):
                inputs = [source.integers(dtype, w, m, depth) for m in sizes]
                for x, kept, out in zip(inputs, static, outputs, strict=True):
                    kept.copy_(x if ranks.virtual else x[ranks.rank : ranks.rank + 1])
                    out.fill_(float("nan"))
                graph.replay()
                eager = source.integers(dtype, w, 33, depth)
                y = ranks.call(workspace, eager, weight)
                ranks.synchronize()
                what = f"{length} calls, replay {replay}"
                for x, out in zip(inputs, outputs, strict=True):
                    ranks.require_equal(out, expected(x, weight, dtype), f"{what}, captured")
                ranks.require_equal(y, expected(eager, weight, dtype), f"{what}, eager")
            del graph


@check("virtual", time_limit_s=300)
def ten_thousand_calls(ranks: Ranks) -> str:
    """Back-to-back calls with distinct payloads and random M: no mismatch."""
    w, calls = ranks.world_size, 10_000
    order = random.Random(9)
    wrong = torch.zeros((), dtype=torch.int64, device=ranks.device)
    features, depth = 1024, 256
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 60)
        weight = source.integers(workspace.dtype, w, features, depth)
        for _ in range(calls):
            tokens = order.choice((1, 2, 16, 17, 48, 64, 100, 128, 300, 512))
            x = source.integers(workspace.dtype, w, tokens, depth)
            y = ranks.call(workspace, x, weight)
            parts = torch.bmm(x.float(), weight.float().transpose(1, 2)).to(workspace.dtype)
            wrong += (y != parts.float().cumsum(0)[-1].to(workspace.dtype)).sum()
        assert int(wrong) == 0, f"{int(wrong)} elements of {calls} calls are wrong"
    return f"{calls} calls"
