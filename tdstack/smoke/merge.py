"""`invoke smoke --merge`: the runs of many nodes put together, and what is odd about which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from smoke_tests.bands import describe, explain
from smoke_tests.records import TIERS, Measure, RecordError, Result, Tier, read
from tdstack.errors import UsageError
from tdstack.smoke.html import flatten, render
from tdstack.smoke.statistics import find_odd, is_worse
from tdstack.smoke.summary import Summary, summarize
from tdstack.smoke.views import Key, key_of

NodeState: TypeAlias = Literal["passed", "failed", "cut off", "unreadable", "lacks a tier"]
_ORDER: Final[tuple[NodeState, ...]] = (
    "unreadable",
    "cut off",
    "failed",
    "lacks a tier",
    "passed",
)
RECORDS: Final = "*.jsonl"
SHOWN: Final = 40
"""Outliers in tables for people; a node that is slow altogether has hundreds."""
WHO: Final = ("nodes",)
"""Of a run's machine: who ran it. It differs from node to node, and is no mixture."""


@dataclass(frozen=True)
class Node:
    """One run of the cluster: its name, state and summary; ``problems`` are sentences."""

    name: str
    file: str
    state: NodeState
    tiers: Mapping[str, str]
    problems: tuple[str, ...]
    checks: int = 0
    measures: int = 0


@dataclass(frozen=True)
class Outlier:
    """A measure that is far from the median of all nodes, ``z`` robust standard deviations."""

    node: str
    measure: Measure
    median: float
    mad: float
    z: float
    nodes: int
    worse: bool
    far: bool

    @property
    def verdict(self) -> str:
        """``slow``, which fails the cluster, ``worse`` or ``better``."""
        return "slow" if self.worse and self.far else "worse" if self.worse else "better"

    @property
    def share(self) -> float:
        """The deviation as a share of the median."""
        return (self.measure.value - self.median) / abs(self.median)


