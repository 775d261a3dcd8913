"""Compiles the kernels ahead of time, without a GPU, into a bundle: cubins and a manifest.

``python -m gemm_allreduce.compile --arch sm_90 [--arch sm_80 ...] --out DIR [--cache DIR]
[--jobs N] [--cuda LINE] [--variant NAME ... | --quick] [--multimem] [--json]``

Without a selection: every variant that the dispatch table can choose on the architecture.
``--multimem`` adds a form of the selected two-shot kernels that dispatch never chooses and
`launch` refuses; see multimem.py.

Writes ``DIR/<arch>/<variant>.cubin`` and, last, ``DIR/manifest.json``. If anything fails, nothing
is written. Two runs with one Triton and one ptxas give the same bytes, whatever --jobs, --cache
and DIR are. With ``--cache`` only what changed is compiled, and a run that was stopped goes on
where it was.

``TRITON_PTXAS_PATH`` chooses the ptxas for all architectures: newer Tritons have a second one for
Blackwell, which only ``TRITON_PTXAS_BLACKWELL_PATH`` would otherwise replace.

Exit codes: 0 done; 1 a compilation or check failed; 2 usage; 3 Triton, or the ptxas that
TRITON_PTXAS_PATH names, is missing, or not that of ``--cuda``, or a folder can't be written; 130
interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from .cache import Cache
from .checks import check_cubin
from .compiler import (
    CompileError,
    Cubin,
    Job,
    Output,
    make_cubin,
    multimem_forms,
    plan_job,
    prepare,
    quick_variant,
    run_job,
    without_multimem,
)
from .dispatch import reachable_variants
from .forked import run_forked
from .limits import NO_MULTIMEM, SHARED_LIMITS
from .manifest import write_bundle
from .progress import Progress
from .toolchain import (
    MissingToolError,
    Ptxas,
    Triton,
    check_line,
    compile_environment,
    find_ptxas,
    find_triton,
    warnings_for,
)
from .variants import Variant

INTERRUPTED = 130


@dataclass
class Run:
    """What a run has come to so far."""

    triton: Triton | None = None
    tools: dict[str, Ptxas] = field(default_factory=dict)
    cubins: list[Cubin] = field(default_factory=list)
    compiled: int = 0
    reused: int = 0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    code: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code (see the module's docstring)."""
    options = _parse(arguments)
    started = time.monotonic()
    run = Run()
    # A stop by `kill` cleans up as one by Ctrl-C does.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with compile_environment():
            _compile(options, run)
        if not run.errors:
            assert run.triton is not None
            write_bundle(options.out, options.cuda, run.triton, run.cubins)
    except MissingToolError as error:
        run.errors.append(str(error))
        run.code = 3
    except OSError as error:
        run.errors.append(f"cannot read or write: {error}")
        run.code = 3
    except KeyboardInterrupt:
        run.errors.append("interrupted; with --cache the same command goes on from here")
        run.code = INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return _report(options, run, round(time.monotonic() - started, 2))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _compile(options: argparse.Namespace, run: Run) -> None:
    """Find the tools, and compile what the cache does not have, into `run`."""
    run.tools = {arch: find_ptxas(arch) for arch in options.arch}
    if options.cuda:
        for arch, tool in run.tools.items():
            check_line(options.cuda, arch, tool)
    run.triton = find_triton()
    jobs = [
        plan_job(variant, arch, run.triton, tool)
        for arch, tool in run.tools.items()
        for variant in _selected(options, arch)
    ]
    totals = {arch: sum(job.arch == arch for job in jobs) for arch in options.arch}
    progress = Progress(totals, sys.stderr)
    try:
        _make(options, run, jobs, progress)
    finally:
        progress.close()


def _make(options: argparse.Namespace, run: Run, jobs: Sequence[Job], progress: Progress) -> None:
    """Take what the cache has, compile the rest, check all of it."""
    for arch, tool in run.tools.items():
        progress.say(f"{arch}: ptxas {tool.version} at {tool.path}")
        run.warnings += warnings_for(arch)
    cache = Cache(options.cache)
    found: dict[Job, Cubin] = {}
    missing: list[Job] = []
    for job in jobs:
        if cubin := cache.get(job):
            found[job] = cubin
            progress.count(job.arch, len(cubin.data), reused=True)
        else:
            missing.append(job)
    run.reused = len(found)
    if missing:
        prepare(missing)
        errors: dict[int, str] = {}
        # Closed at once, whatever happens here: what still runs must not outlive its folders.
        with contextlib.closing(run_forked(missing, run_job, options.jobs)) as results:
            for done in results:
                job = missing[done.index]
                size = None
                try:
                    if done.result is None:
                        raise CompileError(_named(job, done.error))
                    found[job] = _accept(job, done.result, cache)
                    size = found[job].record.size
                    run.compiled += 1
                except CompileError as error:
                    errors[done.index] = str(error)
                progress.count(job.arch, size, reused=False)
        run.errors += [errors[index] for index in sorted(errors)]
    run.code = 1 if run.errors else 0
    run.cubins = [found[job] for job in jobs if job in found]
    _check(jobs, found, run)


