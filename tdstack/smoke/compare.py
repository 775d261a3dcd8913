"""`invoke smoke --compare A B`: what changed from one run to another, and whether B is worse. Pure.

The rule: B is worse when a check that passed in A did not pass or did not run in B, when one
failed that A does not have, when a measure left its band, when B has no verdict or failed and A
passed, or when a measure changed for the worse by more than the noise. The noise of a measure is
three robust standard deviations of the changes of its group (same name, unit and labels but for
shape and ranks) around their median: where every shape wavers, a single one that wavers says
nothing. It is at least 5 %, and at most 15 %, lest a fault of half the shapes passes as noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from smoke_tests.bands import describe
from smoke_tests.records import Measure, Result
from tdstack.smoke.html import flatten
from tdstack.smoke.statistics import LEAST_COUNT, NORMAL, is_worse, spread
from tdstack.smoke.summary import summarize
from tdstack.smoke.views import Key, key_of

LEAST_NOISE: Final = 0.05
MOST_NOISE: Final = 0.15
SHAPE: Final = ("m", "n", "k", "layer", "models", "model", "src", "dst")
"""Labels in which the measures of a group differ."""
SIGMAS: Final = 3.0
ABSENT: Final = "did not run"


@dataclass(frozen=True)
class CheckChange:
    """A check whose outcome differs; ``did not run`` where a run has none."""

    name: str
    before: str
    after: str

    @property
    def worse(self) -> bool:
        """Whether B lost something; a check that did not pass in A either is no loss."""
        new_fault = self.before == ABSENT and self.after != "passed"
        return new_fault or (self.before == "passed" and self.after != "passed")


@dataclass(frozen=True)
class MeasureChange:
    """A measure of both runs; ``ratio`` is B/A, ``noise`` the share that means nothing."""

    before: Measure
    after: Measure
    noise: float

    @property
    def ratio(self) -> float:
        """B/A; 1 where both are 0, infinite where only A is."""
        if self.before.value == self.after.value:
            return 1.0
        return self.after.value / self.before.value if self.before.value else math.inf

    @property
    def beyond_noise(self) -> bool:
        """Whether the change is more than noise, in either direction."""
        return self.ratio <= 0 or abs(math.log(self.ratio)) > math.log1p(self.noise)

    @property
    def worse(self) -> bool:
        """Whether it is more than noise and for the worse, or left its band."""
        unit, name = self.after.unit, self.after.name
        lost = self.before.outcome != "failed" and self.after.outcome == "failed"
        change = self.after.value - self.before.value
        return lost or (self.beyond_noise and is_worse(change, unit, name))


@dataclass(frozen=True)
class Difference:
    """Something of the environment that differs; ``-`` where a run has none."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Two runs: what changed. ``medians`` are B/A by name and unit of measure."""

    states: tuple[str, str]
    checks: tuple[CheckChange, ...]
    measures: tuple[MeasureChange, ...]
    medians: Mapping[tuple[str, str], float]
    only: tuple[tuple[Measure, ...], tuple[Measure, ...]]
    environment: tuple[Difference, ...]

    @property
    def worse(self) -> bool:
        """Whether B is worse than A, by the rule of this module."""
        lost = self.states[0] == "passed" and self.states[1] != "passed"
        return (
            lost
            or self.states[1] == "cut off"
            or any(check.worse for check in self.checks)
            or any(measure.worse for measure in self.measures)
        )

    @property
    def headline(self) -> str:
        """What changed, in a sentence."""
        moved = [measure for measure in self.measures if measure.beyond_noise]
        lost = sum(measure.worse for measure in self.measures)
        return (
            f"B is {'worse' if self.worse else 'not worse'} than A ({self.states[0]}, then"
            f" {self.states[1]}): {len(self.checks)} checks changed,"
            f" {sum(check.worse for check in self.checks)} for the worse;"
            f" of {len(self.measures)} measures {len(moved)} moved beyond the noise,"
            f" {lost} for the worse; {len(self.environment)} differences of environment"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "schema": 1,
            "worse": self.worse,
            "headline": self.headline,
            "states": list(self.states),
            "checks": [vars(check) | {"worse": check.worse} for check in self.checks],
            "measures": [_as_dict(measure) for measure in self.measures],
            "medians": [
                {"name": name, "unit": unit, "ratio": _finite(ratio)}
                for (name, unit), ratio in self.medians.items()
            ],
            "only_in_a": [describe(measure) for measure in self.only[0]],
            "only_in_b": [describe(measure) for measure in self.only[1]],
            "environment": [vars(row) for row in self.environment],
        }


