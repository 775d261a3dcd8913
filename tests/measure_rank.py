"""One rank of the measuring code on CPUs: python tests/measure_rank.py FOLDER RANK W [run|tune].

The kernels run in Triton's interpreter, and gloo takes NCCL's place. Prints JSON: of single cases,
or with `run` of everything that torchrun would start, on a tiny model; with `tune` of the tuner.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gemm_allreduce import Workspace
from gemm_allreduce.dispatch import Choice
from gemm_allreduce.transports.shared import SharedMemoryTransport
from gemm_allreduce.variants import Tile, Variant
from smoke_tests.measure import cli, limits, pairs, plan, processes, table, tune, tuning
from smoke_tests.measure.bench import OWN, Way, measure
from smoke_tests.measure.links import HOW, measure_pairs
from smoke_tests.measure.models import Model
from smoke_tests.measure.plan import Effort
from smoke_tests.measure.processes import MakeAllReduce, Nccl, OwnAllReduce, ProcessBench
from smoke_tests.measure.timing import HostTimer
from smoke_tests.records import dump

N, K, COPIES = 64, 32, 2
EFFORT = Effort((1, 5), 0.001, 2, 2, 2)


class Bench(ProcessBench):
    """With a way that is wrong on the last rank, and one that cannot be had there."""

    def ways(self, m: int) -> list[Way]:
        last = self.rank == self.world_size - 1

        def wrong(copy: int) -> torch.Tensor:
            return torch.full((m, N), float("nan") if last else 0.0, dtype=torch.float16)

        def absent(copy: int) -> torch.Tensor:
            raise RuntimeError("not here") if last else RuntimeError("nor here")

        return [*super().ways(m), Way("wrong", wrong), Way("absent", absent)]


def whole_run(bench: ProcessBench, w: int) -> list[str]:
    """Return the records, as lines."""
    tiny = Model("tiny", N, 64 * w, 4, 16 * w, 3)
    limits.COPY_BYTES, limits.SQUARE = 4096, 64
    models_of: Any = lambda _: [tiny]  # noqa: E731
    buffers: Any = lambda *_: [torch.zeros(64, dtype=torch.int32) for _ in range(w)]  # noqa: E731
    connect: Any = lambda *_: (bench, {"nccl": "not here"})  # noqa: E731
    effort: Any = lambda _: EFFORT  # noqa: E731
    cli.models_of, cli.effort_of, processes.connect = models_of, effort, connect
    setattr(pairs, "symmetric_buffers", buffers)  # noqa: B010 - it is not pairs' own
    os.environ.update(RANK=str(bench.rank), WORLD_SIZE=str(w))
    given = cli.parse(["--ranks", "processes", "--quick", "--out", "/none"])
    lines: list[str] = []
    failures = cli.run_processes(given, lambda record: lines.append(dump(record)))
    assert not failures
    return lines


def tuned(rank: int, w: int) -> dict[str, Any]:
    """Tune over two candidates that are right, and one that is wrong on the last rank."""
    group = dist.group.WORLD
    assert group is not None
    tiles = (Tile(16, 64, 32, 1, 4), Tile(16, 128, 32, 1, 4), Tile(16, 256, 32, 1, 4))
    choices = [Choice(Variant("one_shot", "fp16", "fp16", w, tile)) for tile in tiles]
    setattr(tuning, "candidates", lambda _: tuple(choices))  # noqa: B010 - it is not tuning's own
    setattr(tune, "QUICK", EFFORT)  # noqa: B010
    chooser = tuning.Chooser()
    workspace = Workspace(
        SharedMemoryTransport(group),
        max_tokens=64,
        max_features=N,
        dtype=torch.float16,
        dispatch=chooser,
    )

    class Wrong(ProcessBench):
        def ways(self, m: int) -> list[Way]:
            (fused,) = super().ways(m)

            def call(copy: int) -> torch.Tensor:
                y = fused.call(copy)
                return y + 99 if chooser.now == choices[2] and rank == w - 1 else y

            return [dataclasses.replace(fused, call=call)]

    bench = Wrong(group, torch.device("cpu"), workspace, {})
    given = argparse.Namespace(tokens=[5])
    layers = [(N, K)]
    # Nothing is compiled for an interpreter.
    kept: list[table.Tuned] = []
    found = tune.tune_ranks(
        given, bench, workspace, chooser, layers, kept.append, ahead=lambda *_: None
    )
    assert kept == [found]
    bench.close()
    (picked,) = found.picked
    origin = table.Origin("a CPU", "sm_90", 4, "interpreted", "2026-01-02", "processes", [(N, K)])
    text = table.text_of(origin, [found])
    return {"text": text, "timed": picked.timed, "refused": list(picked.refused.values())}


def main() -> None:
    plan.CALLS = pairs.CALLS = plan.COPIES = 2  # type: ignore[misc]
    folder, rank, w = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=w)
    if sys.argv[4:] == ["tune"]:
        print(json.dumps(tuned(rank, w)))
    else:
        print(json.dumps(measured(rank, w, whole=sys.argv[4:] == ["run"])))
    # A group that is held, if only by a cycle, when it is destroyed makes torch abort at exit.
    gc.collect()
    dist.destroy_process_group()


def measured(rank: int, w: int, *, whole: bool) -> Any:
    """Measure over all ranks; return what is printed. Nothing holds their group afterwards."""
    group = dist.group.WORLD
    assert group is not None
    device = torch.device("cpu")
    workspace = Workspace(
        SharedMemoryTransport(group), max_tokens=64, max_features=N, dtype=torch.float16
    )
    reduces: dict[str, MakeAllReduce] = {
        "gloo": Nccl(group, device, torch.float16),
        OWN: OwnAllReduce(workspace),
    }
    if whole:
        return whole_run(ProcessBench(group, device, workspace, reduces), w)
    bench = Bench(group, device, workspace, reduces)
    bench.load(N, K, COPIES, EFFORT.tokens)
    cases = [measure(bench, HostTimer(), m, N, K, COPIES, EFFORT) for m in EFFORT.tokens]
    buffers = [torch.zeros(64, dtype=torch.int32) for _ in range(w)]
    own, said = torch.ones(64, dtype=torch.int32), ""
    rates = {
        how: len(measure_pairs(rank, buffers, own, HostTimer(), bench.gather, how)) for how in HOW
    }
    if rank == 0:
        buffers[1] = torch.zeros(63, dtype=torch.int32)  # a copy into it fails
    try:
        measure_pairs(rank, buffers, own, HostTimer(), bench.gather)
    except RuntimeError as error:
        said = str(error)
    bench.close()
    return {"cases": [asdict(case) for case in cases], "pairs": said, "rates": rates}


if __name__ == "__main__":
    main()