@dataclass(frozen=True)
class Mixed:
    """Something of which not all nodes have the same; the values by how many nodes have them."""

    name: str
    values: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Merged:
    """A cluster's runs: nodes with problems first, outliers for the worse and far ones first."""

    nodes: tuple[Node, ...]
    outliers: tuple[Outlier, ...]
    mixed: tuple[Mixed, ...]
    synthetic: bool
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every node passed and none is far from the others for the worse."""
        return all(n.state == "passed" for n in self.nodes) and not any(
            outlier.verdict == "slow" for outlier in self.outliers
        )

    @property
    def headline(self) -> str:
        """The state of the cluster in a sentence."""
        counts = [(state, sum(n.state == state for n in self.nodes)) for state in _ORDER]
        parts = [f"{count} {state}" for state, count in counts if count]
        slow = sum(outlier.verdict == "slow" for outlier in self.outliers)
        parts += [f"{slow} measures far too slow"] if slow else []
        worse = sum(outlier.verdict == "worse" for outlier in self.outliers)
        parts += [f"{worse} worse than others"] if worse else []
        parts += [f"mixed: {', '.join(row.name for row in self.mixed)}"] if self.mixed else []
        return f"{len(self.nodes)} nodes: " + "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "schema": 1,
            "ok": self.ok,
            "synthetic": self.synthetic,
            "headline": self.headline,
            "nodes": [vars(node) for node in self.nodes],
            "outliers": [
                {
                    "node": outlier.node,
                    "name": outlier.measure.name,
                    "labels": dict(outlier.measure.labels),
                    "unit": outlier.measure.unit,
                    "value": outlier.measure.value,
                    "median": outlier.median,
                    "mad": outlier.mad,
                    "z": round(outlier.z, 2),
                    "nodes": outlier.nodes,
                    "verdict": outlier.verdict,
                }
                for outlier in self.outliers
            ],
            "mixed": {
                row.name: {value: list(nodes) for value, nodes in row.values} for row in self.mixed
            },
            "notes": list(self.notes),
        }


def merge(paths: Iterable[Path]) -> Merged:
    """Read the runs of files and folders (all ``*.jsonl`` below) and put them together.

    A file that cannot be read is a node with that problem, not an error: where many nodes wrote,
    one of them will have failed to.

    Raises: UsageError when a path does not exist, or there is no file of records at all.
    """
    files = list(dict.fromkeys(_files(paths)))
    if not files:
        raise UsageError("no files of records", expected=f"files, or folders that hold {RECORDS}")
    runs: list[tuple[Path, Result]] = []
    broken: list[tuple[Path, str]] = []
    for file in files:
        try:
            runs.append((file, read(file)))
        except RecordError as error:
            broken.append((file, str(RecordError(error.what, error.line))))
        except OSError as error:
            broken.append((file, error.strerror or str(error)))
    return put_together(runs, broken)


def put_together(
    runs: Iterable[tuple[Path, Result]], broken: Iterable[tuple[Path, str]] = ()
) -> Merged:
    """Return what the runs say together; ``broken`` are files without one, and why. Pure."""
    once: dict[str, tuple[Path, Result]] = {}
    notes = []
    for file, result in runs:
        if result.run.id in once:
            notes.append(f"{file} is the same run as {once[result.run.id][0]}: counted once")
        else:
            once[result.run.id] = file, result
    hosts = [result.run.host for _, result in once.values()]
    named = {
        result.run.host if hosts.count(result.run.host) == 1 else f"{result.run.host} ({file})": (
            file,
            result,
        )
        for file, result in once.values()
    }
    summaries = {name: summarize(result) for name, (_, result) in named.items()}
    ran = {row.tier for s in summaries.values() for row in s.tiers if row.state != "skipped"}
    nodes = [
        _node(name, file, result, summaries[name], ran) for name, (file, result) in named.items()
    ]
    nodes += [Node(file.stem, str(file), "unreadable", {}, (why,)) for file, why in broken]
    nodes.sort(key=lambda node: (_ORDER.index(node.state), node.name))
    results = {name: result for name, (_, result) in named.items()}
    outliers = sorted(_outliers(results), key=lambda o: (not o.worse, -abs(o.z)))
    synthetic = any(result.run.synthetic for result in results.values())
    return Merged(tuple(nodes), tuple(outliers), tuple(_mixed(results)), synthetic, tuple(notes))


def merged_page(merged: Merged) -> str:
    """Return the cluster as one page. Pure, apart from reading the templates."""
    return render(
        "merge.html.j2", title="Smoke tests of a cluster", merged=merged, tiers=TIERS, shown=SHOWN
    )


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.rglob(RECORDS))
        elif path.exists():
            yield path
        else:
            raise UsageError("no such file or folder", where=f"--merge {path}")


def _node(name: str, file: Path, result: Result, summary: Summary, ran: set[Tier]) -> Node:
    own = {row.tier: row for row in summary.tiers}
    problems = [] if summary.state == "passed" else [summary.headline]
    for check in summary.failed:
        ranks = ", ".join(
            f"rank {rank.rank} {rank.state}" + (f" at {rank.step!r}" if rank.step else "")
            for rank in check.ranks
        )
        problems.append(f"{check.name} {check.outcome}" + (f": {ranks}" if ranks else ""))
    problems += [explain(measure) for measure in summary.outside]
    missing = [t for t in TIERS if t in ran and (t not in own or own[t].state == "skipped")]
    for tier in missing:
        reason = own[tier].reason if tier in own else "no word of it"
        problems.append(f"tier {tier} did not run, as it did on other nodes: {reason}")
    state: NodeState = summary.state
    if state == "passed" and missing:
        state = "lacks a tier"
    tiers: dict[str, str] = {tier: row.state for tier, row in own.items()}
    counts = len(result.checks), len(result.measures)
    return Node(name, str(file), state, tiers, tuple(problems), *counts)


def _outliers(results: Mapping[str, Result]) -> Iterator[Outlier]:
    table: dict[Key, dict[str, Measure]] = {}
    for name, result in results.items():
        for measure in result.measures:
            table.setdefault(key_of(measure), {})[name] = measure
    for row in table.values():
        for odd in find_odd({name: measure.value for name, measure in row.items()}):
            measure = row[odd.key]
            worse = is_worse(odd.value - odd.median, measure.unit, measure.name)
            yield Outlier(odd.key, measure, odd.median, odd.mad, odd.z, len(row), worse, odd.far)


def _mixed(results: Mapping[str, Result]) -> Iterator[Mixed]:
    machines = {name: dict(flatten(result.run.machine)) for name, result in results.items()}
    for key in dict.fromkeys(key for machine in machines.values() for key in machine):
        if key in WHO:
            continue
        values: dict[str, list[str]] = {}
        for name, machine in machines.items():
            values.setdefault(machine.get(key, "-"), []).append(name)
        if len(values) > 1:
            ranked = sorted(values.items(), key=lambda item: -len(item[1]))
            yield Mixed(key, tuple((value, tuple(nodes)) for value, nodes in ranked))


def say_merged(merged: Merged) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield tables for a terminal: title, columns, rows."""
    nodes = [[n.name, n.state, "\n".join(n.problems)] for n in merged.nodes]
    yield merged.headline, ["node", "state", "problems"], nodes
    if merged.outliers:
        rows = [
            [
                o.node,
                describe(o.measure),
                f"{o.measure.value:.4g} {o.measure.unit}",
                f"{o.median:.4g}",
                f"{o.share:+.1%}",
                f"{o.z:+.1f}",
                o.verdict,
            ]
            for o in merged.outliers[:SHOWN]
        ]
        columns = ["node", "measure", "value", "median", "deviation", "z", ""]
        title = f"Outliers ({len(rows)} of {len(merged.outliers)})"
        yield title, columns, rows
    if merged.mixed:
        rows = [
            [row.name, "\n".join(f"{value}: {', '.join(names)}" for value, names in row.values)]
            for row in merged.mixed
        ]
        yield "Mixed", ["what", "values and nodes"], rows
