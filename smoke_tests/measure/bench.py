"""What is timed, whatever the ranks are: ways to compute one call, checked, then timed in turn."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import torch

from smoke_tests.measure.plan import Effort, calls_of, rounds_of, sample_rows
from smoke_tests.measure.timing import Body, Timer, slowest_median, take_turns
from smoke_tests.reference import require_bound

FUSED = "fused"
OWN = "own all-reduce"
"""The package's all-reduce as a launch of its own: what fusing itself is worth."""
RanksKind = Literal["virtual", "processes"]


@dataclass(frozen=True)
class Way:
    """One way to compute y = sum over ranks of x @ weight.T.

    Attributes:
        name: ``fused``, or what it is made of, as ``cublas+nccl``.
        call: takes the number of a copy of the weight; returns y, [..., M, N].
        slack: its error may be so many times that of the fused kernel, which rounds a sum once.
    """

    name: str
    call: Callable[[int], torch.Tensor]
    slack: int = 1


class Bench(Protocol):
    """The ranks of this process, with weights of one shape at a time."""

    @property
    def kind(self) -> RanksKind:
        """What the ranks are."""

    @property
    def rank(self) -> int:
        """This process's number."""

    @property
    def world_size(self) -> int:
        """Number of ranks, W."""

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value; also a barrier."""

    def load(self, n: int, k: int, copies: int, tokens: Sequence[int]) -> None:
        """Make the weights of a shape, and prepare calls with these M."""

    def ways(self, m: int) -> list[Way]:
        """Return the ways to compute a call with M rows; x is new."""

    def reference(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float64 y of some rows of the last `ways`, copy 0, and the bound of its error."""

    def align(self) -> None:
        """Queue what makes the ranks' devices go on together."""

    def flush(self) -> None:
        """Queue what empties the L2 cache."""


class StepError(RuntimeError):
    """A step that failed on some rank; raised on all of them."""


@dataclass
class Case:
    """Medians of one shape and M, of the slowest rank, in microseconds, by way.

    ``call_us`` is one of many calls back to back, ``latency_us`` a single one; ``problems`` says
    why a way has none.
    """

    m: int
    n: int
    k: int
    call_us: dict[str, float] = field(default_factory=dict)
    latency_us: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def together(bench: Bench, what: str, step: Callable[[], Any]) -> Any:
    """Do a step on every rank; raise StepError on all of them when it fails on one."""
    result, problem = None, ""
    try:
        result = step()
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        problem = f"{type(error).__name__}: {error}"
    found = bench.gather(problem)
    bad = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text]
    if bad:
        raise StepError(f"{what}: {'; '.join(bad)}")
    return result


def measure(
    bench: Bench,
    timer: Timer,
    m: int,
    n: int,
    k: int,
    copies: int,
    effort: Effort,
    within: float = math.inf,
) -> Case:
    """Check and time every way to compute one call. A way that fails leaves the others.

    What takes more than ``within`` times the fastest in the first two rounds keeps the time it had
    there: it is not worth the others. FUSED goes on in any case.
    """
    case = Case(m, n, k)
    graphs: dict[str, Body] = {}
    singles: dict[str, Body] = {}
    ways: list[Way] = together(bench, "inputs", lambda: bench.ways(m))
    rows = sample_rows(m)
    exact, error = together(bench, "reference", lambda: bench.reference(rows))
    for way in ways:
        try:
            together(bench, way.name, partial(_check, way, rows, exact, error))
            graphs[way.name] = together(bench, way.name, partial(_many, timer, way, copies))
            if effort.latency_rounds:
                singles[way.name] = together(bench, way.name, partial(_one, timer, way))
        except StepError as problem:
            case.problems[way.name] = str(problem)
            graphs.pop(way.name, None)
    if not graphs:
        return case
    calls = calls_of(copies)
    try:
        once = together(bench, "first replay", lambda: take_turns(timer, graphs, 2, bench.align))
        # All ranks must come to the same numbers.
        first = _slowest(bench, {name: times[-1:] for name, times in once.items()})
        most = within * min(first.values())
        close = {name: graphs[name] for name, us in first.items() if us <= most or name == FUSED}
        rounds = rounds_of(max(first[name] for name in close), effort)
        times = together(bench, "replays", lambda: take_turns(timer, close, rounds, bench.align))

        def before() -> None:
            bench.flush()
            bench.align()

        latencies: dict[str, list[float]] = {}
        if singles:
            take_turns(timer, singles, 2, before)
            latencies = together(
                bench,
                "single calls",
                lambda: take_turns(timer, singles, effort.latency_rounds, before),
            )
    except StepError as problem:
        case.problems["timing"] = str(problem)
        return case
    all_us = first | _slowest(bench, times)
    case.call_us = {name: us / calls for name, us in all_us.items()}
    case.latency_us = _slowest(bench, latencies)
    return case


def _slowest(bench: Bench, times: Mapping[str, list[float]]) -> dict[str, float]:
    of_ranks = bench.gather(dict(times))
    return {name: slowest_median([of[name] for of in of_ranks]) for name in times}


def _check(way: Way, rows: Sequence[int], exact: torch.Tensor, error: torch.Tensor) -> None:
    """Compare some rows with the reference: a wrong result is not worth timing."""
    y = way.call(0)
    for own in y if y.dim() == 3 else y[None]:
        require_bound(own[list(rows)], exact, error * way.slack, way.name)


def _many(timer: Timer, way: Way, copies: int) -> Body:
    def many() -> None:
        for call in range(calls_of(copies)):
            way.call(call % copies)

    return timer.record(many)


def _one(timer: Timer, way: Way) -> Body:
    def one() -> None:
        way.call(0)

    return timer.record(one)
