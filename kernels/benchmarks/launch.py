"""What a first call costs, and what every launch costs the host: cubins against Triton. One GPU.

``python kernels/benchmarks/launch.py [--repeats N] [--out FILE]`` prints a table and writes JSON.

First call: a new process for each, its CUDA context made before the clock starts, Triton's cache
empty. Launch: one process, batches of launches of one small kernel, alternating between the two;
the queue is empty before a batch, and what is timed is the host's part alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {"W": 8, "M": 16, "N": 8192, "K": 1024}
LAYERS = [(8192, 1024), (8192, 3696)]
"""(N, K) of o_proj and down_proj of Qwen2.5-72B at 8 ranks."""
BATCH = 200
MODES = ("cubins", "jit")


def first_call(kernels: str) -> dict[str, float]:
    """Return milliseconds of the steps to a first result in this process."""
    import torch

    torch.set_grad_enabled(False)
    x = torch.ones(SHAPE["W"], SHAPE["M"], SHAPE["K"], dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(SHAPE["W"], SHAPE["N"], SHAPE["K"], dtype=torch.bfloat16, device="cuda")
    torch.cuda.synchronize()
    times = [time.perf_counter()]
    from gemm_allreduce import Workspace, gemm_allreduce
    from gemm_allreduce.transports.virtual import VirtualTransport

    transport = VirtualTransport(SHAPE["W"], "cuda")
    workspace = Workspace(transport, max_tokens=2048, max_features=SHAPE["N"], kernels=kernels)  # type: ignore[arg-type]
    torch.cuda.synchronize()
    for _ in range(2):
        times.append(time.perf_counter())
        y = gemm_allreduce(x, weight, workspace)
        torch.cuda.synchronize()
    times.append(time.perf_counter())
    assert bool((y == SHAPE["W"] * SHAPE["K"]).all()), "wrong result"
    done = workspace.warmup(LAYERS)
    workspace.close()
    steps = [(b - a) * 1000 for a, b in itertools.pairwise(times)]
    names = ("import and workspace", "first call", "second call")
    return dict(zip(names, steps, strict=True)) | {
        "warmup": done.seconds * 1000,
        "kernels loaded by warmup": len(done.loaded),
        "Triton imported": float("triton" in sys.modules),
    }


def launches(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return microseconds per launch, and per call, of each batch and mode."""
    import torch

    from gemm_allreduce import Workspace, gemm_allreduce
    from gemm_allreduce.dispatch import Shape, choose
    from gemm_allreduce.launch import Operands
    from gemm_allreduce.transports.virtual import VirtualTransport

    torch.set_grad_enabled(False)
    x = torch.ones(1, 1, 16, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(1, 64, 16, dtype=torch.bfloat16, device="cuda")
    y = torch.empty(1, 1, 64, dtype=torch.bfloat16, device="cuda")
    spaces = {}
    for mode in MODES:
        transport = VirtualTransport(1, "cuda")
        spaces[mode] = Workspace(transport, max_tokens=64, max_features=64, kernels=mode)  # type: ignore[arg-type]
    choice = choose(Shape(1, 64, 16, 1, spaces["cubins"].arch))
    operands = Operands(x, weight, y)
    times: dict[str, dict[str, list[float]]] = {"launch": {}, "call": {}}
    for repeat in range(repeats + 3):
        for mode, space in spaces.items():
            grid = space.grid(choice, 1, 64)
            ranks, limit = space._ranks, space._spin_limit
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(BATCH):
                space.kernels.launch(choice.variant, ranks, operands, grid, limit)
            middle = time.perf_counter()
            torch.cuda.synchronize()
            again = time.perf_counter()
            for _ in range(BATCH):
                gemm_allreduce(x, weight, space, out=y)
            end = time.perf_counter()
            if repeat >= 3:  # the first ones compile and load
                times["launch"].setdefault(mode, []).append((middle - begin) / BATCH * 1e6)
                times["call"].setdefault(mode, []).append((end - again) / BATCH * 1e6)
    return times


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(first_call(given.child)))
        return 0
    steps: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(given.repeats):
        for mode in MODES:
            steps[mode].append(_in_a_new_process(mode))
    found = {"first": steps, "host": launches(given.repeats)}
    report = {"schema": 1, "machine": _machine(), "shape": SHAPE, "layers": LAYERS, **found}
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    _show(report)
    return 0


def _in_a_new_process(mode: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--child", mode],
            env=os.environ | {"TRITON_CACHE_DIR": cache, "TRITON_HOME": cache},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _machine() -> dict[str, Any]:
    import torch

    from gemm_allreduce.kernels import choose_kernels

    major, minor = torch.cuda.get_device_capability()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "cuda-core": importlib.metadata.version("cuda-core"),
        "cubins": choose_kernels("cubins", f"sm_{major}{minor}", 0).describe().split(", from")[0],
    }


def _show(report: dict[str, Any]) -> None:
    print(json.dumps(report["machine"]))
    for name in report["first"]["cubins"][0]:
        values = {m: [run[name] for run in runs] for m, runs in report["first"].items()}
        texts = [
            f"{m} {statistics.median(v):9.2f} (at most {max(v):.2f})" for m, v in values.items()
        ]
        print(f"{name:26} {'   '.join(texts)}")
    for what, modes in report["host"].items():
        texts = [f"{m} {statistics.median(v):6.2f} us" for m, v in modes.items()]
        ratio = statistics.median(modes["cubins"]) / statistics.median(modes["jit"])
        print(f"{what:26} {'   '.join(texts)}   ratio {ratio:.3f}")


if __name__ == "__main__":
    sys.exit(main())
