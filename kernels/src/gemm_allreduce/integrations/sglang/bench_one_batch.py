"""SGLang's one-batch benchmark, native and with overlap, and the table of both.

    python -m gemm_allreduce.integrations.sglang.bench_one_batch --out DIR -- \\
        --model-path MODEL --tp-size 8 [more arguments of SGLang]

Writes one-batch.md and one-batch.json to DIR. Exit codes: 0 done; 1 a run failed, has no result
for some length, or was to overlap and fused nothing; 2 usage; 3 SGLang is not installed; 6 a run
took longer than its limit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .bench_plan import (
    INPUT_TOKENS,
    MODES,
    OUTPUT_TOKENS,
    BenchPlan,
    PlanError,
    Row,
    markdown,
    missing,
    ranks_of,
    report,
    rows_of,
    why_not_fused,
)
from .bench_rank import STATES

_RANK = "gemm_allreduce.integrations.sglang.bench_rank"


LIMIT_S = 1800.0
"""How long one run may take, by default."""


class RunError(RuntimeError):
    """A run failed, or did not measure what it was to."""


class LimitError(RuntimeError):
    """A run was ended at its limit."""


def main(arguments: list[str] | None = None) -> int:
    """Run the modes one after the other; return the exit code."""
    try:
        plan, out, dry, limit_s = _parse(sys.argv[1:] if arguments is None else arguments)
    except PlanError as error:
        print(f"bench_one_batch: {error}", file=sys.stderr)
        return 2
    if dry:
        for mode in plan.modes:
            print(f"{mode}: {' '.join(plan.command(mode, 'RESULTS'))}")
        return 0
    if importlib.util.find_spec("sglang") is None:
        print("bench_one_batch: SGLang is not installed here (docs/sglang.md)", file=sys.stderr)
        return 3
    rows: list[Row] = []
    states: list[dict[str, Any]] = []
    try:
        for mode in plan.modes:
            found, states_of_mode = run(plan, mode, limit_s)
            rows += found
            if mode == "overlap":
                states = states_of_mode
    except (RunError, PlanError) as error:
        print(f"bench_one_batch: {error}", file=sys.stderr)
        return 1
    except LimitError as error:
        print(f"bench_one_batch: {error}", file=sys.stderr)
        return 6
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("one-batch.md", markdown(rows)),
        ("one-batch.json", report(plan, rows, states)),
    ):
        part = out / f".{name}.part"
        part.write_text(text)
        part.replace(out / name)
    print(markdown(rows), end="")
    return 0


def run(plan: BenchPlan, mode: str, limit_s: float) -> tuple[list[Row], list[dict[str, Any]]]:
    """Run one mode in processes of its own; return its results and what its ranks did.

    Raises: RunError; LimitError; PlanError for a result that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="one-batch-") as folder:
        results, states = Path(folder, "results.jsonl"), Path(folder, "states")
        states.mkdir()
        environment = plan.environment(mode, dict(os.environ)) | {STATES: str(states)}
        command = [sys.executable, "-m", _RANK, *plan.command(mode, str(results))]
        print(f"bench_one_batch: {mode} ...", file=sys.stderr, flush=True)
        status = _ended(command, environment, limit_s)
        # SGLang's own program also ends with 0 when its ranks have failed.
        lines = results.read_text().splitlines() if results.exists() else []
        rows = rows_of(lines)
        told = [json.loads(path.read_text()) for path in sorted(states.glob("rank-*.json"))]
    if lacking := missing(plan, mode, rows):
        raise RunError(
            f"the {mode} run (exit status {status}) has no result for "
            f"{', '.join(map(str, lacking))} input tokens; SGLang's own words are above"
        )
    if mode == "overlap" and (why := why_not_fused(plan, told, ranks_of(plan))):
        raise RunError(f"the overlap run fused nothing: {why}")
    return rows, told


def _ended(command: list[str], environment: dict[str, str], limit_s: float) -> int:
    """Run a command and all that it starts to their end; return its exit status.

    Raises: LimitError.
    """
    # Its words to stderr: stdout is for the table.
    with subprocess.Popen(
        command, env=environment, stdout=sys.stderr.fileno(), start_new_session=True
    ) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise LimitError(f"a run was ended after {limit_s:g} s (--limit)") from error
        finally:
            # A rank that waits for one that has failed would hold its GPU for ever.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _parse(arguments: list[str]) -> tuple[BenchPlan, Path, bool, float]:
    """Return the plan, the folder of results, whether only to show the commands, the limit."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="bench_one_batch", usage="%(prog)s [options] -- --model-path MODEL --tp-size N ..."
    )
    parser.add_argument("--out", type=Path, default=Path("one-batch"), help="folder of results")
    lengths = f"input tokens (default: {' '.join(map(str, INPUT_TOKENS))})"
    parser.add_argument("--inputs", type=int, nargs="+", default=list(INPUT_TOKENS), help=lengths)
    parser.add_argument("--outputs", type=int, default=OUTPUT_TOKENS, help="output tokens")
    parser.add_argument("--batch", type=int, default=1, help="requests at a time")
    parser.add_argument("--mode", choices=MODES, help="only this one (default: both)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each run")
    parser.add_argument("--dry", action="store_true", help="only print SGLang's arguments")
    own = parser.parse_args(arguments[:cut])
    if "--model-path" not in " ".join(arguments[cut:]):
        raise PlanError("SGLang's own arguments go after --: at least --model-path and --tp-size")
    plan = BenchPlan(
        tuple(arguments[cut + 1 :]),
        own.batch,
        tuple(sorted(set(own.inputs))),
        own.outputs,
        (own.mode,) if own.mode else MODES,
    )
    return plan, own.out, own.dry, own.limit


if __name__ == "__main__":
    sys.exit(main())
