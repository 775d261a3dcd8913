"""Tune the dispatch table on this GPU; write a table that GEMM_AR_DISPATCH can name.

python -m smoke_tests.measure tune --ranks virtual --w 1,2,4,8 --out FILE.toml
torchrun --nproc-per-node=2 -m smoke_tests.measure tune --ranks processes --out FILE.toml
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from gemm_allreduce import Workspace
from gemm_allreduce.dispatch import Choice, Shape
from gemm_allreduce.jit import JitKernels
from smoke_tests.ahead import compile_ahead
from smoke_tests.measure.bench import Bench
from smoke_tests.measure.inputs import l2_bytes
from smoke_tests.measure.models import models, shapes_of
from smoke_tests.measure.options import check_ranks, numbers, ranks_parser, writes
from smoke_tests.measure.picking import Picked
from smoke_tests.measure.plan import QUICK
from smoke_tests.measure.table import Origin, Tuned, text_of
from smoke_tests.measure.timing import timer_for
from smoke_tests.measure.tuning import Ahead, Chooser, Resources, TunedBench, tune

Layers = list[tuple[int, int]]
"""(N, K of a rank) of each layer."""
Draft = Callable[[Sequence[Tuned], Layers], None]
"""Takes the table so far."""
TOKENS: Final = (16, 64, 256, 1024, 8192)
"""Rules end at these M, and are timed there."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options. Raises: SystemExit 2."""
    parser = ranks_parser("python -m smoke_tests.measure tune", __doc__, "the table")
    tokens = f"values of M at which rules end; default {','.join(map(str, TOKENS))}"
    parser.add_argument("--tokens", type=numbers, default=list(TOKENS), help=tokens)
    model = "whose layers are timed; may be repeated; default Qwen2.5-72B"
    parser.add_argument("--model", action="append", choices=list(models()), help=model)
    given = parser.parse_args(arguments)
    check_ranks(parser, given)
    if not given.tokens or min(given.tokens) < 1:
        parser.error("--tokens: every M is 1 or more")
    given.tokens = sorted(set(given.tokens))
    given.model = given.model or ["Qwen2.5-72B"]
    return given


def tune_ranks(
    given: argparse.Namespace,
    bench: Bench,
    workspace: Workspace,
    chooser: Chooser,
    layers: Sequence[tuple[int, int]],
    keep: Callable[[Tuned], None],
    resources: Resources | None = None,
    ahead: Ahead = compile_ahead,
) -> Tuned:
    """Tune for the ranks of a bench, whose workspace asks the chooser. Collective.

    `keep` takes what was found so far, after every M.
    Raises: StepError as `tune`.
    """

    def shape_of(m: int, n: int, k: int) -> Shape:
        return workspace.shape(m, n, k)

    def say(line: str) -> None:
        if bench.rank == 0:
            print(line, file=sys.stderr, flush=True)

    device, processors = workspace.device, shape_of(1, 8, 8).processors

    def tuned(picked: Sequence[Picked]) -> Tuned:
        return Tuned(bench.world_size, processors, tuple(picked))

    picked = tune(
        TunedBench(bench, chooser),
        timer_for(device),
        shape_of,
        layers,
        replace(QUICK, tokens=tuple(given.tokens), latency_rounds=0),
        l2_bytes(device),
        resources or _compiler(workspace, chooser),
        ahead,
        say,
        lambda found: keep(tuned(found)),
    )
    return tuned(picked)


def _compiler(workspace: Workspace, chooser: Chooser) -> Resources:
    def resources(choice: Choice, m: int, n: int, k: int) -> tuple[int, int] | None:
        chooser.now = choice
        try:
            workspace.warmup([(n, k)], tokens=[m])
        finally:
            chooser.now = None
        kernels = workspace.kernels
        return kernels.resources(choice.variant) if isinstance(kernels, JitKernels) else None

    return resources


def run_virtual(given: argparse.Namespace, draft: Draft) -> tuple[list[Tuned], Layers]:
    """Tune virtual ranks on the current GPU; return what was picked, and the layers."""
    from smoke_tests.measure.virtual import VirtualBench

    device = torch.device("cuda", torch.cuda.current_device())
    tuned: list[Tuned] = []
    layers = [(s.n, s.k) for s in shapes_of([models()[name] for name in given.model], 8)]

    def keep(now: Tuned) -> None:
        draft([*tuned, now], layers)

    for w in given.w:
        chooser = Chooser()
        most, widest = max(given.tokens), max(n for n, _ in layers)
        bench = VirtualBench(w, device, most, widest, dispatch=chooser, kernels="jit")
        print(f"W {w}", file=sys.stderr)
        tuned.append(tune_ranks(given, bench, bench.workspace, chooser, layers, keep))
        bench.close()
        torch.cuda.empty_cache()
    return tuned, layers


def run_processes(given: argparse.Namespace, draft: Draft) -> tuple[list[Tuned], Layers]:
    """Tune the processes that torchrun started; return the same on every rank."""
    from smoke_tests.measure import processes

    w = int(os.environ["WORLD_SIZE"])
    layers = [(s.n, s.k) for s in shapes_of([models()[name] for name in given.model], w)]
    chooser = Chooser()
    most, widest = max(given.tokens), max(n for n, _ in layers)
    bench = processes.connect_fused(given.transport, most, widest, chooser)

    def keep(now: Tuned) -> None:
        draft([now], layers)

    tuned = tune_ranks(given, bench, bench.workspace, chooser, layers, keep)
    bench.close()
    return [tuned], layers


def unfinished(out: Path) -> Path:
    """Return where a table is until it is whole: what a run that ends early leaves."""
    return out.with_name(f"{out.name}.part")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code: 0 the table is written, 1 it is not, 2 options, 3 no GPU."""
    given = parse(arguments)
    if not torch.cuda.is_available():
        print(f"a GPU is needed; torch {torch.__version__} sees none", file=sys.stderr)
        return 3
    import triton

    torch.set_grad_enabled(False)
    if given.ranks == "processes":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    part, left = unfinished(given.out), ""

    def write(tuned: Sequence[Tuned], layers: Layers, *, whole: bool = False) -> None:
        nonlocal left
        if writes():
            text = text_of(origin_of(given, triton.__version__, layers), tuned, whole=whole)
            # Replaced, not rewritten: an end in between leaves the one before.
            fresh = part.with_name(f".{part.name}")
            fresh.write_text(text, encoding="utf-8")
            fresh.rename(given.out if whole else part)
            left = f"; {part} has what was found before"

    try:
        tuned, layers = (run_virtual if given.ranks == "virtual" else run_processes)(given, write)
        write(tuned, layers, whole=True)
    except (OSError, RuntimeError, ValueError) as error:  # StepError too
        print(f"no table was written: {error}{left}", file=sys.stderr)
        return 1
    if writes():
        part.unlink(missing_ok=True)
        print(f"GEMM_AR_DISPATCH={given.out.resolve()}", file=sys.stderr)
    return 0


def origin_of(given: argparse.Namespace, triton: str, layers: Sequence[tuple[int, int]]) -> Origin:
    """Return what the head of the table says of this GPU."""
    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    kind = "virtual" if given.ranks == "virtual" else f"processes over {given.transport}"
    arch = f"sm_{properties.major}{properties.minor}"
    today = datetime.now(UTC).date().isoformat()
    processors = properties.multi_processor_count
    return Origin(properties.name, arch, processors, triton, today, kind, layers)
