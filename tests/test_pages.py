"""Pages made from data are as the data make them; a page that is not is found, and written anew."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from smoke_tests.records import Result, read
from tdstack.pages import doctor, figures, performance, stale, troubleshooting
from tdstack.pages.__main__ import main
from tdstack.pages.performance import Reach, ratio, reach_table, the
from tdstack.pages.places import fill
from tdstack.troubleshooting import sections
from tdstack.verify import symptoms
from tests.conftest import ROOT

PLOT = f"{figures.FOLDER}/{figures.FIGURES[0].file}"
MADE = (troubleshooting.PAGE, doctor.PAGE, performance.PAGE, PLOT)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a root with a copy of docs/."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def test_the_pages_are_as_their_data_make_them() -> None:
    """After a wanted change: invoke lint --fix."""
    assert list(stale(ROOT)) == []


@pytest.mark.parametrize(
    ("page", "old"),
    list(zip(MADE, ("NVLinks", "NVLinks", "| 2048 | 16 |", "over best"), strict=True)),
)
def test_a_page_that_was_edited_by_hand_is_stale(page: str, old: str, copied: Path) -> None:
    path = copied / page
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, "links", 1))
    assert list(stale(copied)) == [page]


@pytest.mark.parametrize("page", [troubleshooting.PAGE, PLOT])
def test_a_page_that_is_missing_is_stale(page: str, copied: Path) -> None:
    (copied / page).unlink()
    assert list(stale(copied)) == [page]


def test_a_page_without_a_place_for_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"docs/doctor.md has no place for the table: .*checks"):
        fill("# invoke doctor\n", doctor.PAGE, doctor.tables())


def test_a_changed_row_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = sections()
    changed = symptoms.Section(first.title, first.asked, first.rows[1:])
    monkeypatch.setattr(troubleshooting, "sections", lambda: (changed, *others))
    assert list(stale(ROOT)) == [troubleshooting.PAGE]


def test_the_linter_says_which_page_is_stale(
    capsys: pytest.CaptureFixture[str], copied: Path
) -> None:
    (copied / troubleshooting.PAGE).write_text("old\n")
    shutil.rmtree(copied / figures.FOLDER)
    assert main(["--check"], copied) == 1
    said = capsys.readouterr().err
    assert f"{troubleshooting.PAGE} is stale" in said
    assert f"{PLOT} is stale" in said
    assert main([], copied) == 0
    assert main(["--check"], copied) == 0


# ------------------------------------------------------------------------------- what is measured


def test_another_run_on_a_gpu_makes_its_tables_and_plots_stale(copied: Path) -> None:
    path = copied / performance.FOUR
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "measure" and row["name"] == "fused/serial":
            row["value"] *= 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [f"{figures.FOLDER}/{one.file}" for one in figures.FIGURES if "four" in one.file]
    assert set(stale(copied)) == {performance.PAGE, *names}


@pytest.fixture
def virtual() -> Result:
    return read(ROOT / performance.VIRTUAL)


def test_a_ratio_is_a_quotient_of_two_times_of_the_run(virtual: Result) -> None:
    fused = the(virtual, "call", way="fused", w=8, k=1024, m=16)
    serial = the(virtual, "call", way=performance.SUM, w=8, k=1024, m=16)
    found = ratio(virtual, Reach(8, 1024, (16,), "cublas+sum kernel", 1.0), 16)
    assert found == pytest.approx(fused / serial, rel=1e-3)
    copied = 8 * 1024 * 8192 * 2 / the(virtual, "copy bandwidth", w=8) / 1e3
    assert ratio(virtual, Reach(8, 1024, (16,), "copy", 1.0), 16) == pytest.approx(copied / fused)


@pytest.mark.parametrize(("bound", "holds"), [(1.02, "no"), (1.05, "yes")])
def test_a_ratio_is_reached_when_every_call_is(virtual: Result, bound: float, holds: str) -> None:
    """At W 1, K 3696 the calls of up to 16 tokens take at most 1.04 of the time of cuBLAS."""
    row = reach_table(virtual, [Reach(1, 3696, (1, 8, 16), "cublas", bound)]).splitlines()[-1]
    assert row.endswith(f"| {holds} |")
    assert row.count("(M ") == 3


def test_more_is_better_where_weights_are_read_at_the_rate_of_a_copy(virtual: Result) -> None:
    for bound, holds in ((0.1, "yes"), (0.99, "no")):
        row = reach_table(virtual, [Reach(8, 3696, (16,), "copy", bound)]).splitlines()[-1]
        assert row.endswith(f"| {holds} |")


def test_a_measure_that_is_not_there_is_named(virtual: Result) -> None:
    with pytest.raises(ValueError, match=r"0 measures 'call' with .*'m': 3"):
        the(virtual, "call", way="fused", w=8, k=1024, m=3)


@pytest.mark.parametrize("figure", figures.FIGURES, ids=lambda figure: figure.file)
def test_a_plot_is_a_picture_of_its_own(figure: figures.Figure) -> None:
    text = figures.draw(figure, read(ROOT / figure.data))
    picture = ElementTree.fromstring(text)
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert len(picture.findall(".//*[@class='axis']")) > 2
    assert f"]({figure_path(figure)})" in (ROOT / performance.PAGE).read_text()


def figure_path(figure: figures.Figure) -> str:
    return f"{Path(figures.FOLDER).name}/{figure.file}"
