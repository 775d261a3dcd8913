"""What is made of records: verdict, JUnit, merged and compared runs, of the synthetic cluster."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from smoke_tests.records import (
    Check,
    Evidence,
    Measure,
    RankState,
    Result,
    Run,
    Skip,
    Verdict,
    parse,
)
from tdstack.errors import HostError, IntegrityError, UsageError
from tdstack.smoke.compare import compare, say_comparison
from tdstack.smoke.html import run_page
from tdstack.smoke.junit import junit
from tdstack.smoke.merge import Merged, merge, merged_page, put_together, say_merged
from tdstack.smoke.report import read_run, write_reports
from tdstack.smoke.statistics import find_odd
from tdstack.smoke.summary import summarize
from tdstack.smoke.views import lines_over_m, matrices
from tests.synthetic_runs import CLUSTER, DATA, FULL, HUNG_CHECK, SLOW_LINK, files, text_of

# Recorded runs that did not pass: in three a check was wrong, and was mended after them; two were
# ended by a limit on their time, and hold what ran until then.
ENDED = {
    "smoke-gpu-h100-1": "failed",
    "smoke-gpu-h100-2": "failed",
    "smoke-multi-gpu-4xh100-1": "failed",
    "smoke-self-test-h100-2": "cut off",
    "smoke-self-test-2xh100": "cut off",
}
RESULTS = {node.fault or node.host: parse(text_of(node)) for node in (*CLUSTER, FULL)}
GOOD = RESULTS["synthetic-00"]
EVIL = "<script>alert('x')</script> & \x1b[31m\x00 ]]>"


def _merged() -> Merged:
    return merge([DATA / "cluster"])


def test_the_stored_runs_are_those_of_the_script_and_say_that_they_are_synthetic() -> None:
    for path, text in files().items():
        assert path.read_text(encoding="utf-8") == text, f"python -m tests.synthetic_runs: {path}"
    assert all(result.run.synthetic for result in RESULTS.values())


# The verdict of one run


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ("synthetic-00", "passed"),
        ("slow link", "failed"),
        ("below band", "failed"),
        ("cut off", "cut off"),
        ("hung", "failed"),
        ("no GPUs", "passed"),
    ],
)
def test_a_run_has_a_state(fault: str, state: str) -> None:
    assert summarize(RESULTS[fault]).state == state


def test_a_skipped_tier_is_never_a_passed_one() -> None:
    rows = {row.tier: row for row in summarize(RESULTS["no GPUs"]).tiers}
    assert rows["gpu"].state == "skipped"
    assert rows["gpu"].reason == "torch 2.11.0+cu130 sees no GPU"
    assert rows["cpu"].state == "passed"
    assert rows["cpu"].passed == 4


def test_a_verdict_does_not_hide_what_the_records_say() -> None:
    check = Check("cpu", "cpu-w2-demo", "failed", 1.0)
    lying = Result(GOOD.run, checks=(check,), verdict=Verdict(0, {"cpu": "passed"}, {}))
    assert summarize(lying).state == "failed"
    assert summarize(lying).tiers[0].state == "failed"
    assert summarize(Result(GOOD.run, verdict=Verdict(0, {}, {}))).state == "failed"


def test_tiers_of_a_run_that_was_cut_off_are_unfinished() -> None:
    summary = summarize(RESULTS["cut off"])
    assert "cut off after nvshmem-w8-integers_are_exact" in summary.headline
    assert {row.state for row in summary.tiers} == {"unfinished", "skipped"}


# JUnit


def _suites(result: Result) -> dict[str, ET.Element]:
    return {suite.attrib["name"]: suite for suite in ET.fromstring(junit(result))}


def test_junit_has_a_suite_per_tier() -> None:
    suites = _suites(GOOD)
    assert list(suites) == ["import", "compile", "cpu", "gpu", "multi-gpu", "multi-node"]
    assert suites["cpu"].attrib["tests"] == "4"
    skipped = suites["multi-node"].find("testcase/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "one node: no rendezvous was given"
    assert ET.fromstring(junit(GOOD)).attrib["failures"] == "0"
    assert ET.fromstring(junit(GOOD)).attrib["skipped"] == "1"


def test_junit_tells_failures_from_errors() -> None:
    suite = _suites(RESULTS["hung"])["multi-gpu"]
    assert (suite.attrib["errors"], suite.attrib["failures"]) == ("1", "0")
    error = suite.find("testcase/error")
    assert error is not None
    assert error.attrib["type"] == "hung"
    assert 'rank 2 hung at "wait for the peers\' flags": no answer within 120 s' in str(error.text)
    suite = _suites(RESULTS["slow link"])["multi-gpu"]
    assert (suite.attrib["errors"], suite.attrib["failures"]) == ("0", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert "38 GB/s, must be at least 250" in failure.attrib["message"]


@pytest.mark.parametrize(
    "result", [RESULTS["cut off"], Result(GOOD.run, verdict=Verdict(3, {}, {}))]
)
def test_junit_of_a_run_that_failed_otherwise_has_an_error(result: Result) -> None:
    assert _suites(result)["run"].attrib["errors"] == "1"
    assert ET.fromstring(junit(result)).attrib["errors"] == "1"


def evil_result() -> Result:
    """Return a run whose every text is markup, controls and quotes."""
    check = Check("cpu", EVIL, "failed", 1.0, EVIL, (RankState(0, "died", EVIL, EVIL),))
    return Result(
        Run(EVIL, EVIL, {EVIL: EVIL, "devices": [EVIL]}),
        (Skip("gpu", EVIL),),
        (check, Check("cpu", "b", "passed", 1.0, EVIL)),
        (
            Measure("cpu", EVIL, 1.0, "ratio", {"m": 1, "w": EVIL}, (2.0, None)),
            Measure("cpu", EVIL, 1.0, EVIL, {"src": 0, "dst": 1, "x": EVIL}),
            Measure("cpu", EVIL, 1.0, EVIL, {EVIL: EVIL}),
        ),
        (Evidence(EVIL, 0, EVIL, {EVIL: EVIL}, {EVIL: EVIL}, EVIL),),
        Verdict(1, {"cpu": "failed"}, {}),
    )


def test_what_a_check_said_cannot_break_a_report() -> None:
    assert "\x1b" not in junit(evil_result())
    assert _suites(evil_result())["cpu"].attrib["failures"] == "2"
    for page in (run_page(evil_result()), merged_page(put_together([(Path(EVIL), evil_result())]))):
        assert "<script" not in page
        assert "&lt;script&gt;" in page


def test_a_page_loads_nothing() -> None:
    page = run_page(RESULTS["hung"])
    for word in ("http:", "https:", "src=", "url(", "@import", "<script", "<link"):
        assert word not in page.replace("src=3 dst=5", "")


def test_reports_are_written_beside_each_other(tmp_path: Path) -> None:
    reports = write_reports(DATA / "eight-gpus.jsonl", tmp_path / "new" / "folder")
    assert reports.page.read_text().startswith("<!doctype html>")
    assert ET.parse(reports.junit).getroot().tag == "testsuites"
    assert len(list(reports.page.parent.iterdir())) == 2


def test_a_damaged_file_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text_of(FULL).replace('"kind": "skip"', '"kind": "ship"'))
    with pytest.raises(IntegrityError) as caught:
        write_reports(path, tmp_path / "out")
    assert "line 2" in caught.value.where
    assert "unknown kind 'ship'" in caught.value.got
    assert not (tmp_path / "out").exists()
    with pytest.raises(HostError, match="no such file"):
        read_run(tmp_path / "other.jsonl")


# Views


def test_speed_ups_have_a_plot_per_layer_and_a_line_per_world_size() -> None:
    plots = lines_over_m(RESULTS["synthetic-node"].measures)
    ratios = [plot for plot in plots if plot.unit == "ratio"]
    assert plots[: len(ratios)] == ratios
    assert ["o_proj" in ratios[0].labels, "down_proj" in ratios[1].labels] == [True, True]
    labels = [line.label.replace("\u00a0", " ") for line in ratios[0].lines]
    assert labels == ["W 2, K 4096", "W 4, K 2048", "W 8, K 1024"]
    assert [point.labels["m"] for point in ratios[0].lines[0].points][:3] == [1, 8, 16]


def test_times_have_a_line_per_way() -> None:
    plot = next(p for p in lines_over_m(RESULTS["synthetic-node"].measures) if p.unit == "us")
    assert [line.label for line in plot.lines] == ["fused", "cublas+nccl"]


def test_the_slow_pair_of_a_matrix_is_named() -> None:
    assert [matrix.slow for matrix in matrices(RESULTS["slow link"].measures)] == [(SLOW_LINK,)]
    assert [matrix.slow for matrix in matrices(GOOD.measures)] == [()]


# Outliers


def test_one_of_many_is_odd_and_says_by_how_much() -> None:
    values = {n: 100.0 + n / 10 for n in range(8)} | {8: 60.0}
    (odd,) = find_odd(values)
    assert odd.key == 8
    assert odd.median == pytest.approx(100.3)
    assert odd.mad == pytest.approx(0.2)
    assert odd.z == pytest.approx(-40.3 / 1.003)


@pytest.mark.parametrize(
    "values",
    [
        [100.0, 100.0, 60.0],  # too few
        [100.0, 100.0, 100.0, 100.0, 104.9],  # too close, however alike the others are
        [0.0, 0.0, 0.0, 0.0, 5.0],  # no share of nothing
        [80.0, 90.0, 100.0, 110.0, 120.0],  # they waver
    ],
)
def test_nothing_is_odd(values: list[float]) -> None:
    assert find_odd(dict(enumerate(values))) == []


def test_ordinary_noise_makes_few_outliers_and_none_that_is_far() -> None:
    chance = random.Random(1)
    drawn = [find_odd({n: chance.gauss(100, 3) for n in range(16)}) for _ in range(500)]
    odd = [row for rows in drawn for row in rows]
    assert len(odd) < 0.01 * 500 * 16
    assert not any(row.far for row in odd)


def test_a_number_is_far_by_both_measures() -> None:
    def far(value: float) -> list[bool]:
        return [row.far for row in find_odd({0: 100, 1: 100, 2: 100, 3: 100, 4: value})]

    assert [far(89.0), far(92.0), far(96.0)] == [[True], [False], []]


# Merge


def test_nodes_with_problems_come_first() -> None:
    merged = _merged()
    assert [(node.name[-2:], node.state) for node in merged.nodes] == [
        ("04", "cut off"),
        ("02", "failed"),
        ("03", "failed"),
        ("05", "failed"),
        ("07", "lacks a tier"),
        ("00", "passed"),
        ("01", "passed"),
        ("06", "passed"),
        ("08", "passed"),
    ]
    assert not merged.ok
    assert "9 nodes: 1 cut off; 3 failed; 1 lacks a tier; 4 passed" in merged.headline


def test_problems_are_told_with_rank_number_and_reason() -> None:
    problems = {node.name[-2:]: "\n".join(node.problems) for node in _merged().nodes}
    assert "p2p bandwidth src=3 dst=5: 38 GB/s, must be at least 250" in problems["02"]
    assert "must be at least 1.2" in problems["03"]
    assert f'{HUNG_CHECK} hung: rank 2 hung at "wait for the peers\' flags"' in problems["05"]
    assert "tier gpu did not run" in problems["07"]
    assert "sees no GPU" in problems["07"]
    assert problems["00"] == ""


def test_outliers_are_the_slow_link_and_the_slow_node_only() -> None:
    outliers = _merged().outliers
    assert {outlier.node[-2:] for outlier in outliers} == {"02", "03"}
    first = outliers[0]
    assert (first.measure.labels["src"], first.measure.labels["dst"]) == SLOW_LINK
    assert first.verdict == "slow"
    assert first.share == pytest.approx(-0.9, abs=0.01)
    assert first.nodes == 7
    assert [o for o in outliers if o.node.endswith("02")] == [first]
    slow = [outlier.measure for outlier in outliers if outlier.node.endswith("03")]
    assert {m.labels.get("way") for m in slow if m.name == "call"} == {"fused"}
    assert len(slow) == 16


def test_a_node_that_is_faster_is_no_problem_a_slow_one_is() -> None:
    runs = [(Path(str(n)), _with(f"n{n}", 100.0 + n)) for n in range(6)]
    merged = put_together([*runs, (Path("fast"), _with("fast", 150.0))])
    assert [(o.node, o.verdict) for o in merged.outliers] == [("fast", "better")]
    assert merged.ok
    merged = put_together([*runs, (Path("slow"), _with("slow", 50.0))])
    assert [(o.node, o.verdict) for o in merged.outliers] == [("slow", "slow")]
    assert not merged.ok


def _with(host: str, bandwidth: float) -> Result:
    run = Run(host, "host", {"driver": "580", "nvshmem": "3.4.5"})
    measure = Measure("gpu", "copy bandwidth", bandwidth, "GB/s")
    return Result(run, measures=(measure,), verdict=Verdict(0, {"gpu": "passed"}, {}))


def test_the_names_of_nodes_are_no_mixture() -> None:
    runs = [
        (Path(host), Result(Run(host, "host", {"nodes": [host], "driver": driver})))
        for host, driver in (("a", "580"), ("b", "570"))
    ]
    assert [row.name for row in put_together(runs).mixed] == ["driver"]


def test_mixed_versions_are_called_out_the_rarest_last() -> None:
    mixed = {row.name: row.values for row in _merged().mixed}
    assert list(mixed) == ["devices", "driver"]
    assert mixed["driver"][-1] == ("570.86.15", ("synthetic-06",))
    assert "mixed: devices, driver" in _merged().headline


def test_what_cannot_be_read_is_a_node_with_that_problem(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "broken.jsonl").write_text("{}\n")
    (tmp_path / "good.jsonl").write_text(text_of(CLUSTER[0]))
    merged = merge([tmp_path])
    assert [(node.name, node.state) for node in merged.nodes] == [
        ("broken", "unreadable"),
        ("empty", "unreadable"),
        ("synthetic-00", "passed"),
    ]
    assert "line 1: unknown kind" in merged.nodes[0].problems[0]
    assert "2 unreadable" in merged.headline
    assert not merged.ok


def test_a_run_is_counted_once_and_two_runs_of_a_host_are_told_apart(tmp_path: Path) -> None:
    text = text_of(CLUSTER[0])
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl").write_text(text)
    (tmp_path / "c.jsonl").write_text(text.replace(GOOD.run.id, "another"))
    merged = merge([tmp_path, tmp_path / "a.jsonl"])
    assert len(merged.nodes) == 2
    assert {node.name for node in merged.nodes} == {
        f"synthetic-00 ({tmp_path / 'a.jsonl'})",
        f"synthetic-00 ({tmp_path / 'c.jsonl'})",
    }
    assert len(merged.notes) == 1


def test_a_merge_of_nothing_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files of records"):
        merge([tmp_path])
    with pytest.raises(UsageError, match="no such file"):
        merge([tmp_path / "missing"])


def test_a_merge_is_data_tables_and_a_page() -> None:
    merged = _merged()
    data = json.loads(json.dumps(merged.as_dict(), allow_nan=False))
    assert data["ok"] is False
    assert data["synthetic"] is True
    assert data["nodes"][0]["state"] == "cut off"
    assert data["outliers"][0]["labels"] == {"src": 3, "dst": 5}
    assert data["mixed"]["driver"]["570.86.15"] == ["synthetic-06"]
    titles = [title for title, _, _ in say_merged(merged)]
    assert titles == [merged.headline, "Outliers (17 of 17)", "Mixed"]
    page = merged_page(merged)
    assert "Synthetic data" in page
    assert all(node.name in page for node in merged.nodes)


# Compare


def _changed(factor: float, name: str = "copy bandwidth", only_m: int = 0) -> Result:
    """Return the good run with the measures of a name, or of one M, times a factor."""
    measures = tuple(
        dataclasses.replace(m, value=m.value * factor, band=None)
        if m.name == name and (not only_m or m.labels["m"] == only_m)
        else dataclasses.replace(m, band=None)
        for m in GOOD.measures
    )
    return dataclasses.replace(GOOD, measures=measures)


SAME = _changed(1.0)


def test_two_good_nodes_are_alike() -> None:
    found = compare(GOOD, RESULTS["synthetic-01"])
    assert not found.worse
    assert found.checks == ()
    assert [m for m in found.measures if m.beyond_noise] == []
    assert found.medians["p2p bandwidth", "GB/s"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("factor", "name", "worse"),
    [
        (0.94, "copy bandwidth", True),
        (0.96, "copy bandwidth", False),
        (1.2, "copy bandwidth", False),
        (1.2, "call", True),
        (0.8, "call", False),
        (0.9, "fused/serial", True),
    ],
)
def test_a_change_for_the_worse_beyond_the_noise_counts(
    factor: float, name: str, worse: bool
) -> None:
    assert compare(SAME, _changed(factor, name)).worse is worse


def test_where_every_shape_wavers_one_more_is_noise_but_a_large_one_is_not() -> None:
    chance = random.Random(3)
    wavering = dataclasses.replace(
        SAME,
        measures=tuple(
            dataclasses.replace(m, value=m.value * chance.choice((0.92, 0.97, 1.03, 1.08)))
            if m.name == "p2p bandwidth"
            else m
            for m in SAME.measures
        ),
    )
    found = compare(SAME, wavering)
    assert {m.noise for m in found.measures if m.after.name == "p2p bandwidth"} == {0.15}
    assert not found.worse
    assert compare(SAME, RESULTS["slow link"]).worse


def test_half_the_links_at_half_their_speed_are_not_noise() -> None:
    halved = dataclasses.replace(
        SAME,
        measures=tuple(
            dataclasses.replace(m, value=m.value / 2)
            if m.labels.get("src", 9) in (0, 1, 2, 3)
            else m
            for m in SAME.measures
        ),
    )
    found = compare(SAME, halved)
    assert sum(m.worse for m in found.measures) == 28


def test_checks_that_changed_are_named_the_worse_first() -> None:
    found = compare(GOOD, RESULTS["hung"])
    assert [(c.name, c.before, c.after, c.worse) for c in found.checks] == [
        (HUNG_CHECK, "passed", "hung", True)
    ]
    assert found.worse
    back = compare(RESULTS["hung"], GOOD)
    assert [c.worse for c in back.checks] == [False]
    assert not back.worse


def test_what_no_longer_runs_has_not_passed() -> None:
    found = compare(GOOD, RESULTS["no GPUs"])
    assert found.worse
    assert all(c.after == "did not run" and c.worse for c in found.checks)
    assert len(found.only[0]) == len(GOOD.measures)
    assert compare(GOOD, RESULTS["cut off"]).worse
    assert not compare(RESULTS["no GPUs"], GOOD).worse


def test_a_measure_that_left_its_band_is_worse() -> None:
    low = [dataclasses.replace(m, band=(m.value * 0.999, None)) for m in SAME.measures]
    before = dataclasses.replace(SAME, measures=tuple(low))
    after = tuple(dataclasses.replace(m, value=m.value * 0.998) for m in low)
    found = compare(before, dataclasses.replace(SAME, measures=after))
    assert [m for m in found.measures if m.beyond_noise] == []
    assert all(m.worse for m in found.measures)
    assert found.worse


def test_differences_of_environment_are_listed() -> None:
    found = compare(GOOD, RESULTS["old driver"])
    assert [(d.name, d.before, d.after) for d in found.environment] == [
        ("driver", "580.95.05", "570.86.15")
    ]
    assert not found.worse


def test_a_comparison_is_data_and_tables() -> None:
    found = compare(GOOD, RESULTS["below band"])
    data = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert data["worse"] is True
    assert data["measures"][0]["worse"] is True
    tables = {title: rows for title, _, rows in say_comparison(found)}
    assert "Measures that moved beyond the noise (16)" in tables
    zero = [Measure("gpu", "x", value, "GB/s") for value in (0.0, 1.0)]
    runs = [dataclasses.replace(GOOD, measures=(measure,)) for measure in zero]
    assert compare(*runs).as_dict()["measures"][0]["ratio"] is None
    assert compare(*reversed(runs)).worse


# The verb


def _invoke(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", "smoke", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_verb_merges(root: Path, tmp_path: Path) -> None:
    done = _invoke(root, "--merge", str(DATA / "cluster"), "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error["details"]["outliers"][0]["node"] == "synthetic-02"
    assert error["where"].startswith("synthetic-04, synthetic-02")
    assert "p2p bandwidth src=3 dst=5" in done.stderr
    assert "Outliers" in (tmp_path / "out" / "index.html").read_text()
    good = [f"--merge={DATA / 'cluster' / f'synthetic-{n}.jsonl'}" for n in ("00", "01", "08")]
    done = _invoke(root, *good, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


def test_the_verb_compares(root: Path, tmp_path: Path) -> None:
    files = [DATA / "cluster" / f"synthetic-{n}.jsonl" for n in ("00", "03")]
    (tmp_path / "run.jsonl").write_bytes(files[0].read_bytes())
    done = _invoke(root, "--compare", str(tmp_path), "--compare", str(files[1]), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["details"]["worse"] is True
    assert "B is worse than A" in done.stderr
    done = _invoke(root, "--compare", str(files[1]), "--compare", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "B is not worse than A" in done.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--compare", "a"), 2),
        (("--compare", "a", "--compare", "b"), 3),
        (("--merge", "nothing-here"), 2),
        (("--merge", "tests", "--compare", "tests"), 2),
    ],
)
def test_what_cannot_be_looked_at_is_an_error(
    root: Path, words: tuple[str, ...], code: int
) -> None:
    done = _invoke(root, *words)
    assert done.returncode == code, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "file", sorted(DATA.parents[2].glob("docs/data/smoke-*.jsonl")), ids=lambda f: f.stem
)
def test_recorded_runs_can_be_read_and_shown(file: Path) -> None:
    result = read_run(file)
    assert not result.run.synthetic
    assert summarize(result).state == ENDED.get(file.stem, "passed")
    assert result.checks[-1].name in run_page(result)
