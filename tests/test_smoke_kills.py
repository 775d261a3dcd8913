"""Ranks that are killed or stopped, each at every step: the right one is named, nothing is left."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import pytest

from smoke_tests.leash import is_gone
from smoke_tests.outcome import Outcome, states_of, worst
from smoke_tests.pool import Pool
from smoke_tests.steps import Plant
from tests.smoke_bodies import (
    STEPS,
    every_step,
    measure,
    refuse_then_go_on,
    sleep_between_calls,
    sleep_in_a_step,
)

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)

LIMIT_S = 1.0
SHORT = {"time_limit_s": 1.0, "grace_s": 0.4}
MEETING = (
    "meet the other ranks",
    "create the workspace",
    "call M 1, N 64, K 16",
    "gather",
    "close the workspace",
)
"""Where ranks wait for each other: of four, each is killed there."""
KILLED = [
    (w, rank, step) for w in (2, 4) for rank in range(w) for step in (STEPS if w == 2 else MEETING)
]
STOPPED = [
    (w, rank, step)
    for w, rank, step in KILLED
    if w == 2 or step in ("create the workspace", "call M 1, N 64, K 16")
]


def _shm() -> set[str]:
    # Hidden ones are of browsers, which may run beside this.
    return {path.name for path in Path("/dev/shm").iterdir() if path.name[0] != "."}


def _end(world_size: int, plant: Plant | None) -> list[Outcome]:
    """Run the body on ranks of which one has a fault planted; nothing may be left of them."""
    before = _shm()
    pool = Pool("cpu", world_size, plant=plant, **SHORT)  # type: ignore[arg-type]
    pids = pool.pids
    try:
        outcomes = pool.run(every_step, 60) if pool.usable else pool.started
    finally:
        pool.close()
    assert all(is_gone(pid) for pid in pids)
    assert _shm() == before
    assert not list(Path(gettempdir()).glob(f"smoke-{os.getpid()}-*"))
    return outcomes


def test_without_a_fault_every_step_is_passed() -> None:
    """A step that is added must be added to those that ranks are killed at."""
    outcomes = _end(2, None)
    assert [o.state for o in outcomes] == ["passed", "passed"], outcomes
    assert {tuple(o.detail.split("|")) for o in outcomes} == {STEPS}


@pytest.mark.parametrize(("world_size", "rank", "step"), KILLED)
def test_a_killed_rank_is_named_with_its_step(world_size: int, rank: int, step: str) -> None:
    outcomes = _end(world_size, Plant(rank, step, signal.SIGKILL))
    assert worst(outcomes) == "died"
    died = [o for o in outcomes if o.state == "died"]
    assert [(o.rank, o.step, o.detail) for o in died] == [(rank, step, "killed by SIGKILL")]
    assert states_of(outcomes)[0].rank == rank, "the cause comes first"


@pytest.mark.parametrize(("world_size", "rank", "step"), STOPPED)
def test_a_stopped_rank_is_named_with_its_step(world_size: int, rank: int, step: str) -> None:
    begin = time.monotonic()
    outcomes = _end(world_size, Plant(rank, step, signal.SIGSTOP, LIMIT_S))
    assert time.monotonic() - begin < LIMIT_S + 10
    assert worst(outcomes) == "hung"
    hung = [o for o in outcomes if o.state == "hung"]
    assert [(o.rank, o.step) for o in hung] == [(rank, step)], outcomes
    assert "stopped by a signal" in hung[0].detail
    assert len(outcomes) == world_size


def test_a_rank_that_hangs_leaves_its_stacks_and_the_others_theirs() -> None:
    with _pool(step_limit_s=2.0) as pool:
        outcomes = pool.run(sleep_in_a_step, 60)
    assert [(o.state, o.step) for o in outcomes] == [("left", "gather"), ("hung", "sleep")]
    for outcome, function in zip(outcomes, ("all_gather", "sleep_in_a_step"), strict=True):
        assert outcome.traces is not None
        assert function in outcome.traces.stacks


def test_the_status_words_of_a_workspace_are_evidence() -> None:
    """Rank 0 gives up waiting for rank 1, which is between two steps for ever."""
    with _pool() as pool:
        outcomes = pool.run(sleep_between_calls, 60)
    assert [o.state for o in outcomes] == ["failed", "hung"], outcomes
    assert "PeerTimeoutError" in outcomes[0].detail
    assert outcomes[0].step in ("call M 1, N 64, K 16", "check the workspace")
    assert outcomes[0].traces is not None
    (told,) = outcomes[0].traces.status["workspaces"]
    assert told["status"], "the record of the wait that gave up"
    assert outcomes[1].traces is not None
    (other,) = outcomes[1].traces.status["workspaces"]
    assert not other["status"]
    assert other["epoch"] == [0]


def test_an_error_that_is_caught_ends_its_step() -> None:
    """Else its time limit would end what comes after it."""
    with _pool(step_limit_s=1.0) as pool:
        assert [o.state for o in pool.run(refuse_then_go_on, 60)] == ["passed", "passed"]


def test_numbers_of_a_check_come_with_its_outcome() -> None:
    with _pool() as pool:
        outcomes = pool.run(measure, 60)
        again = pool.run(every_step, 60)
    first, second = outcomes[0].measures
    assert (first.name, first.labels, first.outcome) == ("speed", {"m": 16}, "passed")
    assert second.outcome == "failed"
    assert not again[0].measures, "they are of one check"


@contextmanager
def _pool(**changes: float) -> Iterator[Pool]:
    """A pool of two that is closed."""
    pool = Pool("cpu", 2, **(SHORT | changes))  # type: ignore[arg-type]
    try:
        assert pool.usable, pool.started
        yield pool
    finally:
        pool.close()
