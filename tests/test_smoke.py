"""`invoke smoke` and `invoke bench`: usage, and how pytest's end becomes an exit code."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from smoke_tests.drawn import Sequence, fixed
from smoke_tests.records import read
from smoke_tests.tiers import Host, interpreter_fails, lacking, select, this_host
from tdstack.bench import explain, launch
from tdstack.errors import CheckFailed, HostError, TdstackError, TimeLimitError, UsageError
from tdstack.smoke.run import Options, smoke
from tests.conftest import ROOT

needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)

# Stands in for the real checks: the same options, and a report that ends as it is told.
CONFTEST = """
import pathlib, sys
sys.path.insert(0, {root!r})
from smoke_tests.records import Check, RankState, Run, Skip, Verdict, Writer

def pytest_addoption(parser):
    for option in ("--tier", "--ranks", "--records", "--kernels", "--parent", "--label"):
        parser.addoption(option)

def pytest_sessionfinish(session):
    if {written}:
        with Writer(pathlib.Path(session.config.getoption("--records"))) as writer:
            writer.write(Run(session.config.getoption("--label") or "here", "host", {{}}))
            writer.write(Skip("gpu", "torch sees no GPU"))
            ranks = (RankState(1, "{outcome}", "gather"),) if "{outcome}" != "passed" else ()
            writer.write(Check("cpu", "cpu-w2-demo", "{outcome}", 1.0, "", ranks))
            if {status} is not None:
                cpu = "passed" if "{outcome}" == "passed" else "failed"
                tiers = {{"cpu": cpu, "gpu": "skipped"}}
                writer.write(Verdict({status}, tiers, {{"{outcome}": 1}}))
    session.exitstatus = {status} or 0
