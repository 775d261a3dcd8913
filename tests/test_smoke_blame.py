"""Who did not come: from what every rank of a launch said last."""

from __future__ import annotations

from smoke_tests.blame import blame
from smoke_tests.board import Failure


def told(failure: Failure, *, done: dict[int, str], late: dict[int, int]) -> dict[int, str]:
    lates = {rank: (count, f"step {count}") for rank, count in late.items()}
    states = blame(failure, 4, done, lates, dict.fromkeys(range(4), "here"))
    return {s.rank: s.state for s in states}


def test_the_rank_that_has_begun_the_fewest_steps_is_missing() -> None:
    hung = Failure("hung", 3)
    late = {0: 7, 1: 7, 2: 6, 3: 7}
    assert told(hung, done={}, late=late) == {0: "left", 1: "left", 2: "hung", 3: "left"}
    assert told(hung, done={0: ""}, late={1: 7, 2: 7, 3: 7}) == dict.fromkeys((1, 2, 3), "hung")


def test_a_rank_that_says_nothing_at_the_limit_hangs() -> None:
    assert told(Failure("hung", 3), done={}, late={0: 7, 1: 7, 3: 7})[2] == "hung"


def test_who_is_known_to_have_died_is_named_alone() -> None:
    died = Failure("died", 3, {1: "its process is gone"})
    assert told(died, done={}, late={}) == {0: "left", 1: "died", 2: "left", 3: "left"}
    states = blame(died, 4, {}, {}, {1: "sums, add up"})
    assert [(s.step, s.detail) for s in states if s.rank == 1] == [
        ("sums, add up", "its process is gone")
    ]


def test_who_failed_says_why_and_who_passed_is_not_listed() -> None:
    failed = Failure("failed", 0, {})
    states = told(failed, done={0: "", 1: "wrong", 2: ""}, late={})
    assert states == {1: "failed", 3: "left"}


def test_a_failure_survives_the_store() -> None:
    import json

    failure = Failure("hung", 2, {5: "silent"})
    assert Failure.of(json.loads(json.dumps(failure.as_dict()))) == failure
    assert (failure.exit_code, Failure("died", 0).exit_code) == (6, 1)
