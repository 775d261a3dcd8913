"""Checks the one-shot kernel on one GPU with virtual ranks; a script, not collected by pytest.

``python kernels/tests/gpu_virtual_ranks.py [--json FILE] [--time-limit SECONDS]``

For W 1, 2, 4, 8, M 1, 16, 33, 64, K 1024, 3696, N 8192, in bf16 and fp16:

* ``integer``: bit-equal to a reference that rounds every partial and sums in rank order; the
  inputs are small integers, so that fp32 accumulation is exact in any order;
* ``random``: every rank's partial (the same kernel and tile with W = 1) within a bound of an fp64
  product, and the W-rank result bit-equal to the sum of those partials in rank order;
* ``ranks``: all ranks bit-identical in both; ``inputs``: x and weight unchanged;
* ``repeat``: 50 calls without a host sync, a distinct payload each;
* ``graph``: a CUDA graph of 3 calls, replayed 4 times with new payloads, mixed with eager calls.

Then single checks: epoch wrap-around, two CTAs per multiprocessor, a wait on an absent peer.

Prints a table; the JSON has device, versions and every result. Exit codes: 0 all passed; 1 a
mismatch; 3 torch, Triton or the GPU is missing; 6 the time limit ran out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "src"
if SOURCES.is_dir():
    sys.path.insert(0, str(SOURCES))

try:
    import torch
    import triton
except ImportError as missing:
    print(f"error: {missing}; this script needs torch and Triton", file=sys.stderr)
    sys.exit(3)

import gemm_allreduce
from gemm_allreduce.launch import launch_one_shot
from gemm_allreduce.layout import HeapLayout
from gemm_allreduce.variants import Variant, find_variant
from gemm_allreduce.virtual_ranks import VirtualRanks

FEATURES = 8192
WORLD_SIZES = (1, 2, 4, 8)
TOKENS = (1, 16, 33, 64)
DEPTHS = (1024, 3696)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# 2**-p for a significand of p bits, the hidden one included: 8 for bf16, 11 for fp16.
UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11}
REPEATS = 50
SPIN_LIMIT = 1 << 20
DEVICE = "cuda"


class MismatchError(Exception):
    """A result is not what it must be."""


def require(condition: bool | torch.Tensor, message: str) -> None:
    if not bool(condition):
        raise MismatchError(message)


def require_equal(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Compare bit for bit, NaN included."""
    different = actual.view(torch.int16) != expected.view(torch.int16)
    if bool(different.any()):
        first = different.nonzero()[0].tolist()
        raise MismatchError(
            f"{what}: {int(different.sum())} of {different.numel()} elements differ, first at "
            f"{first}: {actual[tuple(first)].item()} instead of {expected[tuple(first)].item()}"
        )


