"""What drawn sequences are compared with must find faults too: each is planted once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from smoke_tests.controls import SequenceFault, altered_sources
from smoke_tests.drawn import fixed
from smoke_tests.pool import Pool

TIER = "cpu"
LIMIT_S = 120.0


def test_a_sequence_finds(fault: SequenceFault, tmp_path: Path) -> None:
    """The fixed sequence fails on every rank, and says in which call and why."""
    from smoke_tests.replay import play

    pool = Pool("cpu", 2, altered_sources(fault, tmp_path), time_limit_s=2.0)
    try:
        assert pool.usable, pool.started
        assert all(o.detail.startswith(str(tmp_path)) for o in pool.started), "not the altered one"
        outcomes = pool.run(partial(play, fixed(2)), LIMIT_S)
    finally:
        pool.close()
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"], outcomes
    for outcome in outcomes:
        assert all(text in outcome.detail for text in fault.says), outcome.detail
