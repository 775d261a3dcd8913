"""The pages in a real browser: what is in the data is on the page, and nothing overflows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.records import Result, parse
from tdstack.smoke.html import run_page
from tdstack.smoke.merge import merge, merged_page
from tdstack.smoke.text import clean
from tdstack.smoke.views import lines_over_m, matrices
from tests.browser import Page, browser, find_browser
from tests.synthetic_runs import CLUSTER, DATA, FULL, text_of
from tests.test_smoke_reports import evil_result

WIDTHS = (1280, 390)
PAGES = ("full", "slow", "hung", "evil", "cluster")
# Whatever sticks out at the right, also where a parent hides or scrolls it.
OVERFLOW = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  const hidden = e.closest('thead') && getComputedStyle(e.closest('thead')).clipPath !== 'none';
  return !hidden && box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.tagName + '.' + e.getAttribute('class')).concat(
  document.documentElement.scrollWidth > innerWidth ? ['the page'] : [])"""
# Text of a picture that is cut off by its frame, or that lies on other text.
PICTURE_FAULTS = """[...document.querySelectorAll('svg.plot')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')]
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  const out = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1
    || b.top < frame.top - 1 || b.bottom > frame.bottom + 1);
  const on = boxes.filter(([, a], i) => boxes.some(([, b], j) => j > i
    && a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 3 && b.top < a.bottom - 3));
  return [...out, ...on].map(([text]) => text);
})"""
# WCAG's contrast of every text against what is painted behind it.
CONTRAST = """(() => {
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } };
  return [...document.querySelectorAll('main *:not(svg *)')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).filter(e => {
      const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
      return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
    }).map(e => e.textContent);
})()"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_browser()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this host; `scripts/bootstrap.sh test` installs it")
        pytest.skip("no Chromium on this host")
    with browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    texts = {name: run_page(result) for name, result in _results().items()}
    texts["cluster"] = merged_page(merge([DATA / "cluster"]))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


def _results() -> dict[str, Result]:
    runs = {node.fault: parse(text_of(node)) for node in CLUSTER}
    slow, hung = runs["slow link"], runs["hung"]
    return {"full": parse(text_of(FULL)), "slow": slow, "hung": hung, "evil": evil_result()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_and_the_console_is_silent(
    page: Page, pages: Path, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page.problems.clear()
    page.open(pages / f"{name}.html", width, dark)
    page.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.value("innerWidth") == width
    assert page.value(OVERFLOW) == []
    assert page.value(PICTURE_FAULTS) == []
    assert page.value(CONTRAST) == []
    assert page.problems == []
    picture = tmp_path / "page.png"
    page.screenshot(picture)
    # A blank page of this size packs into a few thousand bytes.
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def _texts(page: Page, selector: str) -> list[str]:
    text = "e.cells ? [...e.cells].map(c => c.textContent).join('\\n') : e.textContent"
    texts = page.value(f"[...document.querySelectorAll({selector!r})].map(e => {text})")
    assert isinstance(texts, list)
    return [str(text) for text in texts]


@pytest.mark.parametrize("name", ["full", "slow", "hung", "evil"])
def test_every_check_and_number_of_the_data_is_on_the_page(
    page: Page, pages: Path, name: str
) -> None:
    result = _results()[name]
    page.open(pages / f"{name}.html", 1280)
    shown = [text.split() for text in _texts(page, ".checks tbody tr")]
    assert len(shown) == len(result.checks)
    for check in result.checks:
        row = next(
            words for words in shown if words[: len(_words(check.name))] == _words(check.name)
        )
        assert check.outcome in row
        assert f"{check.seconds:.2f}" in row
    marks = "\n".join(_texts(page, ".mark title"))
    pairs = _texts(page, ".pair title")
    for plot in lines_over_m(result.measures):
        for line in plot.lines:
            for point in line.points:
                text = f"{line.label}, M {point.labels['m']}: {point.value:.4g} {point.unit}"
                assert " ".join(_words(text)) in " ".join(_words(marks))
    for matrix in matrices(result.measures):
        for (source, target), cell in matrix.cells.items():
            text = f"{source} to {target}: {cell.value:.4g} {cell.unit}"
            assert any(" ".join(_words(text)) in " ".join(_words(pair)) for pair in pairs)
    body = _words(str(page.value("document.body.textContent")))
    for words in (result.run.host, *(skip.reason for skip in result.skips)):
        assert " ".join(_words(words)) in " ".join(body)


def _words(text: str) -> list[str]:
    return clean(text).split()


def _count(page: Page, selector: str) -> Any:
    return page.value(f"document.querySelectorAll({selector!r}).length")


def test_plots_are_drawn_named_and_more_than_colours(page: Page, pages: Path) -> None:
    result = _results()["full"]
    page.open(pages / "full.html", 1280)
    plots = len(lines_over_m(result.measures)) + len(matrices(result.measures))
    assert _count(page, "svg.plot[role=img] > title:first-child") == plots
    assert _count(page, "svg.plot > desc") == plots
    sizes = page.value(
        "[...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) > 100
    lines = "[...document.querySelector('svg.plot').querySelectorAll('path.line')]"
    dashes = page.value(f"{lines}.map(e => getComputedStyle(e).strokeDasharray)")
    colours = page.value(f"{lines}.map(e => getComputedStyle(e).stroke)")
    assert len(set(dashes)) == len(set(colours)) == 3
    drawn = page.value(f"{lines}.map(e => e.getTotalLength())")
    assert min(drawn) > 300
    assert len(set(_texts(page, "figcaption"))) == plots


def test_a_larger_number_stands_higher_and_further_right_is_more(page: Page, pages: Path) -> None:
    page.open(pages / "full.html", 1280)
    places = page.value(
        "[...document.querySelector('svg.plot').querySelectorAll('.mark')].map(e => {"
        "const box = e.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]})"
    )
    plot = lines_over_m(_results()["full"].measures)[0]
    points = [point for line in plot.lines for point in line.points]
    assert len(places) == len(points) == 36
    for (x, y), point in zip(places, points, strict=True):
        for (other_x, other_y), other in zip(places, points, strict=True):
            if point.value > other.value + 0.05:
                assert y < other_y
            if point.labels["m"] > other.labels["m"]:  # type: ignore[operator]
                assert x > other_x


def test_faults_are_marked_by_more_than_a_colour(page: Page, pages: Path) -> None:
    page.open(pages / "slow.html", 1280)
    assert _count(page, "svg .slow") == 1
    assert [text for text in _texts(page, ".pair text") if text.endswith("!")] == ["38!"]
    assert "p2p bandwidth" in _texts(page, "#outside + table tbody tr")[0]
    page.open(pages / "hung.html", 1280)
    article = _texts(page, "article")[0]
    for words in ("hung", "rank 2 did not answer in time", "wait for the peers' flags", "epoch"):
        assert words in article
    assert "failed" in _texts(page, "#verdict")[0]


def test_the_cluster_shows_problems_then_outliers_then_all(page: Page, pages: Path) -> None:
    page.open(pages / "cluster.html", 1280)
    ids = page.value("[...document.querySelectorAll('h2')].map(e => e.id)")
    assert ids == ["problems", "outliers", "mixed", "nodes"]
    assert _texts(page, "article h3")[0].startswith("synthetic-04")
    first = _texts(page, "#outliers + table tbody tr")[0]
    assert "synthetic-02" in first
    assert "-89" in first
    assert _count(page, "#nodes + table tbody tr") == len(CLUSTER)


def test_it_prints_dark_on_white(page: Page, pages: Path) -> None:
    page.open(pages / "hung.html", 1280, dark=True)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert page.pdf().startswith(b"%PDF")
    page.print_media()
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value(CONTRAST) == []
