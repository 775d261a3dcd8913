"""Between processes: every pair's bandwidth, and all-reduces alone, as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from smoke_tests.measure.bench import together
from smoke_tests.measure.inputs import DTYPE
from smoke_tests.measure.links import HOW, How, measure_pairs, symmetric_buffers
from smoke_tests.measure.plan import Effort
from smoke_tests.measure.processes import ONE_SHOT_BYTES, MakeAllReduce, ProcessBench
from smoke_tests.measure.rows import Place
from smoke_tests.measure.timing import Timer, slowest_median, take_turns, timer_for
from smoke_tests.records import Measure

CALLS = 20


Rates = dict[tuple[How, int, int], float]
"""10^9 bytes a second by way, source and destination."""


def measure(bench: ProcessBench, device: torch.device, timer: Timer) -> Rates:
    """Return the bandwidth of every ordered pair.

    Raises: StepError, RuntimeError naming what failed, on every rank.
    """
    group = bench.group.group
    buffers = together(bench, "buffers", lambda: symmetric_buffers(group, device))
    own = torch.ones_like(buffers[bench.rank])
    found: Rates = {}
    for how in HOW:
        rates = measure_pairs(bench.rank, buffers, own, timer, bench.gather, how)
        found |= {(how, *pair): rate for pair, rate in rates.items()}
    return found


def slowest_link(rates: Rates) -> float:
    """Return the bandwidth of the slowest pair, each by its best way. Pure."""
    best: dict[tuple[int, int], float] = {}
    for (_, source, target), rate in rates.items():
        best[source, target] = max(rate, best.get((source, target), 0.0))
    return min(best.values())


def rows(place: Place, rates: Rates) -> Iterator[Measure]:
    """Yield one record a pair and way."""
    for (how, source, target), rate in rates.items():
        yield place.measure("p2p bandwidth", rate, "GB/s", how=how, src=source, dst=target)


def all_reduces(
    bench: ProcessBench,
    place: Place,
    most: int,
    n: int,
    effort: Effort,
    device: torch.device,
) -> Iterator[Measure]:
    """Time every all-reduce alone, on [m, n]; one call of many back to back.

    Raises: StepError on every rank.
    """
    for m in (m for m in effort.tokens if m <= most):
        for name, make in bench.all_reduces.items():
            if "one-shot" in name and m * n * DTYPE.itemsize > ONE_SHOT_BYTES:
                continue
            timer = timer_for(device)
            try:
                us = together(bench, name, partial(_time, bench, make, m, n, timer))
            finally:
                timer.forget()
            us = slowest_median(bench.gather(us)) / CALLS
            yield place.measure("all-reduce latency", us, "us", op=name, m=m, n=n)


def _time(bench: ProcessBench, make: MakeAllReduce, m: int, n: int, timer: Timer) -> list[float]:
    made = make(m, n)
    made.place.zero_()  # sums of zeros stay finite, however often

    def body() -> None:
        for _ in range(CALLS):
            made.reduce(made.place)

    replay: Callable[[], None] = timer.record(body)
    take_turns(timer, {"all-reduce": replay}, 2, bench.align)
    return take_turns(timer, {"all-reduce": replay}, 10, bench.align)["all-reduce"]
