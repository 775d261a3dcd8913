"""The parts of a run that need no ranks: boards, blame, evidence, leftovers, the verdict."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from smoke_tests.checks.registry import Check
from smoke_tests.evidence import shown, topology
from smoke_tests.leash import is_gone, is_stopped
from smoke_tests.leftovers import SHM, present, sweep
from smoke_tests.outcome import Outcome, Traces, states_of, text_of, worst
from smoke_tests.pool import culprits
from smoke_tests.recording import Found, Recording
from smoke_tests.records import Measure, Run, Skip, Tier, read
from smoke_tests.steps import Progress, ProgressBoard, Steps
from smoke_tests.tiers import settings_of_checks
from tdstack.smoke.junit import junit
from tdstack.smoke.run import summary
from tdstack.smoke.summary import summarize


def test_a_board_is_read_from_another_mapping_and_survives_half_a_write(tmp_path: Path) -> None:
    ours, theirs = ProgressBoard(tmp_path / "board", 2), ProgressBoard(tmp_path / "board", 2)
    assert theirs.read(1) == Progress()
    ours.write(1, Progress("é" * 200, 3, 1.5, 2.5))
    place = theirs.read(1)
    assert (place.number, place.begin, place.deadline) == (3, 1.5, 2.5)
    assert place.step.startswith("é" * 50), "cut, but readable"
    first = (tmp_path / "board").read_bytes()
    record = slice(start := 512 + (8, 260)[first[512]], start + 252)
    ours.write(1, Progress("second", 4, 2.0, 3.0))
    assert (tmp_path / "board").read_bytes()[record] == first[record], "it was the one that held"
    # What a rank has written of the next one, that is killed before it says that it holds.
    data = bytearray((tmp_path / "board").read_bytes())
    valid = data[512]
    start = 512 + (8, 260)[valid ^ 1]
    data[start : start + 252] = b"\xff" * 252
    (tmp_path / "board").write_bytes(data)
    assert ProgressBoard(tmp_path / "board", 2).read(1).step == "second"
    assert theirs.read(0) == Progress(), "the other rank's"


def test_steps_nest_and_an_inner_one_cannot_outlast_the_outer(tmp_path: Path) -> None:
    board = ProgressBoard(tmp_path / "board", 1)
    steps = Steps(0, board, limit_s=50)
    with steps.step("outer", 5):
        outer = board.read(0)
        with steps.step("inner", 100):
            assert board.read(0).step == "inner"
            assert board.read(0).deadline == outer.deadline
        assert board.read(0).step == "outer"
        assert board.read(0).number > outer.number, "steps that were begun are counted"
    assert board.read(0).step == ""
    assert board.read(0).deadline == float("inf")
    with pytest.raises(ValueError, match="x"), steps.step("first"), steps.step("second"):
        raise ValueError("x")
    assert steps.failed_in == "second"
    with Steps(0, board, limit_s=50, most_s=1).step("all", 100):
        assert board.read(0).deadline < time.monotonic() + 2


@pytest.mark.parametrize(
    ("places", "stopped", "known", "guilty"),
    [
        ({0: 4, 1: 3, 2: 4}, set(), {}, {1}),
        ({0: 3, 1: 3}, set(), {}, {0, 1}),
        ({0: 3, 1: 9}, {1}, {}, {1}),
        # It gave up waiting for a peer: that one is to blame.
        ({1: 3}, set(), {0: ("failed", "PeerTimeoutError: rank 0")}, {1}),
        # These wait for the one that failed, or died.
        ({1: 3}, set(), {0: ("failed", "AssertionError: 3 elements differ")}, set()),
        ({1: 3}, set(), {0: ("died", "killed by SIGKILL")}, set()),
        ({1: 3}, set(), {0: ("passed", "")}, {1}),
    ],
)
def test_who_is_to_blame(
    places: dict[int, int],
    stopped: set[int],
    known: dict[int, tuple[str, str]],
    guilty: set[int],
) -> None:
    at = {rank: Progress("gather", number) for rank, number in places.items()}
    outcomes = {rank: Outcome(rank, state, text) for rank, (state, text) in known.items()}  # type: ignore[arg-type]
    assert culprits(at, stopped, outcomes) == guilty


def test_the_cause_comes_first() -> None:
    outcomes = [
        Outcome(0, "failed", "gave up", step="call"),
        Outcome(1, "left", step="gather"),
        Outcome(2, "passed"),
        Outcome(3, "hung", "for 9 s", step="connect"),
    ]
    assert worst(outcomes) == "hung"
    assert worst([*outcomes, Outcome(4, "died")]) == "died"
    assert [state.rank for state in states_of(outcomes)] == [3, 0, 1]
    assert text_of("3 of 4", outcomes).splitlines()[1] == "rank 3 hung in step 'connect': for 9 s"


def test_evidence_shows_the_stack_s_variables_and_no_secrets() -> None:
    variables = {
        "NCCL_DEBUG": "INFO",
        "RANK": "0",
        "HOME": "/home/somebody",
        "NVIDIA_API_KEY": "k",
        "TORCH_AUTH": "a",
        "AWS_SESSION": "s",
    }
    assert shown(variables) == {"NCCL_DEBUG": "INFO", "RANK": "0"}
    assert "cores, /dev/shm" in topology(gpus=False)


def test_only_files_that_nobody_can_reach_are_swept() -> None:
    mark = uuid.uuid4().hex
    old, new, mapped = (f"nvshmem-{mark}-{n}" for n in ("old", "new", "mapped"))
    other = f"somebody-{mark}"
    try:
        (SHM / old).write_bytes(b"0")
        before = present()
        for name in (new, mapped, other):
            (SHM / name).write_bytes(b"0")
        with (SHM / mapped).open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 1)
        removed = sweep(before)
        assert [name for name in removed if mark in name] == [new]
        assert not (SHM / new).exists()
        assert all((SHM / name).exists() for name in (old, mapped, other))
        memory.close()
    finally:
        for name in (old, new, mapped, other):
            (SHM / name).unlink(missing_ok=True)


def test_a_stopped_process_dies_with_its_parent() -> None:
    child = "import time; from smoke_tests.leash import die_with_parent\n"
    child += "die_with_parent(); print('ready', flush=True); time.sleep(600)"
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        while not is_stopped(pid):
            time.sleep(0.01)
        process.kill()
    deadline = time.monotonic() + 10
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_number_outside_of_its_band_fails_the_tier(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run.jsonl", Run("h", "host", {}), ["cpu"])
    measure = Measure("cpu", "speed", 1.0, "ratio", {}, (2.0, None))
    found = Found("fine", [Outcome(0, "passed", measures=(measure,))])
    recording.add("cpu", "cpu-w1-speed", True, 1.0, "", found)
    assert recording.end(hung=False, impossible=False) == 1
    recording.close()
    result = read(tmp_path / "run.jsonl")
    assert result.checks[0].outcome == "passed"
    assert result.verdict
    assert dict(result.verdict.tiers) == {"cpu": "failed"}


def test_what_was_recorded_of_a_hang(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run.jsonl", Run("h", "host", {}), ["import", "cpu"])
    recording.skip(Skip("gpu", "no GPU"))
    outcomes = [
        Outcome(0, "left", step="gather", traces=Traces("stack 0", {"workspaces": []})),
        Outcome(1, "hung", "stopped", step="gather", traces=Traces("stack 1")),
    ]
    found = Found("", outcomes, {"RANK": "0"}, "2 cores")
    recording.add("cpu", "cpu-w2-x", False, 9.0, "text", found)
    assert recording.end(hung=True, impossible=False) == 6
    recording.close()
    result = read(tmp_path / "run.jsonl")
    assert (result.checks[0].outcome, result.checks[0].ranks[0].rank) == ("hung", 1)
    assert [(e.rank, e.stacks) for e in result.evidence] == [(0, "stack 0"), (1, "stack 1")]
    assert result.evidence[0].topology == "2 cores"
    assert result.verdict
    # Nothing of the tier import has run: that is no pass.
    tiers = {"gpu": "skipped", "import": "skipped", "cpu": "failed"}
    assert dict(result.verdict.tiers) == tiers


def test_a_check_that_was_left_out_is_no_pass_and_says_why(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "run.jsonl", Run("h", "host", {}), ["import", "cpu"])
    why = "not installed: transformers; remedy: pip install -r requirements-models.lock"
    recording.add("import", "import-x", True, 1.0, "", Found())
    recording.leave_out("cpu", "cpu-w2-models", why)
    assert recording.end(hung=False, impossible=False) == 0
    recording.close()
    result = read(tmp_path / "run.jsonl")
    assert [(c.tier, c.check, c.reason) for c in result.left_out] == [("cpu", "cpu-w2-models", why)]
    assert result.verdict
    assert dict(result.verdict.tiers) == {"import": "passed", "cpu": "skipped"}
    assert dict(result.verdict.counts) == {"passed": 1, "skipped": 1}
    assert summary(result, tmp_path)["skips"] == {"cpu-w2-models": why}
    found = summarize(result)
    assert "1 check passed; 1 check left out" in found.headline
    assert [t.reason for t in found.tiers] == ["", f"left out: cpu-w2-models: {why}"]
    (case,) = ET.fromstring(junit(result)).findall(".//testcase[@name='cpu-w2-models']")
    assert case.find("skipped").attrib["message"] == why  # type: ignore[union-attr]


def test_some_checks_have_numbers_of_interpreted_ranks_of_their_own() -> None:
    usual, own = (
        Check(name, lambda ranks: None, ("cpu", "nvshmem"), False, 1.0, 1, False, False, "", counts)
        for name, counts in (("usual", ()), ("own", (2, 4)))
    )

    def of(tier: Tier, ranks: int) -> list[tuple[int, str]]:
        found = settings_of_checks(tier, ranks, [usual, own])
        return [(setting.world_size, check.name) for setting, check in found]

    assert of("cpu", 0) == [(4, "usual"), (4, "own"), (2, "own")]
    assert of("cpu", 8) == [(8, "usual"), (8, "own")]
    assert of("gpu", 2) == [(2, "usual"), (2, "own")] * 2, "virtual and nvshmem"


def test_a_run_of_nothing_is_no_success() -> None:
    recording = Recording(None, Run("h", "host", {}), ["cpu"])
    assert recording.end(hung=False, impossible=False) == 3
