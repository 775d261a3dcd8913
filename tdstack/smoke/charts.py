"""Where the marks of a plot go: lines over M, and matrices of pairs. Pure.

Geometry only, in units of the picture; templates/charts.html.j2 draws it. Colours come from the
page's style, so that one picture serves light, dark and print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from smoke_tests.bands import describe, show_band
from smoke_tests.records import Measure
from tdstack.smoke.views import Line, Lines, Matrix

WIDTH: Final = 480.0
HEIGHT: Final = 300.0
LEFT: Final = 58.0
RIGHT: Final = 16.0
TOP: Final = 14.0
BOTTOM: Final = 46.0
LOG_FROM: Final = 20.0
"""A largest value so many times the smallest is drawn on a logarithmic axis."""
MARKERS: Final = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-4,-4h8v8h-8z",
    "M0,-5L5,4H-5z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
    "M0,5L5,-4H-5z",
    "M-1.5,-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
)
"""Outlines by line, around 0,0: lines differ by more than their colours."""
DASHES: Final = ("none", "7 3", "2 3", "9 3 2 3", "4 4", "1 5")
TEXT_UP_TO: Final = 12
"""Ranks; the cells of a larger matrix are too small for a number, which is then in its title."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A measure's place; ``band`` are the places of its limits, ``bad`` says it is outside."""

    x: float
    y: float
    title: str
    bad: bool
    band: tuple[float, ...]


@dataclass(frozen=True)
class Drawn:
    """A line and its marks; ``style`` counts the page's colours, ``path`` is SVG's."""

    label: str
    style: int
    marker: str
    dash: str
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class LineChart:
    """A plot over M. ``one`` is the place of the value 1, where that tells faster from slower."""

    view: Lines
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Drawn, ...]
    one: float | None
    logarithmic: bool


@dataclass(frozen=True)
class Cell:
    """A pair's square; ``shade`` from 0 to 1; a pair without a measure has no text."""

    x: float
    y: float
    text: str
    title: str
    shade: float
    bad: bool


@dataclass(frozen=True)
class HeatMap:
    """A matrix of pairs: sources from top to bottom, destinations from left to right."""

    view: Matrix
    description: str
    side: float
    height: float
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    cells: tuple[Cell, ...]
    font: float


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(value), math.log(low), math.log(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)


def line_chart(view: Lines) -> LineChart:
    """Return the plot of lines over M, on a logarithmic axis of M."""
    measures = [point for line in view.lines for point in line.points]
    widths = sorted({int(measure.labels["m"]) for measure in measures})
    # M = 0 has no place on a logarithmic axis; it stands where 1/2 would.
    x = _Scale(max(widths[0], 0.5), max(widths[-1], 0.5), LEFT + 8, WIDTH - RIGHT - 8, True)
    limits = [limit for measure in measures for limit in measure.band or () if limit is not None]
    y, values = _value_axis([measure.value for measure in measures] + limits, view.unit)
    lines = tuple(_drawn(number, line, x, y) for number, line in enumerate(view.lines))
    x_ticks = tuple(Tick(x(max(m, 0.5)), str(m)) for m in _thinned(widths))
    y_ticks = tuple(Tick(y(value), f"{value:g}") for value in values)
    one = y(1.0) if view.unit == "ratio" and y.low <= 1.0 <= y.high else None
    return LineChart(view, _describe(view), x_ticks, y_ticks, lines, one, y.logarithmic)


def heat_map(view: Matrix) -> HeatMap:
    """Return the picture of a matrix: the darker a square, the higher its value."""
    side = min(58.0, (WIDTH - LEFT - RIGHT) / len(view.ranks))
    place = {rank: LEFT + number * side for number, rank in enumerate(view.ranks)}
    top = 40.0 - LEFT
    values = [cell.value for cell in view.cells.values()]
    # From 0: small differences must not look like large ones.
    high = max(map(abs, values)) or 1.0
    cells = []
    for (source, target), measure in sorted(view.cells.items()):
        share = max(0.0, measure.value / high)
        bad = measure.outcome == "failed" or (source, target) in view.slow
        title = f"{source} to {target}: {show_value(measure)}" + (", slow" if bad else "")
        text = f"{measure.value:.3g}" if len(view.ranks) <= TEXT_UP_TO else ""
        where = place[target], round(place[source] + top, 2)
        cells.append(Cell(*where, text, title, round(share, 3), bad))
    columns = tuple(Tick(x + side / 2, str(rank)) for rank, x in place.items())
    rows = tuple(Tick(x + top + side / 2, str(rank)) for rank, x in place.items())
    height = 40.0 + side * len(view.ranks) + 8
    font = min(14.0, side * 0.3)
    return HeatMap(view, _describe_matrix(view), side, height, columns, rows, tuple(cells), font)


def show_value(measure: Measure) -> str:
    """Return the number, its unit and what its band says."""
    band = show_band(measure)
    return f"{measure.value:.4g} {measure.unit}" + (f" (band: {band})" if band else "")


def _drawn(number: int, line: Line, x: _Scale, y: _Scale) -> Drawn:
    marks = []
    for measure in line.points:
        limits = tuple(y(limit) for limit in measure.band or () if limit is not None)
        title = f"{line.label}, M {measure.labels['m']}: {show_value(measure)}"
        at = x(max(int(measure.labels["m"]), 0.5))
        marks.append(Mark(at, y(measure.value), title, measure.outcome == "failed", limits))
    path = "M" + "L".join(f"{mark.x:g},{mark.y:g}" for mark in marks)
    style = number % len(MARKERS)
    return Drawn(line.label, style, MARKERS[style], DASHES[style], path, tuple(marks))


def _value_axis(values: list[float], unit: str) -> tuple[_Scale, list[float]]:
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if low > 0 and high / low >= LOG_FROM and unit != "ratio":
        ticks = _decades(low, high)
        return _Scale(ticks[0], ticks[-1], bottom, top, True), ticks
    ticks = _round_steps(min(0.0, low), max(high, 1.0) if unit == "ratio" else high)
    return _Scale(ticks[0], ticks[-1], bottom, top, False), ticks


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 8)
    return [10.0**power for power in range(first, last + every, every)]


def _round_steps(low: float, high: float) -> list[float]:
    span = high - low or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(round((low + span) / step, 6))
    return [round(n * step, 10) for n in range(first, last + 1)]


def _thinned(widths: list[int]) -> list[int]:
    every = math.ceil(len(widths) / 8)
    return widths[::every]


def _describe(view: Lines) -> str:
    parts = []
    for line in view.lines:
        best = max(line.points, key=lambda measure: measure.value)
        worst = min(line.points, key=lambda measure: measure.value)
        parts.append(
            f"{line.label}: from {worst.value:.3g} at M {worst.labels['m']}"
            f" to {best.value:.3g} at M {best.labels['m']}"
        )
    bad = [describe(p) for line in view.lines for p in line.points if p.outcome == "failed"]
    outside = [f"outside their bands: {', '.join(bad)}"] if bad else []
    return f"{view.name} in {view.unit} over M; " + "; ".join(parts + outside)


def _describe_matrix(view: Matrix) -> str:
    values = [cell.value for cell in view.cells.values()]
    slow = ", ".join(f"{source} to {target}" for source, target in view.slow)
    return (
        f"{view.name} from each rank (rows) to each (columns), {min(values):.4g} to"
        f" {max(values):.4g} {view.unit}; " + (f"slow: {slow}" if slow else "no pair is slow")
    )
