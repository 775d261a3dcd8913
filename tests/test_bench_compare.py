"""`invoke bench --compare`, on recorded runs and on copies of them that were made slower."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.records import Measure, Record, dump, read
from tdstack.bench_compare import compare, compare_files, rows
from tdstack.errors import IntegrityError, UsageError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data"
LINKED = DATA / "measure-2xh100.jsonl"
VIRTUAL = DATA / "measure-virtual-h100.jsonl"


def changed(source: Path, to: Path, change: Callable[[Measure], Measure | None]) -> Path:
    """Write a copy with other measures; None leaves one out."""
    records: list[Record] = []
    for record in read(source).records():
        kept = change(record) if isinstance(record, Measure) else record
        records += [kept] if kept else []
    to.write_text("".join(dump(record) + "\n" for record in records))
    return to


def slower(share: float, **labels: Any) -> Callable[[Measure], Measure]:
    """Make ratios of some calls smaller."""

    def change(measure: Measure) -> Measure:
        hit = measure.name == "fused/serial" and labels.items() <= measure.labels.items()
        return dataclasses.replace(measure, value=measure.value * (1 - share)) if hit else measure

    return change


@pytest.mark.parametrize("file", [LINKED, VIRTUAL], ids=lambda f: f.stem)
def test_a_run_is_no_worse_than_itself(file: Path) -> None:
    run = read(file)
    found = compare(run, run)
    recorded = [m for m in run.measures if m.name == "fused/serial"]
    several = {c.case for c in found.changes if c.baseline == "best"}
    baselines = [m for m in recorded if m.labels["baseline"] != "best"]
    assert len(found.changes) == len(baselines) + len(several)
    assert not found.worse
    assert not found.only_before
    assert not found.only_after
    # The best of both runs is what the run itself calls best.
    best = {(m.labels["w"], m.labels["n"], m.labels["k"], m.labels["m"]): m.value for m in recorded}
    for change in found.changes:
        if change.baseline == "best":
            _, w, _, n, k, m = change.case
            assert change.before == best[w, n, k, m]


def test_the_limit_is_five_percent_of_each_ratio(tmp_path: Path) -> None:
    for share, worse in ((0.049, 0), (0.051, 1)):
        copy = changed(
            VIRTUAL,
            tmp_path / str(share),
            slower(share, w=8, m=16, k=1024, baseline="cublas+own all-reduce"),
        )
        found = compare(read(VIRTUAL), read(copy))
        assert len(found.worse) == worse
    (change,) = found.worse
    assert change.case == ("virtual", 8, "", 8192, 1024, 16)
    assert change.change == pytest.approx(-0.051)
    assert rows(found)[0][-1] == "-5.1 %  worse"
    # The other way round it is a gain, and no fault.
    assert not compare(read(copy), read(VIRTUAL)).worse


def test_a_baseline_that_one_run_lacks_decides_nothing(tmp_path: Path) -> None:
    """Else a new, faster baseline would look like a loss of the fused kernels."""
    nccl = "cublas+nccl"

    def only_nccl(measure: Measure) -> Measure | None:
        other = measure.name == "fused/serial" and measure.labels["baseline"] != nccl
        return None if other else measure

    before = changed(LINKED, tmp_path / "before", only_nccl)
    found = compare(read(before), read(LINKED))
    assert {change.baseline for change in found.changes} == {nccl}
    assert not found.worse
    assert not found.only_after


def test_calls_and_devices_that_differ_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = changed(LINKED, tmp_path / "fewer", lambda m: None if m.labels.get("m") == 64 else m)
    text = fewer.read_text().replace("NVIDIA H100 80GB HBM3", "NVIDIA H20")
    fewer.write_text(text)
    found = compare_files([str(LINKED), str(fewer)])
    assert {case["m"] for case in found["only_before"]} == {64}
    assert not found["only_after"]
    words = capsys.readouterr().err
    assert "only in the first file: 2 calls, as 2 processes over nvshmem, M 64 N 8192 K" in words
    assert "the devices differ: 2 x NVIDIA H100 80GB HBM3, then 2 x NVIDIA H20" in words


def test_what_is_no_pair_of_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two files"):
        compare_files([str(LINKED)])
    with pytest.raises(UsageError, match="no call is in both files"):
        compare_files([str(LINKED), str(VIRTUAL)])
    (tmp_path / "damaged").write_text(LINKED.read_text() + "{}\n")
    with pytest.raises(IntegrityError, match="record of a run"):
        compare_files([str(LINKED), str(tmp_path / "damaged")])


def _verb(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "invoke", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_verb_ends_with_1_and_one_document(tmp_path: Path) -> None:
    copy = changed(LINKED, tmp_path / "slower", slower(0.3, m=16))
    done = _verb("--compare", str(LINKED), "--compare", str(copy), "--json")
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)["details"]
    assert {change["case"]["m"] for change in data["worse"]} == {16}
    assert {change["change"] for change in data["worse"]} == {-0.3}
    ratios = [m for m in read(LINKED).measures if m.name == "fused/serial" and m.labels["m"] == 16]
    assert len(data["worse"]) == sum(change["worse"] for change in data["changes"]) == len(ratios)
    done = _verb("--compare", str(LINKED), "--compare", str(LINKED), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["worse"] == []
    both = _verb("--tune", "--fused")
    assert both.returncode == 2
    assert "several questions at once" in both.stderr