def integers(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randint(-4, 5, shape, generator=generator, device=DEVICE).to(dtype)


def sum_in_rank_order(partials: torch.Tensor) -> torch.Tensor:
    """[W, M, N] in the element type -> [M, N]."""
    total = torch.zeros(partials.shape[1:], dtype=torch.float32, device=DEVICE)
    for partial in partials:
        total += partial.float()
    return total.to(partials.dtype)


def integer_reference(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    partials = torch.stack([a.float() @ w.float().T for a, w in zip(x, weight, strict=True)])
    return sum_in_rank_order(partials.to(x.dtype))


class Group:
    """Inputs and heaps for one (dtype, W, K)."""

    def __init__(self, name: str, world_size: int, depth: int, **options: Any) -> None:
        self.name, self.world_size, self.depth = name, world_size, depth
        self.dtype = DTYPES[name]
        self.generator = torch.Generator(DEVICE).manual_seed(1000 * world_size + depth)
        self.weight = integers(self.generator, self.dtype, world_size, FEATURES, depth)
        self.ranks = VirtualRanks(
            world_size, dtype=self.dtype, device=DEVICE, max_features=FEATURES, **options
        )

    def integers(self, tokens: int) -> torch.Tensor:
        return integers(self.generator, self.dtype, self.world_size, tokens, self.depth)

    def call(
        self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        if out is None:
            shape = (self.world_size, x.shape[1], FEATURES)
            out = torch.full(shape, float("nan"), dtype=self.dtype, device=DEVICE)
        return self.ranks(x, weight, out, spin_limit=SPIN_LIMIT)

    def require_all_ranks(self, y: torch.Tensor, expected: torch.Tensor, what: str) -> None:
        for rank in range(self.world_size):
            require_equal(y[rank], expected, f"{what}, rank {rank}")


def check_integer(group: Group, tokens: int) -> None:
    x = group.integers(tokens)
    x_before, weight_before = x.clone(), group.weight.clone()
    y = group.call(x, group.weight)
    group.ranks.check()
    group.require_all_ranks(y, integer_reference(x, group.weight), "integer")
    require_equal(x, x_before, "x changed")
    require_equal(group.weight, weight_before, "weight changed")


def check_random(group: Group, tokens: int, single: VirtualRanks) -> float:
    """Return the largest error of a partial as a fraction of its bound."""
    shape = (group.world_size, tokens, group.depth)
    x = torch.randn(shape, generator=group.generator, device=DEVICE).to(group.dtype)
    # randn of the weights' shape would dominate the run: reuse the integers, made irregular.
    weight = (group.weight.float() * 0.37 + 0.011).to(group.dtype)
    y = group.call(x, weight)
    group.ranks.check()
    partials = []
    worst = 0.0
    for rank in range(group.world_size):
        partial = single(x[rank : rank + 1], weight[rank : rank + 1], spin_limit=SPIN_LIMIT)[0]
        exact = x[rank].double() @ weight[rank].double().T
        magnitude = x[rank].double().abs() @ weight[rank].double().abs().T
        # One rounding to the element type, and fp32 accumulation over K with truncating adds.
        bound = exact.abs() * UNIT_ROUNDOFF[group.name] * 1.01
        bound += magnitude * (group.depth * 2.0**-23) + 2.0**-24
        ratio = float(((partial.double() - exact).abs() / bound).max())
        require(ratio <= 1, f"random: partial of rank {rank} is at {ratio:.3f} of its bound")
        worst = max(worst, ratio)
        partials.append(partial)
    single.check()
    group.require_all_ranks(y, sum_in_rank_order(torch.stack(partials)), "random")
    return worst


def check_repeat(group: Group, tokens: int) -> None:
    payloads = [group.integers(tokens) for _ in range(REPEATS)]
    torch.cuda.synchronize()
    results = [group.call(x, group.weight) for x in payloads]
    group.ranks.check()
    for call, (x, y) in enumerate(zip(payloads, results, strict=True)):
        group.require_all_ranks(y, integer_reference(x, group.weight), f"repeat, call {call}")


def check_graph(group: Group, tokens: int) -> None:
    inputs = [group.integers(tokens) for _ in range(3)]
    outputs = [
        torch.empty(group.world_size, tokens, FEATURES, dtype=group.dtype, device=DEVICE)
        for _ in range(3)
    ]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x, out in zip(inputs, outputs, strict=True):
            group.call(x, group.weight, out)
    for replay in range(4):
        for x, out in zip(inputs, outputs, strict=True):
            x.copy_(group.integers(tokens))
            out.fill_(float("nan"))
        graph.replay()
        eager_x = group.integers(tokens)
        eager_y = group.call(eager_x, group.weight)
        group.ranks.check()
        for number, (x, out) in enumerate(zip(inputs, outputs, strict=True)):
            what = f"graph, replay {replay}, call {number}"
            group.require_all_ranks(out, integer_reference(x, group.weight), what)
        expected = integer_reference(eager_x, group.weight)
        group.require_all_ranks(eager_y, expected, f"graph, eager call after replay {replay}")


def check_wrap(first_epoch: int) -> None:
    group = Group("bf16", 8, 1024, first_epoch=first_epoch)
    for call in range(6):
        x = group.integers(16)
        y = group.call(x, group.weight)
        group.ranks.check()
        group.require_all_ranks(y, integer_reference(x, group.weight), f"wrap, call {call}")
    expected = (first_epoch + 6 + 2**31) % 2**32 - 2**31
    require(group.ranks.epochs() == [expected] * 8, f"epochs are {group.ranks.epochs()}")


def check_two_ctas_per_sm() -> None:
    group = Group("bf16", 8, 1024, ctas_per_sm=2)
    check_integer(group, 16)
    check_repeat(group, 64)


def check_absent_peer() -> None:
    """Rank 0 of two, launched as a real rank, the other's heap plain memory that nobody serves."""
    variant = find_variant("bf16", 2)
    layout = HeapLayout(2, 64, FEATURES, variant.block_m, variant.block_n)
    heaps = torch.zeros(2, layout.total_bytes, dtype=torch.uint8, device=DEVICE)
    table = torch.tensor([heap.data_ptr() for heap in heaps], dtype=torch.int64, device=DEVICE)
    x = torch.ones(16, 1024, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.ones(FEATURES, 1024, dtype=torch.bfloat16, device=DEVICE)
    out = torch.zeros(16, FEATURES, dtype=torch.bfloat16, device=DEVICE)
    ctas = FEATURES // variant.block_n

    def launch() -> None:
        launch_one_shot(
            variant,
            layout,
            x,
            weight,
            out,
            table,
            rank=0,
            ctas=ctas,
            spin_limit=1 << 14,
            virtual=False,
        )
        torch.cuda.synchronize()

    launch()
    words = heaps.view(torch.int32).cpu()
    code, rank, tile, source, seen, expected = words[0, 32:38].tolist()
    require((code, rank, source, seen, expected) == (1, 0, 1, 0, 1), f"status {words[0, 32:38]}")
    require(0 <= tile < ctas, f"status names tile {tile}")
    require(out.isnan().all(), "output of a failed call is not NaN throughout")
    require(words[0, 0] == 1 and words[0, 16] == 0, "epoch or arrival counter is off")
    slots = heaps[1].view(torch.bfloat16)[layout.slots_offset // 2 :]
    pushed = slots[2 * layout.source_stride :][: layout.source_stride].view(64, FEATURES)
    require((pushed[:16] == 1024).all(), "the push to the absent peer did not arrive")
    before = heaps[1].clone()
    launch()
    require(torch.equal(heaps[1], before), "a rank that gave up still pushes")
    require(heaps.view(torch.int32)[0, 0] == 2, "epoch did not advance after a failure")


def attempt(check: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    try:
        value = check(*arguments)
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True} if value is None else {"ok": True, "value": value}


def run_matrix(rows: list[dict[str, Any]]) -> None:
    columns = ("integer", "random", "repeat", "graph")
    print("dtype  W   M     K  " + "".join(f"{column:>12}" for column in columns))
    for name in DTYPES:
        for world_size in WORLD_SIZES:
            tile = find_variant(name, world_size)
            single_variant = Variant(
                name, 1, tile.block_m, tile.block_n, tile.block_k, tile.num_stages, tile.num_warps
            )
            for depth in DEPTHS:
                single = VirtualRanks(
                    1,
                    dtype=DTYPES[name],
                    device=DEVICE,
                    max_features=FEATURES,
                    variant=single_variant,
                )
                group = Group(name, world_size, depth)
                for tokens in TOKENS:
                    results = {
                        "integer": attempt(check_integer, group, tokens),
                        "random": attempt(check_random, group, tokens, single),
                        "repeat": attempt(check_repeat, group, tokens),
                        "graph": attempt(check_graph, group, tokens),
                    }
                    rows.append(
                        {"dtype": name, "W": world_size, "M": tokens, "K": depth, "N": FEATURES}
                        | {"results": results}
                    )
                    cells = []
                    for column in columns:
                        result = results[column]
                        cell = "ok" if result["ok"] else "FAILED"
                        if "value" in result:
                            cell += f" {result['value']:.3f}"
                        cells.append(f"{cell:>12}")
                    print(f"{name}  {world_size:2} {tokens:3} {depth:5}  {''.join(cells)}")
                    for column, result in results.items():
                        if not result["ok"]:
                            print(f"    {column}: {result['error']}", file=sys.stderr)
                            # Heaps of a failed call are in no known state.
                            group = Group(name, world_size, depth)
                            single.heaps.zero_()


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the one-shot kernel with virtual ranks.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE")
    parser.add_argument("--time-limit", type=float, default=170.0, metavar="SECONDS")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device", file=sys.stderr)
        return 3
    torch.backends.cuda.matmul.allow_tf32 = False
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    singles: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {
        "ok": False,
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "versions": {
            "gemm_allreduce": gemm_allreduce.__version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "matrix": rows,
        "checks": singles,
    }

    def write_report() -> None:
        report["seconds"] = round(time.monotonic() - started, 1)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n")

    def expire() -> None:
        report["error"] = f"time limit of {options.time_limit} s ran out"
        print(f"error: {report['error']}", file=sys.stderr, flush=True)
        write_report()
        os._exit(6)  # the main thread may be stuck in a driver call

    watchdog = threading.Timer(options.time_limit, expire)
    watchdog.daemon = True
    watchdog.start()

    print(f"{report['device']}, torch {torch.__version__}, Triton {triton.__version__}")
    run_matrix(rows)
    singles["wrap past 2**31"] = attempt(check_wrap, 2**31 - 3)
    singles["wrap past 0"] = attempt(check_wrap, -3)
    singles["two CTAs per multiprocessor"] = attempt(check_two_ctas_per_sm)
    singles["absent peer"] = attempt(check_absent_peer)
    for name, result in singles.items():
        print(f"{name}: {'ok' if result['ok'] else result['error']}")
    watchdog.cancel()
    outcomes = [result for row in rows for result in row["results"].values()]
    outcomes += singles.values()
    failures = sum(not outcome["ok"] for outcome in outcomes)
    report["ok"] = failures == 0
    write_report()
    print(f"{len(outcomes) - failures} of {len(outcomes)} checks passed, {report['seconds']} s")
    return 0 if failures == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