def compare(before: Result, after: Result) -> Comparison:
    """Return what changed from A, ``before``, to B, ``after``."""
    old = {key_of(measure): measure for measure in before.measures}
    new = {key_of(measure): measure for measure in after.measures}
    changes = _changes(old, new)
    names = dict.fromkeys((change.after.name, change.after.unit) for change in changes)
    return Comparison(
        (summarize(before).state, summarize(after).state),
        tuple(_checks(before, after)),
        tuple(sorted(changes, key=lambda c: (not c.worse, -_distance(c.ratio)))),
        {
            name: median(c.ratio for c in changes if (c.after.name, c.after.unit) == name)
            for name in names
        },
        (
            tuple(measure for key, measure in old.items() if key not in new),
            tuple(measure for key, measure in new.items() if key not in old),
        ),
        tuple(_environment(before, after)),
    )


def say_comparison(found: Comparison) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield tables for a terminal: title, columns, rows."""
    if found.checks:
        rows = [[c.name, c.before, c.after, "worse" if c.worse else ""] for c in found.checks]
        yield "Checks whose outcome changed", ["check", "A", "B", ""], rows
    moved = [measure for measure in found.measures if measure.beyond_noise or measure.worse]
    if moved:
        rows = [
            [
                describe(m.after),
                f"{m.before.value:.4g}",
                f"{m.after.value:.4g} {m.after.unit}",
                f"{m.ratio:.3f}",
                f"{m.noise:.1%}",
                "worse" if m.worse else "better",
            ]
            for m in moved
        ]
        columns = ["measure", "A", "B", "B/A", "noise", ""]
        yield f"Measures that moved beyond the noise ({len(moved)})", columns, rows
    if found.medians:
        rows = [[f"{n} ({unit})", f"{ratio:.3f}"] for (n, unit), ratio in found.medians.items()]
        yield "Median of B/A", ["measure", "B/A"], rows
    if found.environment:
        rows = [[row.name, row.before, row.after] for row in found.environment]
        yield "Environment", ["what", "A", "B"], rows


def _changes(old: Mapping[Key, Measure], new: Mapping[Key, Measure]) -> list[MeasureChange]:
    pairs = [(old[key], new[key]) for key in old if key in new]
    logs: dict[Key, list[float]] = {}
    for before, after in pairs:
        ratio = MeasureChange(before, after, LEAST_NOISE).ratio
        if 0 < ratio < math.inf:
            logs.setdefault(key_of(after, SHAPE), []).append(math.log(ratio))
    noise = {group: _noise(values) for group, values in logs.items()}
    return [MeasureChange(a, b, noise.get(key_of(b, SHAPE), LEAST_NOISE)) for a, b in pairs]


def _noise(logs: list[float]) -> float:
    if len(logs) < LEAST_COUNT:
        return LEAST_NOISE
    return min(MOST_NOISE, max(LEAST_NOISE, math.expm1(SIGMAS * NORMAL * spread(logs)[1])))


def _distance(ratio: float) -> float:
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _checks(before: Result, after: Result) -> Iterator[CheckChange]:
    old = {check.name: check.outcome for check in before.checks}
    new = {check.name: check.outcome for check in after.checks}
    changes = [
        CheckChange(name, old.get(name, ABSENT), new.get(name, ABSENT))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    yield from sorted(changes, key=lambda change: not change.worse)


def _environment(before: Result, after: Result) -> Iterator[Difference]:
    old, new = dict(flatten(before.run.machine)), dict(flatten(after.run.machine))
    old["place"], new["place"] = before.run.place, after.run.place
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Difference(name, old.get(name, "-"), new.get(name, "-"))


def _as_dict(change: MeasureChange) -> dict[str, Any]:
    return {
        "name": change.after.name,
        "labels": dict(change.after.labels),
        "unit": change.after.unit,
        "a": change.before.value,
        "b": change.after.value,
        "ratio": _finite(change.ratio),
        "noise": round(change.noise, 4),
        "worse": change.worse,
    }


def _finite(ratio: float) -> float | None:
    return round(ratio, 4) if math.isfinite(ratio) else None
