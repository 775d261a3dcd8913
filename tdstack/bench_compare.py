"""`invoke bench --compare`: which calls lost speed against the serial way, from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from smoke_tests.records import Result
from tdstack.console import say, table
from tdstack.errors import CheckFailed, UsageError
from tdstack.smoke.report import read_run

MOST_LOSS: Final = 0.05
"""A call is worse when its fused/serial ratio is smaller by a larger share."""
RATIO: Final = "fused/serial"
BEST: Final = "best"
NUMBERS: Final = ("ranks", "w", "transport", "n", "k", "m")
"""Labels that say which call it is."""

Case = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """The ratio serial time / fused time of one call and baseline, in both runs.

    ``baseline`` is ``best`` for the fastest of those that both runs have.
    """

    case: Case
    baseline: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """Share by which the ratio changed; negative: worse."""
        return self.after / self.before - 1

    @property
    def worse(self) -> bool:
        """Whether it lost more than MOST_LOSS."""
        return self.change < -MOST_LOSS

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        labels = dict(zip(NUMBERS, self.case, strict=True))
        return asdict(self) | {"case": labels, "change": round(self.change, 4), "worse": self.worse}


@dataclass(frozen=True)
class Comparison:
    """All changes, in the order of the second run; calls that one run lacks; other devices."""

    changes: tuple[Change, ...]
    only_before: tuple[Case, ...]
    only_after: tuple[Case, ...]
    devices: tuple[str, str]

    @property
    def worse(self) -> list[Change]:
        """The changes for the worse."""
        return [change for change in self.changes if change.worse]


def compare(before: Result, after: Result) -> Comparison:
    """Compare every call and baseline that both runs have. Pure."""
    old, new = _ratios(before), _ratios(after)
    changes = []
    for case in (case for case in new if case in old):
        both = [name for name in new[case] if name in old[case]]
        changes += [Change(case, name, old[case][name], new[case][name]) for name in both]
        if len(both) > 1:
            least = [min(of[case][name] for name in both) for of in (old, new)]
            changes.append(Change(case, BEST, *least))
    return Comparison(
        tuple(changes),
        tuple(case for case in old if case not in new),
        tuple(case for case in new if case not in old),
        (_devices(before), _devices(after)),
    )


def compare_files(pair: Sequence[str]) -> dict[str, Any]:
    """Print what changed from the first file of records to the second; return it.

    Raises: UsageError unless there are two, with a call in common; HostError, IntegrityError for
    files that cannot be read; CheckFailed, with the data as its details, when a call is worse.
    """
    expected = "--compare A.jsonl --compare B.jsonl, as `invoke bench --fused` writes them"
    if len(pair) != 2:
        where = " ".join(f"--compare {path}" for path in pair)
        raise UsageError("a comparison is of two files", where=where, expected=expected)
    found = compare(*(read_run(Path(path).expanduser()) for path in pair))
    if not found.changes:
        raise UsageError("no call is in both files", where=", ".join(pair), expected=expected)
    table(
        "Serial time / fused time", ["call", "baseline", "before", "after", "change"], rows(found)
    )
    for words, cases in (("first", found.only_before), ("second", found.only_after)):
        if cases:
            say(f"only in the {words} file: {len(cases)} calls, as {_name(cases[0])}")
    if found.devices[0] != found.devices[1]:
        say(f"the devices differ: {found.devices[0]}, then {found.devices[1]}")
    count = f"{len(found.changes)} ratios compared, {len(found.worse)} worse by more than 5 percent"
    data = {
        "worse": [change.as_dict() for change in found.worse],
        "changes": [change.as_dict() for change in found.changes],
        "only_before": [dict(zip(NUMBERS, case, strict=True)) for case in found.only_before],
        "only_after": [dict(zip(NUMBERS, case, strict=True)) for case in found.only_after],
        "devices": list(found.devices),
    }
    if found.worse:
        names = [f"{_name(change.case)} against {change.baseline}" for change in found.worse]
        raise CheckFailed(count, where="; ".join(names), details=data)
    say(count)
    return data


def rows(found: Comparison) -> list[list[str]]:
    """Return the rows to print: what is worse, the largest loss first, then the best of each call.

    Pure.
    """
    worse = sorted(found.worse, key=lambda change: change.change)
    fine = [c for c in found.changes if not c.worse and (c.baseline == BEST or _alone(c, found))]
    return [
        [_name(c.case), c.baseline, f"{c.before:.2f}", f"{c.after:.2f}", _percent(c)]
        for c in (*worse, *fine)
    ]


def _alone(change: Change, found: Comparison) -> bool:
    """Whether a call has one baseline in common only, so that no best of several is shown."""
    return sum(other.case == change.case for other in found.changes) == 1


def _percent(change: Change) -> str:
    return f"{100 * change.change:+.1f} %" + ("  worse" if change.worse else "")


def _ratios(run: Result) -> dict[Case, dict[str, float]]:
    """Return the ratios by call and baseline, without the best, which depends on the baselines."""
    found: dict[Case, dict[str, float]] = {}
    for measure in run.measures:
        baseline = str(measure.labels.get("baseline", ""))
        if measure.name == RATIO and baseline != BEST and measure.value > 0:
            case = tuple(_plain(measure.labels.get(name, "")) for name in NUMBERS)
            found.setdefault(case, {})[baseline] = measure.value
    return found


def _plain(label: str | int | float | bool) -> str | int:
    return label if isinstance(label, str) else int(label)


def _name(case: Case) -> str:
    of = dict(zip(NUMBERS, case, strict=True))
    transport = f" over {of['transport']}" if of["transport"] else ""
    return f"{of['w']} {of['ranks']}{transport}, M {of['m']} N {of['n']} K {of['k']}"


def _devices(run: Result) -> str:
    names = [str(name) for name in run.run.machine.get("devices") or ["none"]]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
