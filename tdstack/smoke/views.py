"""Measures put in the order in which they are looked at: lines over M, matrices of pairs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from smoke_tests.records import Label, Measure
from tdstack.smoke.statistics import find_odd, is_worse

Key: TypeAlias = tuple[str, str, tuple[tuple[str, Label], ...]]
"""Name, unit and labels: what two runs have in common when they measure the same."""
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """Measures of one world size or one way of computing, by growing M."""

    label: str
    points: tuple[Measure, ...]


@dataclass(frozen=True)
class Lines:
    """One plot over M: a layer, with a line per world size or way."""

    name: str
    unit: str
    labels: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Matrix:
    """A measure of every pair of ranks; ``slow`` are those far from the median, for the worse."""

    name: str
    unit: str
    labels: str
    ranks: tuple[int, ...]
    cells: Mapping[Pair, Measure]
    slow: tuple[Pair, ...]


def key_of(measure: Measure, without: Iterable[str] = ()) -> Key:
    """Return what the measure is of; ``without`` names labels to leave out."""
    labels = {k: v for k, v in measure.labels.items() if k not in set(without)}
    return measure.name, measure.unit, tuple(sorted(labels.items()))


def show_labels(labels: Iterable[tuple[str, Label]]) -> str:
    """Return labels in one line; it breaks between them only."""
    return ", ".join(f"{key}\u00a0{value}" for key, value in labels)


def lines_over_m(measures: Iterable[Measure]) -> list[Lines]:
    """Return the plots over M, speed-ups (the unit ``ratio``) first.

    Measures with a label ``way`` have a plot per world size, with a line per way; others a plot per
    layer, with a line per world size, whatever K a rank has of it.
    """
    groups: dict[Key, dict[str, list[Measure]]] = {}
    for measure in measures:
        if _has_number(measure, "m"):
            varying = _varying(measure)
            lines = groups.setdefault(key_of(measure, ("m", *varying)), {})
            lines.setdefault(_label(measure, varying), []).append(measure)
    plots = [
        Lines(name, unit, show_labels(labels), tuple(line(k, lines[k]) for k in lines))
        for (name, unit, labels), lines in groups.items()
    ]
    return sorted(plots, key=lambda plot: plot.unit != "ratio")


def matrices(measures: Iterable[Measure]) -> list[Matrix]:
    """Return the matrices of the measures that are of a pair of ranks."""
    groups: dict[Key, dict[Pair, Measure]] = {}
    for measure in measures:
        if _has_number(measure, "src") and _has_number(measure, "dst"):
            pair = int(measure.labels["src"]), int(measure.labels["dst"])
            groups.setdefault(key_of(measure, ("src", "dst")), {})[pair] = measure
    return [_matrix(key, cells) for key, cells in groups.items()]


def others(measures: Iterable[Measure]) -> list[Measure]:
    """Return the measures that are in no plot."""
    return [
        measure
        for measure in measures
        if not _has_number(measure, "m")
        and not (_has_number(measure, "src") and _has_number(measure, "dst"))
    ]


def _has_number(measure: Measure, label: str) -> bool:
    return type(measure.labels.get(label)) is int


def _varying(measure: Measure) -> list[str]:
    if "way" in measure.labels:
        return ["way"]
    names = ["w", "k"] if "layer" in measure.labels else ["w"]
    return [name for name in names if name in measure.labels]


def _label(measure: Measure, varying: list[str]) -> str:
    if varying == ["way"]:
        return str(measure.labels["way"])
    return show_labels((name.upper(), measure.labels[name]) for name in varying) or measure.name


def line(label: str, points: list[Measure]) -> Line:
    """Return the line of measures that have a label ``m``."""
    return Line(label, tuple(sorted(points, key=lambda measure: int(measure.labels["m"]))))


def _matrix(key: Key, cells: dict[Pair, Measure]) -> Matrix:
    name, unit, labels = key
    ranks = tuple(sorted({rank for pair in cells for rank in pair}))
    # A rank's copy to itself does not cross a link, and would hide what is odd about those.
    crossing = {pair: cell.value for pair, cell in cells.items() if pair[0] != pair[1]}
    odd = find_odd(crossing)
    slow = tuple(sorted(row.key for row in odd if is_worse(row.value - row.median, unit, name)))
    return Matrix(name, unit, show_labels(labels), ranks, cells, slow)
