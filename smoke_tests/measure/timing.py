"""Replays that are timed in turn. CUDA graphs and events on a GPU, plain calls on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Body = Callable[[], None]
Reading = Callable[[], float]
"""Gives microseconds, once everything has ended."""

_HEAD_START_CYCLES = 1_000_000
"""About 0.5 ms: the host must have queued the whole replay before the device comes to it."""


class Timer(Protocol):
    """What `take_turns` needs. `record` may run the body; `time` only queues it."""

    def record(self, body: Body) -> Body:
        """Return what repeats the body at the least cost for the host."""

    def time(self, replay: Body, before: Body) -> Reading:
        """Queue ``before``, then the replay between two time stamps."""

    def synchronize(self) -> None:
        """Wait until all that was queued has ended."""

    def forget(self) -> None:
        """Free what was recorded."""


class HostTimer:
    """For CPUs: everything ends before the call returns."""

    def record(self, body: Body) -> Body:
        """Return the body."""
        return body

    def time(self, replay: Body, before: Body) -> Reading:
        """Run both."""
        before()
        begin = time.perf_counter()
        replay()
        taken = (time.perf_counter() - begin) * 1e6
        return lambda: taken

    def synchronize(self) -> None:
        """Nothing is queued."""

    def forget(self) -> None:
        """Nothing was recorded."""


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class CudaTimer:
    """Graphs and events on the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, body: Body) -> Body:
        """Run the body once, capture it, and return the graph's replay."""
        body()  # whatever is made at a first call must not be made in a capture
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as NCCL's watchdog, may call into CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            body()
        self.graphs.append(graph)
        return graph.replay

    def time(self, replay: Body, before: Body) -> Reading:
        """Queue both."""
        begin = _event()
        end = _event()
        torch.cuda._sleep(_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        before()
        begin.record()
        replay()
        end.record()

        def reading() -> float:
            return float(begin.elapsed_time(end)) * 1000

        return reading

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def forget(self) -> None:
        """Free the graphs: NCCL cannot end while there are some of its calls."""
        self.synchronize()
        self.graphs.clear()


def timer_for(device: torch.device) -> Timer:
    """Return the timer of a device."""
    return CudaTimer(device) if device.type == "cuda" else HostTimer()


def take_turns(
    timer: Timer, replays: Mapping[str, Body], rounds: int, before: Body
) -> dict[str, list[float]]:
    """Time every replay once a round, in an order that turns around; return microseconds.

    So that a clock or a temperature that drifts meets all of them alike. What comes first in a
    round runs once before, untimed: with several ranks, hosts that are not yet ahead of their
    devices had cost the first one 2 us a call.
    """
    readings: dict[str, list[Reading]] = {name: [] for name in replays}
    names = list(replays)
    for number in range(rounds):
        order = names if number % 2 == 0 else names[::-1]
        timer.time(replays[order[0]], before)
        for name in order:
            readings[name].append(timer.time(replays[name], before))
        timer.synchronize()
    return {name: [reading() for reading in of] for name, of in readings.items()}


def slowest_median(of_ranks: list[list[float]]) -> float:
    """Return the median of the rank whose median is largest."""
    return max(statistics.median(values) for values in of_ranks)
