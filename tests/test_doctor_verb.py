"""`invoke doctor` and `python -m tdstack.doctor`: this host, recorded ones, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdstack.doctor.check import Finding
from tdstack.doctor.checks import checks
from tdstack.doctor.facts import Driver, Facts
from tdstack.doctor.show import Diagnosis, line_rows, rows_of, summary, told
from tdstack.doctor.verb import Options, doctor, facts_of
from tdstack.errors import HostError, UsageError
from tests.conftest import ROOT

HOSTS = ROOT / "tests/data/hosts"
GPULESS = not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists()


def run(*arguments: str, where: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tdstack.doctor", *arguments]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        words, capture_output=True, text=True, timeout=180, cwd=where, env=environment
    )


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "invoke", "doctor", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=180, cwd=ROOT)


@pytest.mark.skipif(not GPULESS, reason="this machine has a GPU's driver")
def test_a_machine_without_a_gpu_is_told_what_it_lacks_and_ends_with_3(tmp_path: Path) -> None:
    ended = invoke("--json")
    assert ended.returncode == 3, ended.stderr
    found = json.loads(ended.stdout)
    assert found["exit_code"] == 3
    assert found["schema"] == 1
    missing = [f for f in found["findings"] if f["severity"] == "missing"]
    assert missing
    assert all(finding["remedy"] and finding["doc"] for finding in missing)
    assert not any(verdict["runs"] for verdict in found["lines"].values())
    for finding in missing:
        assert f"│ {finding['check']} " in ended.stderr
    assert "remedy: " in ended.stderr
    assert "checks: " in ended.stderr


@pytest.mark.skipif(not GPULESS, reason="this machine has a GPU's driver")
def test_a_prolog_needs_no_invoke_and_a_record_is_judged_as_the_host_was(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    here = run("--json", "--cuda", "12.4", "--record", str(file), where=tmp_path)
    assert here.returncode == 3, here.stderr
    again = run("--json", "--cuda", "12.4", "--facts", str(file), where=tmp_path)
    assert again.returncode == 3, again.stderr
    first, second = json.loads(here.stdout), json.loads(again.stdout)
    assert second["host"] == "host-1"
    assert [(f["check"], f["severity"]) for f in first["findings"]] == [
        (f["check"], f["severity"]) for f in second["findings"]
    ]
    assert first["lines"] == second["lines"]


@pytest.mark.parametrize(
    ("host", "code"), [("h100-sxm-8", 0), ("fabric-manager-down", 1), ("driver-not-loaded", 3)]
)
def test_recorded_hosts_end_with_their_code(host: str, code: int) -> None:
    ended = run("--facts", str(HOSTS / f"{host}.json"), "--json")
    assert ended.returncode == code, ended.stderr
    assert json.loads(ended.stdout)["exit_code"] == code


def test_both_ways_in_say_the_same() -> None:
    options = ["--facts", str(HOSTS / "driver-old.json"), "--cuda", "12.8", "--json"]
    invoked, run_ = invoke(*options), run(*options)
    assert invoked.returncode == run_.returncode != 0
    assert invoked.stdout == run_.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--facts", "none.json"),
        ("--facts", str(HOSTS / "h100-sxm-8.json"), "--cuda", "11.8"),
        ("--facts", str(HOSTS / "h100-sxm-8.json"), "--record", "x.json"),
        ("--facts", str(HOSTS / "h100-sxm-8.json"), "--prefix", "."),
        ("--record", "no-such-folder/x.json"),
        ("--record", "."),
        ("--limit", "-1"),
        ("--limit", "nan"),
        ("--limit", "inf"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = run(*arguments, "--json", where=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert json.loads(ended.stdout)["error"] == "UsageError"
    assert ended.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_tells_usage_errors_as_every_verb_does() -> None:
    ended = invoke("--facts", str(HOSTS / "h100-sxm-8.json"), "--cuda", "11.8", "--json")
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["expected"] == "12.4, 12.6, 12.8, 12.9, 13.0"


def test_dry_writes_no_record(tmp_path: Path) -> None:
    ended = run("--record", "x.json", "--dry", where=tmp_path)
    assert "would write x.json" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_copy_without_the_checks_records_and_does_not_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tdstack.doctor.checks", None)
    file = tmp_path / "here.json"
    assert doctor(Options(record=str(file)), as_json=False) == 0
    told_ = capsys.readouterr().err
    assert "recorded: here.json" in told_
    assert "not judged" in told_
    with pytest.raises(HostError, match="not installed"):
        doctor(Options(facts=str(file)), as_json=False)


def test_this_hosts_label_is_its_name_and_a_records_is_its_own() -> None:
    def look(prefix: str, limit_s: float) -> Facts:
        return Facts(notes=(prefix, str(limit_s)))

    here = facts_of(Options(prefix="x", limit_s=7), look)
    assert here.label == os.uname().nodename
    assert here.notes == (str(Path.cwd() / "x"), "7")
    assert facts_of(Options(), look).notes == ("", "inf")
    recorded = facts_of(Options(facts=str(HOSTS / "h100-sxm-8.json")))
    assert recorded.label
    with pytest.raises(UsageError):
        Options(facts="x", record="y").check()


def test_a_driver_that_hangs_is_a_fault() -> None:
    facts = Facts(
        driver=Driver(present=True, version="580.1.2", nvml="timeout"),
        why={"gpus": "nvml: no answer within 20 s"},
    )
    (found,) = [one for one in checks(facts) if one.check == "driver"]
    assert (found.severity, found.evidence) == ("failure", "nvml: no answer within 20 s")
    assert found.what == "the driver does not answer"


def finding(severity: Any, name: str) -> Finding:
    return Finding(name, severity, "what", "evidence", "remedy " * 30, "docs/doctor.md#x")


def test_what_is_wrong_comes_first_with_its_remedy_under_it() -> None:
    found = [finding("ok", "a"), finding("unknown", "b"), finding("failure", "c")]
    found += [finding("missing", "d"), finding("failure", "e")]
    rows = rows_of(found)
    assert [row[:2] for row in rows] == [
        *(["MISSING", "d"], ["FAIL", "c"], ["FAIL", "e"], ["unknown", "b"], ["ok", "a"]),
    ]
    first, second, *rest = told(found[0]).splitlines()
    assert first == "what (evidence)"
    assert second.startswith("  remedy: remedy")
    assert all(line.startswith("    ") and len(line) <= 96 for line in rest)
    assert rest[-1].endswith("(docs/doctor.md#x)")
    assert told(replace(found[0], remedy="", evidence="")) == "what"


def test_lines_say_yes_no_or_not_known() -> None:
    found: dict[str, dict[str, object]] = {"12.4": {"runs": True, "why": "w"}}
    found |= {"12.8": {"runs": False, "why": ""}, "13.0": {"runs": None}}
    assert line_rows(found) == [["12.4", "yes", "w"], ["12.8", "no", ""], ["13.0", "not known", ""]]
    counted = summary(Diagnosis(Facts(), [finding("ok", "a"), finding("missing", "b")], found))
    assert counted == "2 checks: 1 ok, 1 missing"