"""


def _checkout(
    folder: Path, outcome: str, status: int | None, written: bool = True
) -> tuple[Path, Options]:
    (folder / "smoke_tests").mkdir()
    text = CONFTEST.format(outcome=outcome, status=status, written=written, root=str(ROOT))
    (folder / "smoke_tests" / "conftest.py").write_text(text)
    (folder / "smoke_tests" / "test_demo.py").write_text("def test_demo(): pass\n")
    return folder, Options(tier="cpu", out=str(folder / "out"), label="demo")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_sequence_of_calls_survives_being_printed(ranks: int) -> None:
    """What a failed property test prints is what is played again."""
    sequence = fixed(ranks)
    assert Sequence.from_json(sequence.to_json()) == sequence
    assert all(f"call {n}: " in str(sequence) for n in range(len(sequence.calls)))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (Options(tier="gpus"), "--tier gpus"),
        (Options(tier="cpu", ranks=3), "--ranks 3"),
        (Options(ranks=-1), "--ranks -1"),
        (Options(tier="gpu", kernels="best"), "--kernels best"),
        (Options(tier="cpu", kernels="cubins"), "--kernels cubins"),
        (Options(limit=-1), "--limit -1"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(tmp_path: Path, options: Options, where: str) -> None:
    with pytest.raises(UsageError) as caught:
        smoke(tmp_path, options)
    assert caught.value.where == where
    assert caught.value.expected
    assert not list(tmp_path.iterdir()), "a folder for a report that will not be"


@needs_torch
def test_timing_launches_needs_a_gpu(root: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this host has a GPU")
    with pytest.raises(HostError, match="timing launches needs a GPU"):
        launch(root)


ALL = frozenset({"torch", "triton", "numpy"})


@pytest.mark.parametrize(
    ("asked", "host", "runs", "skipped"),
    [
        ("", Host(ALL, 0, "2.13.0", False), ["import", "compile", "cpu"], {"gpu": "sees no GPU"}),
        (
            "",
            Host(ALL, 1, "2.13.0", False),
            ["import", "compile", "cpu", "gpu"],
            {"multi-gpu": "one"},
        ),
        (
            "",
            Host(ALL, 1, "2.13.0", False, "numpy 2.5.2: the interpreter of Triton 3.6.0 needs"),
            ["import", "compile", "gpu"],
            {"cpu": "numpy 2.5.2: the interpreter", "multi-gpu": "one GPU"},
        ),
        ("compile", Host(ALL, 8, "2.13.0", False), ["import", "compile"], {}),
        ("", Host(frozenset(), 0, "", False), ["import"], {"compile": "no Triton", "cpu": "torch"}),
        # An image of cubins has no Triton: nothing to interpret, and nothing missing for its GPU.
        (
            "gpu",
            Host(ALL - {"triton"}, 1, "2.13.0", True),
            ["import", "compile", "gpu"],
            {"cpu": "not installed: triton"},
        ),
    ],
)
def test_tiers_that_run_and_why_others_do_not(
    asked: str, host: Host, runs: list[str], skipped: dict[str, str]
) -> None:
    chosen = select(asked, host)
    assert list(chosen.run) == runs
    assert not chosen.impossible
    reasons = {skip.tier: skip.reason for skip in chosen.skips}
    assert all(words in reasons[tier] for tier, words in skipped.items())  # type: ignore[index]
    assert not set(reasons) & set(runs)


@pytest.mark.parametrize(
    ("triton", "numpy", "fails"),
    [
        ("3.4.0", "2.3.5", False),
        ("3.4.0", "2.4.0", True),
        ("3.6.0", "2.5.2", True),
        ("3.4.0+dist.01234567", "3.0.0rc1", True),
        ("3.6.1", "1.26.4", False),
        ("3.7.0", "2.5.2", False),
        ("", "2.5.2", False),
        ("3.6.0", "", False),
    ],
)
def test_an_interpreter_that_fails_with_this_numpy_is_known_before(
    triton: str, numpy: str, fails: bool
) -> None:
    said = interpreter_fails(triton, numpy)
    assert bool(said) == fails
    assert not fails or (numpy in said and triton in said and "needs numpy < 2.4" in said)


@pytest.mark.parametrize(("asked", "gpus"), [("gpu", 0), ("multi-gpu", 1), ("multi-node", 8)])
def test_a_tier_that_was_asked_for_and_cannot_run_runs_nothing(asked: str, gpus: int) -> None:
    chosen = select(asked, Host(ALL, gpus, "2.13.0", False))
    assert not chosen.run
    assert chosen.impossible
    assert [skip.tier for skip in chosen.skips] == [asked]


def test_the_verb_says_what_a_tier_lacks(root: Path, tmp_path: Path) -> None:
    if not lacking("multi-gpu", this_host()):
        pytest.skip("this host has two GPUs")
    with pytest.raises(HostError) as caught:
        smoke(root, Options(tier="multi-gpu", out=str(tmp_path)))
    assert "multi-gpu: " in caught.value.got
    result = read(tmp_path / "run.jsonl")
    assert result.verdict
    assert result.verdict.exit_code == 3
    assert not result.checks


def test_a_run_that_passed_has_all_files_of_a_report(tmp_path: Path) -> None:
    found = smoke(*_checkout(tmp_path, "passed", 0))
    assert found["ok"]
    assert found["tiers"] == {"cpu": "passed", "gpu": "skipped"}
    assert found["skips"] == {"gpu": "torch sees no GPU"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "run.jsonl",
        "index.html",
        "junit.xml",
    }
    assert read(tmp_path / "out" / "run.jsonl").run.host == "demo"
    with pytest.raises(HostError, match="a report is there already"):
        smoke(tmp_path, Options(tier="cpu", out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("outcome", "status", "error", "says"),
    [
        ("failed", 1, CheckFailed, "cpu-w2-demo"),
        ("died", 1, CheckFailed, "rank 1 died in step 'gather'"),
        ("hung", 6, TimeLimitError, "rank 1 hung in step 'gather'"),
        ("failed", None, CheckFailed, "the run was cut off"),
        # A verdict that its own checks contradict would be no verdict.
        ("passed", None, CheckFailed, "the run was cut off"),
    ],
)
def test_what_failed_is_named(
    tmp_path: Path, outcome: str, status: int | None, error: type[TdstackError], says: str
) -> None:
    with pytest.raises(error) as caught:
        smoke(*_checkout(tmp_path, outcome, status))
    assert says in str(caught.value)
    assert caught.value.as_dict()["details"]
    assert (tmp_path / "out" / "index.html").is_file(), "a report of what failed"


def test_checks_that_did_not_run_are_no_success(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="the checks did not run"):
        smoke(*_checkout(tmp_path, "passed", 0, written=False))


@needs_torch
def test_the_verb_writes_the_report_of_real_checks(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "invoke", "smoke", "--tier", "cpu", "--ranks", "1", "--json"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tiers"] == {"import": "passed", "compile": "passed", "cpu": "passed"}
    result = read(tmp_path / "out" / "run.jsonl")
    names = [check.name for check in result.checks]
    assert "cpu-w1-integers_are_exact" in names
    assert names[0].startswith("import-"), "the lowest tier first"
    assert result.run.machine["triton"]
    assert result.verdict
    assert result.verdict.counts["passed"] == len(names)


def test_explain_names_the_rule_and_refuses_what_is_not_served(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(root, "2048,8192,1024,8,sm_90")
    assert "chosen: two_shot_bf16_w8" in capsys.readouterr().out
    for shape in ("", "1,2,3", "16,8192,1024,3,sm_90", "16,8192,1024,8,sm_70", "x,8,8,8,sm_90"):
        with pytest.raises(UsageError) as caught:
            explain(root, shape)
        assert "--explain" in caught.value.expected
