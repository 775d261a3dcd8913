"""What the one-batch benchmark runs, and the table that its results make. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from .settings import MAX_TOKENS, SWITCH

INPUT_TOKENS: Final = (1000, 2000, 4000, 8000)
OUTPUT_TOKENS: Final = 16
MODES: Final = ("native", "overlap")
OWN: Final = ("--result-filename", "--run-name", "--batch-size", "--input-len", "--output-len")
"""Options of SGLang's benchmark that the launcher sets."""


class PlanError(ValueError):
    """Options that make no benchmark."""


@dataclass(frozen=True)
class BenchPlan:
    """One benchmark: SGLang's one-batch run, once per mode.

    Attributes:
        arguments: of SGLang, such as ``--model-path``; batch and lengths come from here.
    """

    arguments: tuple[str, ...]
    batch: int = 1
    inputs: tuple[int, ...] = INPUT_TOKENS
    outputs: int = OUTPUT_TOKENS
    modes: tuple[str, ...] = MODES

    def __post_init__(self) -> None:
        if not self.inputs or min(*self.inputs, self.batch) < 1 or self.outputs < 2:
            raise PlanError("expected at least 1 input token, 2 output tokens, a batch of 1")
        if taken := [a for a in self.arguments if a.partition("=")[0] in OWN]:
            raise PlanError(f"{', '.join(taken)}: set it with this program's own option")
        ranks = _value(self.arguments, "--tp-size", "--tensor-parallel-size", "--tp")
        if ranks is None or not ranks.isdigit() or int(ranks) < 2:
            raise PlanError(f"--tp-size is {ranks}: there is nothing to overlap below 2")

    def command(self, mode: str, results: str) -> list[str]:
        """Return SGLang's arguments for a mode; results is the file that it appends to."""
        return [
            *self.arguments,
            *("--run-name", mode, "--result-filename", results),
            *("--batch-size", str(self.batch), "--output-len", str(self.outputs)),
            *("--input-len", *map(str, self.inputs)),
        ]

    def environment(self, mode: str, given: dict[str, str]) -> dict[str, str]:
        """Return the environment of a mode: a prompt of the longest input is one fused call."""
        if mode == "native":
            return {name: value for name, value in given.items() if name != SWITCH}
        most = str(self.batch * max(self.inputs))
        return {MAX_TOKENS: most} | given | {SWITCH: "1"}


@dataclass(frozen=True)
class Row:
    """One result. Latencies in seconds, throughputs in tokens a second; decode: the median."""

    mode: str
    batch: int
    input_tokens: int
    output_tokens: int
    prefill_latency: float
    prefill_throughput: float
    decode_latency: float
    decode_throughput: float


def rows_of(lines: Iterable[str]) -> list[Row]:
    """Return the results that SGLang wrote, a JSON object a line.

    Raises: PlanError for a line that is no result of SGLang 0.5.23.
    """
    rows = []
    for line in filter(str.strip, lines):
        try:
            told = json.loads(line)
            rows.append(
                Row(
                    told["run_name"],
                    int(told["batch_size"]),
                    int(told["input_len"]),
                    int(told["output_len"]),
                    float(told["prefill_latency"]),
                    float(told["prefill_throughput"]),
                    float(told["median_decode_latency"]),
                    float(told["median_decode_throughput"]),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(f"not a result of the benchmark ({error!r}): {line.strip()}") from error
    return rows


def missing(plan: BenchPlan, mode: str, rows: Sequence[Row]) -> list[int]:
    """Return the input lengths without a result; SGLang leaves out what its KV cache can't hold."""
    having = {row.input_tokens for row in rows if row.mode == mode}
    return [tokens for tokens in plan.inputs if tokens not in having]


def why_not_fused(plan: BenchPlan, states: Sequence[dict[str, Any]], ranks: int) -> str:
    """Return why the overlap run was none, from what its ranks wrote; empty if it was one."""
    if len(states) != ranks:
        return f"{len(states)} of {ranks} ranks told what they did"
    for rank, state in enumerate(states):
        if problem := state["problem"] or (not state["armed"] and state["declined"]):
            return f"rank {rank}: {problem}"
        if not state["hooked"]:
            return f"rank {rank}: SGLang did not run the plug-in's hook"
        if not sum(state["fused"].values()):
            return f"rank {rank}: nothing was fused; native calls: {state['native']}"
    return ""


def markdown(rows: Sequence[Row]) -> str:
    """Return two tables: prefill by input length, then decode."""
    head = ["input tokens"]
    for mode in MODES:
        head += [f"{mode}, s", f"{mode}, tok/s"]
    found = {(row.mode, row.input_tokens): row for row in rows}
    lengths = sorted({row.input_tokens for row in rows})
    parts = []
    for title, unit in (("Prefill", "prefill"), ("Decode, median of a step", "decode")):
        lines = [f"**{title}**", "", _line([*head, "native / overlap"]), "|---" * 6 + "|"]
        for length in lengths:
            cells, latencies = [str(length)], []
            for mode in MODES:
                row = found.get((mode, length))
                latency = getattr(row, f"{unit}_latency") if row else None
                rate = getattr(row, f"{unit}_throughput") if row else None
                cells += ["" if latency is None else f"{latency:.5f}"]
                cells += ["" if rate is None else f"{rate:.2f}"]
                latencies.append(latency)
            native, overlap = latencies
            ratio = f"{native / overlap:.3f}" if native and overlap else ""
            lines.append(_line([*cells, ratio]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def report(plan: BenchPlan, rows: Sequence[Row], states: Sequence[dict[str, Any]]) -> str:
    """Return everything as JSON text."""
    data = {
        "schema": 1,
        "plan": asdict(plan),
        "rows": [asdict(row) for row in rows],
        "ranks": list(states),
    }
    return json.dumps(data, indent=1) + "\n"


def ranks_of(plan: BenchPlan) -> int:
    """Return the number of tensor-parallel ranks."""
    return int(_value(plan.arguments, "--tp-size", "--tensor-parallel-size", "--tp") or 0)


def _value(arguments: Sequence[str], *names: str) -> str | None:
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            if equals:
                return value
            return arguments[place + 1] if place + 1 < len(arguments) else None
    return None


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
