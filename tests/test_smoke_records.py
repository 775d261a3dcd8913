"""The records of a run: what is written is read again, and damage is named with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import records
from smoke_tests.records import (
    Check,
    Evidence,
    LeftOut,
    Measure,
    RankState,
    Record,
    RecordError,
    Run,
    Skip,
    Verdict,
    Writer,
    dump,
    load,
    parse,
    read,
)

RUN = Run("node-0", "host", {"devices": ["NVIDIA H100 80GB HBM3"], "cores": 8, "nvshmem": None})
ALL: list[Record] = [
    RUN,
    Skip("multi-gpu", "torch 2.13.0 sees one GPU"),
    Check("gpu", "virtual-w8-integers_are_exact", "passed", 1.25, "44 shapes"),
    Check(
        "cpu",
        "cpu-w2-demo",
        "died",
        3.0,
        "rank 1 died",
        (RankState(1, "died", "create workspace", "signal 9"), RankState(0, "left")),
    ),
    Measure(
        "gpu", "fused/serial", 1.5, "ratio", {"ranks": "virtual", "w": 8, "m": 16}, (1.1, None)
    ),
    Measure("gpu", "p2p bandwidth", 12.0, "GB/s", {"src": 0, "dst": 1, "x": True, "f": 0.5}),
    LeftOut("cpu", "cpu-w2-models", "not installed: transformers; remedy: pip install"),
    Evidence("cpu-w2-demo", 0, "File ...", {"epoch": 3}, {"NCCL_DEBUG": "INFO"}, "GPU0 X"),
    Verdict(1, {"cpu": "failed", "multi-gpu": "skipped"}, {"passed": 1, "died": 1}),
]


def _text(*lines: Record) -> str:
    return "".join(dump(r) + "\n" for r in lines)


def _changed(record: Record, **changes: Any) -> str:
    return json.dumps(json.loads(dump(record)) | changes)


def _without(record: Record, key: str) -> str:
    data = json.loads(dump(record))
    del data[key]
    return json.dumps(data)


@pytest.mark.parametrize("record", ALL, ids=lambda r: r.KIND)
def test_every_record_survives_being_written(record: Record) -> None:
    assert load(dump(record)) == record
    assert "\n" not in dump(record)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Writer(path) as writer:
        for record in ALL:
            writer.write(record)
    result = read(path)
    assert list(result.records()) == ALL
    assert result.verdict
    assert not result.verdict.ok


def test_every_line_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Writer(path) as writer:
        for number, record in enumerate(ALL[:3], 1):
            writer.write(record)
            assert len(path.read_text().splitlines()) == number
    assert read(path).verdict is None


def test_a_file_of_another_run_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        Writer(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("wrong", [[ALL[1]], [RUN, RUN], [RUN, ALL[-1], ALL[2]]])
def test_records_in_an_impossible_order_are_not_written(
    tmp_path: Path, wrong: list[Record]
) -> None:
    *before, last = wrong
    with Writer(tmp_path / "run.jsonl") as writer:
        for record in before:
            writer.write(record)
        with pytest.raises(ValueError, match="cannot follow"):
            writer.write(last)
    with pytest.raises(RecordError) as caught:
        parse(_text(*wrong))
    assert caught.value.line == len(wrong)


def test_a_run_that_was_cut_off_has_no_verdict_and_keeps_its_whole_lines() -> None:
    whole = _text(*ALL[:-1])
    last = dump(ALL[-2]) + "\n"
    assert list(parse(whole).records()) == ALL[:-1]
    for cut in (1, len(last) // 2, len(last) - 2):
        result = parse(whole[: len(whole) - cut - 1])
        assert result.evidence == ()
        assert result.verdict is None
        assert len(result.checks) == 2


def test_a_cut_within_a_character_is_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    line = '{"kind": "skip", "tier": "gpu", "reason": "ä'.encode()[:-1]
    path.write_bytes(_text(RUN).encode() + line)
    assert read(path).skips == ()


def test_a_verdict_needs_no_newline() -> None:
    assert parse(_text(*ALL)[:-1]).verdict == ALL[-1]


@pytest.mark.parametrize("text", ["", '{"kind": "ru'])
def test_a_file_without_a_run_is_an_error(text: str) -> None:
    with pytest.raises(RecordError, match="cut off before it began"):
        parse(text)


MEASURE = ALL[4]
DAMAGE = {
    "not JSON": ("{", "not JSON"),
    "an empty line": ("", "not JSON"),
    "NaN": (dump(MEASURE).replace("1.5", "NaN"), "NaN is no JSON number"),
    "too large": (dump(MEASURE).replace("1.5", "1e999"), "inf is no float"),
    "no object": ("[]", "unknown kind list"),
    "unknown kind": (_changed(MEASURE, kind="figure"), "unknown kind 'figure'"),
    "no kind": (_without(MEASURE, "kind"), "unknown kind None"),
    "missing field": (_without(MEASURE, "unit"), "measure: missing field unit"),
    "missing outcome": (_without(MEASURE, "outcome"), "measure: missing field outcome"),
    "one field too many": (_changed(MEASURE, unit_of="s"), "unknown field unit_of"),
    "wrong type": (_changed(MEASURE, value="1.5"), "measure.value: '1.5' is no float"),
    "a truth for a number": (_changed(MEASURE, value=True), "measure.value: True is no float"),
    "a label that is a list": (_changed(MEASURE, labels={"m": [1]}), r"labels.m: \[1\] is no str"),
    "a band of one": (_changed(MEASURE, band=[1.0]), "band"),
    "an empty band": (_changed(MEASURE, band=[2.0, 1.0]), "holds no number"),
    "an outcome that is not its band's": (_changed(MEASURE, outcome="failed"), "say otherwise"),
    "a verdict that is not its code's": (_changed(ALL[-1], ok=True), "say otherwise"),
    "unknown tier": (_changed(ALL[2], tier="tpu"), "check.tier: 'tpu' is no import or compile"),
    "unknown outcome": (_changed(ALL[2], outcome="fine"), "check.outcome"),
    "ranks of a passed check": (
        _changed(ALL[2], ranks=[{"rank": 0, "state": "left", "step": "", "detail": ""}]),
        "and yet ranks did not",
    ),
    "a rank without its state": (_changed(ALL[3], ranks=[{"rank": 0}]), "missing field state"),
}


@pytest.mark.parametrize(("line", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(_text(*ALL[:2]) + line + "\n" + _text(*ALL[2:]))
    with pytest.raises(RecordError, match=message) as caught:
        read(path)
    assert caught.value.line == 3
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("schema", [1, 3, "2", None])
def test_another_schema_is_refused(schema: object) -> None:
    with pytest.raises(RecordError, match=r"schema .*; expected 2"):
        parse(_changed(RUN, schema=schema) + "\n")


def test_a_start_without_time_zone_is_refused() -> None:
    with pytest.raises(RecordError, match="no time zone"):
        parse(_changed(RUN, started="2026-01-01T00:00:00") + "\n")
    with pytest.raises(RecordError, match="run: Invalid isoformat"):
        parse(_changed(RUN, started="yesterday") + "\n")


@pytest.mark.parametrize(
    ("value", "band", "outcome"),
    [
        (1.0, None, "unjudged"),
        (1.0, (1.0, 2.0), "passed"),
        (2.0, (1.0, 2.0), "passed"),
        (2.1, (1.0, 2.0), "failed"),
        (0.9, (1.0, None), "failed"),
        (9.0, (1.0, None), "passed"),
        (9.0, (None, 8.0), "failed"),
    ],
)
def test_the_band_decides_about_a_measure(
    value: float, band: records.Band | None, outcome: str
) -> None:
    measure = Measure("gpu", "copy", value, "us", {}, band)
    assert measure.outcome == outcome
    assert load(dump(measure)) == measure


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_measure_is_without_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        Measure("gpu", "copy", value, "us")


def test_the_module_needs_nothing_but_python(root: Path) -> None:
    """It is also run inside images, which have none of the toolkit's packages."""
    code = "import sys; from smoke_tests.records import load; print('site' in sys.modules)"
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(root)!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "False", done.stderr
