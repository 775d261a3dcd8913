"""What became of a check: on one process, and on all of them as the report says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from smoke_tests.records import CheckOutcome, Measure, RankState

State = Literal["passed", "failed", "died", "hung", "left"]


@dataclass(frozen=True)
class Traces:
    """What a rank that hung left: stacks, and the status words of its workspaces."""

    stacks: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a check on one process. ``left``: it still waited for one that had failed.

    ``step`` is where it ended, or was when it was ended.
    """

    rank: int
    state: State
    detail: str = ""
    seconds: float = 0.0
    step: str = ""
    measures: tuple[Measure, ...] = ()
    traces: Traces | None = None

    def __str__(self) -> str:
        """Return it as one paragraph."""
        where = f" in step {self.step!r}" if self.step else ""
        return f"rank {self.rank} {self.state}{where}: {self.detail}"


def worst(outcomes: Sequence[Outcome]) -> CheckOutcome:
    """Return what the check came to. A rank that died is why others hung; one that hung is why
    others failed. Pure."""
    states = {outcome.state for outcome in outcomes}
    if "died" in states:
        return "died"
    if "hung" in states:
        return "hung"
    return "failed" if states - {"passed"} else "passed"


def states_of(outcomes: Sequence[Outcome]) -> tuple[RankState, ...]:
    """Return what the report says of the ranks that did not pass: the cause first. Pure."""
    order = ("died", "hung", "failed", "left")
    bad = [o for o in outcomes if o.state != "passed"]
    bad.sort(key=lambda o: (order.index(o.state), o.rank))
    return tuple(
        RankState(o.rank, o.state, o.step, o.detail)  # type: ignore[arg-type] # not "passed"
        for o in bad
    )


def text_of(what: str, outcomes: Sequence[Outcome]) -> str:
    """Return what a person reads of the ranks that did not pass: the cause first. Pure."""
    lines = [what]
    for state in states_of(outcomes):
        where = f" in step {state.step!r}" if state.step else ""
        lines.append(f"rank {state.rank} {state.state}{where}: {state.detail}")
    return "\n".join(lines)
