"""Which reports of the doctor drain a node, and with which words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tdstack.slurm_health import MOST, Judgement, judge, main


def report(*findings: tuple[str, str, str], exit_code: int = 0, **more: Any) -> str:
    listed = [{"check": c, "severity": s, "what": w} for c, s, w in findings]
    return json.dumps({"schema": 1, "findings": listed, "exit_code": exit_code, **more})


SHM = ("shm-size", "failure", "/dev/shm has 64 MiB, 1 GiB are needed")
DRIVER = ("driver-present", "missing", "no NVIDIA driver is loaded")


@pytest.mark.parametrize("severity", ["ok", "note", "warning", "unknown"])
def test_a_node_without_faults_is_kept(severity: str) -> None:
    assert judge(report(("a", severity, "something")), 0) == Judgement("keep")


def test_a_fault_drains_with_its_check_and_words() -> None:
    found = judge(report(SHM, ("a", "ok", "fine"), exit_code=1), 1)
    assert found.line() == "drain tdstack doctor: shm-size: /dev/shm has 64 MiB, 1 GiB are needed"


def test_the_evidence_stands_with_it() -> None:
    shown = {"check": "shm", "severity": "failure", "what": "too small", "evidence": "64 MiB"}
    text = json.dumps({"schema": 1, "findings": [shown], "exit_code": 1})
    assert judge(text, 1).why == "tdstack doctor: shm: too small (64 MiB)"


def test_what_is_broken_stands_before_what_is_missing() -> None:
    found = judge(report(DRIVER, SHM, exit_code=3), 3)
    assert found.why.startswith("tdstack doctor: shm-size: ")
    assert found.why.endswith("(and driver-present)")


def test_checks_can_be_left_out_or_chosen() -> None:
    text = report(SHM, DRIVER, exit_code=3)
    assert judge(text, 3, ignore={"shm-size"}).why.startswith("tdstack doctor: driver-present")
    assert judge(text, 3, ignore={"shm-size", "driver-present"}) == Judgement("keep")
    assert judge(text, 3, only={"driver-present"}).why.startswith("tdstack doctor: driver-present")
    calm = report(("a", "ok", ""), DRIVER, exit_code=3)
    assert judge(calm, 3, only={"a"}) == Judgement("keep")


def test_a_check_that_the_doctor_does_not_know_is_not_taken_for_a_good_one() -> None:
    text = report(SHM, exit_code=1)
    assert judge(text, 1, only={"shm"}) == Judgement("broken", "the doctor did not check shm")
    assert judge(text, 1, only={"shm", "shm-size"}).verdict == "drain"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 1),
        ("Traceback (most recent call last):", 1),
        ("[]", 1),
        ("null", 3),
        (report(SHM, exit_code=1), 139),
        (report(SHM, exit_code=1), 127),
        (report(SHM, exit_code=1), 0),
        (report(SHM, exit_code=0), 1),
        (report(SHM, exit_code=1)[:-20], 1),
        (json.dumps({"schema": 2, "findings": [], "exit_code": 1}), 1),
        (json.dumps({"schema": 1, "findings": [{"check": "a"}], "exit_code": 1}), 1),
        (json.dumps({"schema": 1, "findings": ["a"], "exit_code": 1}), 1),
        (json.dumps({"schema": 1, "exit_code": 1}), 1),
    ],
)
def test_a_doctor_that_broke_drains_nothing(text: str, code: int) -> None:
    assert judge(text, code).verdict == "broken"


def test_what_the_doctor_said_of_its_error_is_passed_on() -> None:
    error = json.dumps({"error": "UsageError", "exit_code": 2, "what": "unknown CUDA line '11.8'"})
    assert "unknown CUDA line 11.8" in judge(error, 2).line()


def test_whatever_a_report_holds_the_reason_is_one_short_plain_line() -> None:
    drawn = random.Random(7)
    letters = [chr(n) for n in range(256)] + ["\u2028", "\u4e2d", "\U0001f600"]
    for _ in range(300):
        findings = [
            ("".join(drawn.choices(letters, k=drawn.randint(0, 60))), "failure",
             "".join(drawn.choices(letters, k=drawn.randint(0, 400))))
            for _ in range(drawn.randint(1, 30))
        ]  # fmt: skip
        found = judge(report(*findings, exit_code=1), 1)
        assert found.verdict == "drain"
        line = found.line().removeprefix("drain ")
        assert line == found.why
        assert len(line) <= MOST
        assert line.isascii()
        assert line.isprintable()
        assert not {*line} & {*"\"'\\[]"}


def test_many_faults_are_counted_where_names_would_not_fit() -> None:
    many = [(f"check-number-{n}", "failure", "x" * 300) for n in range(30)]
    found = judge(report(*many, exit_code=1), 1)
    assert found.why.endswith("... (and 29 more)")
    assert len(found.why) <= MOST


def test_the_program_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text(report(SHM, DRIVER, exit_code=3))
    assert main(["--code", "3", "--ignore", "driver-present,other", str(path)]) == 0
    assert capsys.readouterr().out == f"drain tdstack doctor: {SHM[0]}: {SHM[2]}\n"
    assert main(["--code", "1", str(tmp_path / "absent")]) == 0
    assert capsys.readouterr().out.startswith("broken ")
