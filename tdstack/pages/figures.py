"""The plots of docs/performance.md, as files of their own, from docs/data/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from smoke_tests.records import Label, Measure, Result
from tdstack.pages.performance import FOUR, TWO, VIRTUAL, select
from tdstack.smoke.charts import line_chart
from tdstack.smoke.html import render
from tdstack.smoke.views import Lines, line

FOLDER: Final = "docs/plots"
RATIO: Final = "fused/serial"


@dataclass(frozen=True)
class Figure:
    """A plot of serial time / fused time over M; ``by`` is the label that its lines differ in."""

    file: str
    data: str
    title: str
    by: str
    labels: tuple[tuple[str, Label], ...]


FIGURES: Final = (
    *(
        Figure(
            f"{name.lower().replace(' ', '-')}-k{k}.svg",
            data,
            f"{name}, K {k} per rank, N 8192: serial time / fused time over M",
            "baseline",
            (("k", k),),
        )
        for name, data, k in (
            ("Four H100", FOUR, 2048),
            ("Four H100", FOUR, 7392),
            ("Two H100", TWO, 4096),
            ("Two H100", TWO, 14784),
        )
    ),
    *(
        Figure(
            f"virtual-h100-k{k}.svg",
            VIRTUAL,
            f"Virtual ranks on one H100, K {k}, N 8192: the best serial time / fused time over M",
            "w",
            (("k", k), ("baseline", "best")),
        )
        for k in (1024, 3696)
    ),
)


def drawn(runs: Mapping[str, Result]) -> dict[str, str]:
    """Return every plot by its path, from runs by their files."""
    return {f"{FOLDER}/{one.file}": draw(one, runs[one.data]) for one in FIGURES}


def draw(figure: Figure, run: Result) -> str:
    """Return a plot as SVG; it needs nothing but itself."""
    lines: dict[Label, list[Measure]] = {}
    for measure in select(run, RATIO, **dict(figure.labels)):
        # Bands are for runs that are judged; these are of the data that bands come from.
        lines.setdefault(measure.labels[figure.by], []).append(replace(measure, band=None))
    view = Lines(
        RATIO,
        "ratio",
        figure.title,
        tuple(
            line(f"W {name}" if figure.by == "w" else f"over {name}", points)
            for name, points in lines.items()
        ),
    )
    return render("chart.svg.j2", chart=line_chart(view), title=figure.title)
