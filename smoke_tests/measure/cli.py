"""Check and time the fused kernels against the serial way; write records.

python -m smoke_tests.measure --ranks virtual --w 1,2,4,8 [--quick] --out FILE.jsonl
torchrun --nproc-per-node=2 -m smoke_tests.measure --ranks processes [--quick] --out FILE.jsonl
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from smoke_tests.bands import explain, judge, read_bands
from smoke_tests.measure.bench import Bench, Case, StepError, measure, together
from smoke_tests.measure.estimate import estimates
from smoke_tests.measure.inputs import DTYPE, free_bytes, l2_bytes
from smoke_tests.measure.limits import Limits, least_us, measure_device
from smoke_tests.measure.models import Model, Shape, models, shapes_of
from smoke_tests.measure.options import check_ranks, numbers, ranks_parser
from smoke_tests.measure.plan import FULL, QUICK, Effort, copies_of, memory_bytes
from smoke_tests.measure.rows import TIER_OF, Place, line_of, of_case, of_estimate, of_limits
from smoke_tests.measure.timing import timer_for
from smoke_tests.records import Check, Measure, Record, Run, Verdict, Writer
from smoke_tests.report import machine

VIRTUAL_SPLIT = 8
Write = Callable[[Record], None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options. Raises: SystemExit 2."""
    parser = ranks_parser("python -m smoke_tests.measure", __doc__, "records")
    parser.add_argument("--quick", action="store_true", help="fewer M, fewer rounds")
    tokens = "values of M, as 1,16,512; default: powers of 2 up to 8192, or five with --quick"
    parser.add_argument("--tokens", type=numbers, help=tokens)
    model = "which layers; may be repeated; default Qwen2.5-72B, processes without --quick: all"
    parser.add_argument("--model", action="append", choices=list(models()), help=model)
    split = (
        f"ranks that K is split over; default: {VIRTUAL_SPLIT} for virtual ranks, else their number"
    )
    parser.add_argument("--split", type=int, default=0, help=split)
    parser.add_argument("--label", default=platform.node(), help="the host's name in the record")
    parser.add_argument("--place", default="host", help="host, or image REF")
    given = parser.parse_args(arguments)
    check_ranks(parser, given)
    return given


def effort_of(given: argparse.Namespace) -> Effort:
    """Return what is timed."""
    effort = QUICK if given.quick else FULL
    return replace(effort, tokens=tuple(given.tokens)) if given.tokens else effort


def models_of(given: argparse.Namespace) -> list[Model]:
    """Return the models whose layers are timed."""
    names = given.model
    if not names:
        all_of_them = given.ranks == "processes" and not given.quick
        names = list(models()) if all_of_them else ["Qwen2.5-72B"]
    return [models()[name] for name in names]


def time_shapes(
    bench: Bench,
    place: Place,
    shapes: Sequence[Shape],
    effort: Effort,
    limits: Limits,
    device: torch.device,
    write: Write,
) -> tuple[list[Case], int]:
    """Time every shape and M; return the cases, and the number of failures."""
    cases, failures = [], 0
    local = bench.world_size if bench.kind == "virtual" else 1
    for shape in shapes:
        n, k = shape.n, shape.k
        copies = copies_of(local * n * k * DTYPE.itemsize, l2_bytes(device))
        free = min(bench.gather(free_bytes(device)))
        fitting = [m for m in effort.tokens if memory_bytes(m, n, k, local, copies) < 0.7 * free]
        if len(fitting) < len(effort.tokens):
            _say(bench, f"N {n} K {k}: memory allows M up to {max(fitting, default=0)} only")
        begin = time.monotonic()
        name = f"{bench.kind}-w{bench.world_size}-n{n}-k{k}"
        problems: list[str] = []
        try:
            together(bench, "weights", partial(bench.load, n, k, copies, fitting))
            for m in fitting:
                timer = timer_for(device)
                case = measure(bench, timer, m, n, k, copies, effort)
                timer.forget()
                cases.append(case)
                problems += [f"M {m}: {what}" for what in case.problems.values()]
                least = least_us(m, n, k, bench.world_size, bench.kind, limits)
                _say(bench, line_of(case, least))
                for row in of_case(place, shape, case, limits):
                    write(row)
        except StepError as error:
            problems.append(str(error))
        failures += bool(problems)
        detail = "\n".join(problems) or f"{len(fitting)} values of M right, and timed"
        write(
            Check(
                TIER_OF[bench.kind],
                f"{name}-measured_calls_are_right",
                "failed" if problems else "passed",
                round(time.monotonic() - begin, 2),
                detail,
            )
        )
    return cases, failures


def _say(bench: Bench, text: str) -> None:
    if bench.rank == 0:
        print(text, file=sys.stderr, flush=True)