def _named(job: Job, error: str) -> str:
    return error if error.startswith(str(job)) else f"{job}: {error}"


def _accept(job: Job, output: Output, cache: Cache) -> Cubin:
    cubin = make_cubin(job, output.data, output.shared)
    cache.put(job, cubin)
    return cubin


def _check(jobs: Sequence[Job], found: dict[Job, Cubin], run: Run) -> None:
    """Check every cubin, those from the cache too. Spilled registers cost time: a warning."""
    for job in jobs:
        if cubin := found.get(job):
            for finding in check_cubin(job.variant, cubin.record, cubin.data):
                if finding.check == "local":
                    run.warnings.append(str(finding))
                else:
                    run.errors.append(str(finding))
                    run.code = 1


def _report(options: argparse.Namespace, run: Run, seconds: float) -> int:
    """Print what happened; return the exit code."""
    if options.json:
        report: dict[str, Any] = {
            "ok": not run.errors,
            "out": str(options.out),
            "seconds": seconds,
            "compiled": run.compiled,
            "reused": run.reused,
            "ptxas": {
                arch: {"path": tool.path, "version": tool.version}
                for arch, tool in run.tools.items()
            },
            "cubins": [asdict(cubin.record) for cubin in run.cubins],
            "warnings": run.warnings,
            "errors": run.errors,
        }
        print(json.dumps(report, indent=2))
    for message in run.warnings:
        _say(f"warning: {message}")
    for message in run.errors:
        _say(f"error: {message}")
    if run.errors:
        _say("no manifest was written")
        return run.code
    _say(
        f"{len(run.cubins)} cubins ({run.reused} reused) and manifest.json in {options.out}, "
        f"{seconds} s"
    )
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gemm_allreduce.compile",
        description="Compile the GEMM + all-reduce kernels ahead of time, without a GPU.",
    )
    parser.add_argument(
        "--arch",
        action="append",
        required=True,
        metavar="ARCH",
        help=f"GPU architecture, repeatable: {', '.join(SHARED_LIMITS)}",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="output folder")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder that keeps cubins between runs"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that compile at a time; default: CPUs that this one may use (%(default)s)",
    )
    parser.add_argument(
        "--cuda",
        default="",
        metavar="LINE",
        help="CUDA line, like 12.4, for the manifest; ptxas must be that line's",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME",
        help="variant, repeatable; default: every variant that dispatch can choose",
    )
    parser.add_argument("--quick", action="store_true", help="only the kernel of M 16 and 8 ranks")
    parser.add_argument(
        "--multimem",
        action="store_true",
        help="also the multimem form of each selected two-shot kernel of several ranks: "
        "for sm_90 and later, and never run",
    )
    parser.add_argument("--json", action="store_true", help="report on stdout as JSON")
    options = parser.parse_args(arguments)
    unknown = [arch for arch in options.arch if arch not in SHARED_LIMITS]
    if unknown:
        parser.error(
            f"unknown architecture {', '.join(unknown)}; valid: {', '.join(SHARED_LIMITS)}"
        )
    options.arch = [arch for arch in SHARED_LIMITS if arch in options.arch]
    for name in ("out", "cache"):
        folder = getattr(options, name)
        if folder is not None and folder.exists() and not folder.is_dir():
            parser.error(f"--{name} {folder} is not a folder")
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    if options.cuda and not re.fullmatch(r"\d+\.\d+", options.cuda):
        parser.error(f"--cuda must be like 12.4, got {options.cuda!r}")
    if options.quick and options.variant:
        parser.error("--quick and --variant exclude each other")
    if options.quick and options.multimem:
        parser.error("--quick and --multimem exclude each other: it is a one-shot kernel")
    if options.multimem and (lacking := [a for a in options.arch if a in NO_MULTIMEM]):
        parser.error(without_multimem(lacking[0]))
    names = {v.name for arch in options.arch for v in reachable_variants(arch)}
    if absent := sorted(set(options.variant) - names):
        parser.error(f"unknown variant {', '.join(absent)}; valid: {', '.join(sorted(names))}")
    return options


def _selected(options: argparse.Namespace, arch: str) -> Sequence[Variant]:
    if options.quick:
        return (quick_variant(arch),)
    variants = reachable_variants(arch)
    selected = [v for v in variants if not options.variant or v.name in options.variant]
    return [*selected, *multimem_forms(selected)] if options.multimem else selected


if __name__ == "__main__":
    sys.exit(main())
