"""Whatever a run holds, it can be written, read, shown, merged and compared."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoke_tests.records import (
    TIERS,
    Check,
    Evidence,
    Measure,
    RankState,
    Result,
    Run,
    Skip,
    Verdict,
    dump,
    parse,
)
from tdstack.smoke.charts import HEIGHT, WIDTH, heat_map, line_chart
from tdstack.smoke.compare import compare
from tdstack.smoke.html import run_page
from tdstack.smoke.junit import junit
from tdstack.smoke.merge import merged_page, put_together
from tdstack.smoke.views import lines_over_m, matrices

texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
values = numbers | st.sampled_from([0.0, -1.0, 1e-30, 1e30, 1.0])
tiers = st.sampled_from(TIERS)
labels = st.fixed_dictionaries(
    {},
    optional={
        "m": st.sampled_from([0, 1, 16, 8192]) | texts,
        "w": st.sampled_from([1, 8]),
        "k": st.sampled_from([8, 4096]),
        "way": texts,
        "layer": texts,
        "src": st.integers(0, 3),
        "dst": st.integers(0, 70),
    },
)
limits = st.tuples(values, values).map(lambda pair: (min(pair), max(pair)))
bands = st.none() | limits | values.map(lambda low: (low, None)) | st.just((None, 1.0))
measures = st.builds(
    Measure, tiers, texts, values, st.sampled_from(["ratio", "us", "GB/s", ""]), labels, bands
)
states = st.builds(
    RankState, st.integers(0, 9), st.sampled_from(["failed", "hung", "died", "left"]), texts, texts
)
seconds = st.floats(0, 1e6)
checks = st.builds(Check, tiers, texts, st.just("passed"), seconds, texts) | st.builds(
    Check,
    tiers,
    texts,
    st.sampled_from(["failed", "hung", "died"]),
    seconds,
    texts,
    st.lists(states, max_size=3).map(tuple),
)
machines = st.dictionaries(
    texts, st.none() | st.integers() | texts | st.dictionaries(texts, texts, max_size=2), max_size=4
)
results = st.builds(
    Result,
    st.builds(Run, texts, texts, machines, texts),
    st.lists(st.builds(Skip, tiers, texts), max_size=3).map(tuple),
    st.lists(checks, max_size=4).map(tuple),
    st.lists(measures, max_size=8).map(tuple),
    st.lists(
        st.builds(Evidence, texts, st.integers(0, 9), texts, st.dictionaries(texts, texts)),
        max_size=2,
    ).map(tuple),
    st.none()
    | st.builds(
        Verdict,
        st.sampled_from([0, 1, 6]),
        st.dictionaries(tiers, st.sampled_from(["passed", "failed", "skipped"])),
        st.dictionaries(texts, st.integers(0, 9), max_size=2),
    ),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


class _Tags(HTMLParser):
    """Requires that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _require_closed(page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []


@quick
@given(results)
def test_any_run_is_read_as_it_was_written(result: Result) -> None:
    text = "".join(dump(record) + "\n" for record in result.records())
    assert parse(text) == result


@quick
@given(results)
def test_any_run_has_a_page_and_junit(result: Result) -> None:
    ET.fromstring(junit(result))
    _require_closed(run_page(result))


@quick
@given(st.lists(results, min_size=1, max_size=6))
def test_any_runs_are_merged_and_compared(runs: list[Result]) -> None:
    merged = put_together((Path(str(number)), run) for number, run in enumerate(runs))
    assert len(merged.nodes) == len({run.run.id for run in runs})
    json.dumps(merged.as_dict(), allow_nan=False)
    _require_closed(merged_page(merged))
    json.dumps(compare(runs[0], runs[-1]).as_dict(), allow_nan=False)


@quick
@given(st.lists(measures, max_size=12))
def test_marks_lie_within_their_picture(drawn: list[Measure]) -> None:
    for view in lines_over_m(drawn):
        chart = line_chart(view)
        marks = [mark for line in chart.lines for mark in line.marks]
        assert len(marks) == sum(len(line.points) for line in view.lines)
        assert len(chart.y_ticks) <= 10
        for mark in marks:
            assert 0 <= mark.x <= WIDTH
            assert all(-1 <= y <= HEIGHT for y in (mark.y, *mark.band))
    for matrix in matrices(drawn):
        picture = heat_map(matrix)
        assert len(picture.cells) == len(matrix.cells)
        for cell in picture.cells:
            assert 0 <= cell.shade <= 1
            assert cell.x + picture.side <= WIDTH
            assert cell.y + picture.side <= picture.height