def run_virtual(given: argparse.Namespace, write: Write) -> int:
    """Time virtual ranks on the current GPU; return the number of failures."""
    from smoke_tests.measure.virtual import VirtualBench

    device = torch.device("cuda", torch.cuda.current_device())
    effort, split = effort_of(given), given.split or VIRTUAL_SPLIT
    shapes = shapes_of(models_of(given), split)
    limits = measure_device(device, timer_for(device))
    failures = 0
    for w in given.w:
        place = Place("virtual", w)
        for row in of_limits(place, limits):
            write(row)
        widest = max(shape.n for shape in shapes)
        bench = VirtualBench(w, device, max(effort.tokens), widest)
        print(f"W {w}, kernels: {bench.workspace.kernels.describe()}", file=sys.stderr)
        for name, problem in bench.missing.items():
            print(f"baseline {name} cannot be had: {problem}", file=sys.stderr)
        cases, bad = time_shapes(bench, place, shapes, effort, limits, device, write)
        failures += bad
        if w == split:  # a model's layers are split over as many ranks as there are
            _write_estimates(place, cases, models_of(given), split, write)
        try:
            bench.close()
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failures += 1
        torch.cuda.empty_cache()
    return failures


def _write_estimates(
    place: Place, cases: Sequence[Case], chosen: Sequence[Model], split: int, write: Write
) -> None:
    for found in estimates(cases, chosen, split):
        for row in of_estimate(place, found, split):
            write(row)


def run_processes(given: argparse.Namespace, write: Write) -> int:
    """Time the processes that torchrun started; return the number of failures."""
    from smoke_tests.measure import pairs, processes

    effort = effort_of(given)
    w = int(os.environ["WORLD_SIZE"])
    split = given.split or w
    shapes = shapes_of(models_of(given), split)
    widest = max(shape.n for shape in shapes)
    bench, missing = processes.connect(given.transport, max(effort.tokens), widest)
    device = bench.device
    place = Place("processes", w, given.transport)
    _say(bench, f"W {w}, kernels: {bench.workspace.kernels.describe()}")
    for name, why in missing.items():
        _say(bench, f"no baseline {name}: {why}")
    failures = 0
    timer = timer_for(device)
    own = together(bench, "copies and products", lambda: measure_device(device, timer))
    of_ranks = bench.gather(own)
    limits = Limits(min(x.copy_gbs for x in of_ranks), min(x.matmul_tflops for x in of_ranks))
    try:
        rates = pairs.measure(bench, device, timer)
        limits = replace(limits, link_gbs=pairs.slowest_link(rates))
        for row in pairs.rows(place, rates):
            write(row)
    except (StepError, RuntimeError) as error:
        _say(bench, f"pairs: {error}")
        failures += 1
    for row in of_limits(place, limits):
        write(row)
    try:
        for row in pairs.all_reduces(bench, place, max(effort.tokens), widest, effort, device):
            write(row)
    except (StepError, RuntimeError) as error:
        _say(bench, f"all-reduces: {error}")
        failures += 1
    cases, bad = time_shapes(bench, place, shapes, effort, limits, device, write)
    if w == split:
        _write_estimates(place, cases, models_of(given), split, write)
    together(bench, "end", bench.close)
    return failures + bad


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code.

    0: every result was right, and every measure in its band. 1: not so. 2: wrong options. 3: no
    GPU.
    """
    given = parse(arguments)
    if not torch.cuda.is_available():
        print(f"a GPU is needed; torch {torch.__version__} sees none", file=sys.stderr)
        return 3
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    first = given.ranks == "virtual" or os.environ["RANK"] == "0"
    if given.ranks == "processes":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    counts = {"passed": 0, "failed": 0}
    tier = TIER_OF[given.ranks]
    rules, device = read_bands(), torch.cuda.get_device_name()
    outside: list[str] = []
    with Writer(given.out) if first else nullcontext() as writer:

        def write(record: Record) -> None:
            if isinstance(record, Check):
                counts["passed" if record.outcome == "passed" else "failed"] += 1
            if isinstance(record, Measure):
                record = judge(record, device, rules)
                if record.outcome == "failed":
                    outside.append(explain(record))
            if writer is not None:
                writer.write(record)

        write(Run(given.label, given.place, machine() | {"multicast": multicast(os.environ)}))
        failures = (run_virtual if given.ranks == "virtual" else run_processes)(given, write)
        if outside:
            counts["out of band"] = len(outside)
            print("\n".join(outside), file=sys.stderr)
        code = 1 if failures or outside else 0
        write(Verdict(code, {tier: "failed" if code else "passed"}, counts))
    return code


def multicast(environment: Mapping[str, str]) -> str:
    """Return what the environment says of NVLink multicast, for NCCL, torch and NVSHMEM. Pure."""
    off = {
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
    }
    found = {name: environment.get(name, "") for name in off}
    if all(found[name] == value for name, value in off.items()):
        return "off"
    return ", ".join(f"{name}={value or 'unset'}" for name, value in found.items())
