"""`invoke smoke` and `invoke bench`: usage, and how pytest's end becomes an exit code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from smoke_tests.drawn import Sequence, fixed
from tdstack.bench import explain, launch
from tdstack.errors import CheckFailed, HostError, TdstackError, TimeLimitError, UsageError
from tdstack.smoke.run import smoke

needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)

# Stands in for the real checks: the same options, and a report with one outcome.
CONFTEST = """
import json, pathlib

def pytest_addoption(parser):
    for option in ("--tier", "--ranks", "--report", "--kernels"):
        parser.addoption(option)

def pytest_sessionfinish(session):
    checks = [{{"name": "cpu-w2-demo", "outcome": "{outcome}", "seconds": 1.0, "detail": ""}}]
    if {written}:
        report = pathlib.Path(session.config.getoption("--report"))
        report.write_text(json.dumps({{"schema": 1, "checks": checks}}))
    session.exitstatus = {status}
"""


def _checkout(folder: Path, outcome: str, status: int, written: bool = True) -> Path:
    (folder / "smoke_tests").mkdir()
    text = CONFTEST.format(outcome=outcome, status=status, written=written)
    (folder / "smoke_tests" / "conftest.py").write_text(text)
    (folder / "smoke_tests" / "test_demo.py").write_text("def test_demo(): pass\n")
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_sequence_of_calls_survives_being_printed(ranks: int) -> None:
    """What a failed property test prints is what is played again."""
    sequence = fixed(ranks)
    assert Sequence.from_json(sequence.to_json()) == sequence
    assert all(f"call {n}: " in str(sequence) for n in range(len(sequence.calls)))


@pytest.mark.parametrize(("tier", "ranks"), [("gpus", 0), ("", 0), ("cpu", 3), ("cpu", -1)])
def test_an_unknown_tier_or_number_of_ranks_is_a_usage_error(
    tmp_path: Path, tier: str, ranks: int
) -> None:
    with pytest.raises(UsageError) as caught:
        smoke(tmp_path, tier, ranks, controls=False)
    assert caught.value.expected


@pytest.mark.parametrize(("tier", "kernels"), [("gpu", "best"), ("cpu", "cubins"), ("cpu", "jit")])
def test_kernels_of_no_such_source_are_a_usage_error(
    tmp_path: Path, tier: str, kernels: str
) -> None:
    with pytest.raises(UsageError) as caught:
        smoke(tmp_path, tier, 0, controls=False, kernels=kernels)
    assert caught.value.where == f"--kernels {kernels}"
    assert caught.value.expected


@needs_torch
def test_timing_launches_needs_a_gpu(root: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    with pytest.raises(HostError, match="timing launches needs a GPU"):
        launch(root)


@needs_torch
def test_a_tier_for_gpus_needs_them(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    for tier in ("gpu", "multi-gpu"):
        with pytest.raises(HostError, match=f"the tier {tier} needs"):
            smoke(tmp_path, tier, 0, controls=False)


@needs_torch
def test_the_end_of_the_checks_becomes_the_verdict(tmp_path: Path) -> None:
    report = smoke(_checkout(tmp_path, "passed", 0), "cpu", 2, controls=False)
    assert report["checks"][0]["name"] == "cpu-w2-demo"


@needs_torch
@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [("failed", 1, CheckFailed), ("failed", 6, TimeLimitError), ("passed", 3, CheckFailed)],
)
def test_a_failed_check_is_named(
    tmp_path: Path, outcome: str, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        smoke(_checkout(tmp_path, outcome, status), "cpu", 2, controls=False)
    if outcome == "failed":
        assert "cpu-w2-demo" in str(caught.value)
        assert isinstance(caught.value, TdstackError)
        assert caught.value.as_dict()["details"]


@needs_torch
def test_checks_that_did_not_run_are_no_success(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="the checks did not run"):
        smoke(_checkout(tmp_path, "passed", 0, written=False), "cpu", 2, controls=False)


@needs_torch
def test_the_verb_writes_the_report_of_real_checks(root: Path) -> None:
    command = [sys.executable, "-m", "invoke", "smoke", "--tier", "cpu", "--ranks", "1", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["tier"] == "cpu"
    names = {check["name"] for check in report["checks"]}
    assert "cpu-w1-integers_are_exact" in names
    assert report["machine"]["triton"]


def test_explain_names_the_rule_and_refuses_what_is_not_served(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(root, "2048,8192,1024,8,sm_90")
    assert "chosen: two_shot_bf16_w8" in capsys.readouterr().out
    for shape in ("", "1,2,3", "16,8192,1024,3,sm_90", "16,8192,1024,8,sm_70", "x,8,8,8,sm_90"):
        with pytest.raises(UsageError) as caught:
            explain(root, shape)
        assert "--explain" in caught.value.expected
