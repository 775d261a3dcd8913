"""Two nodes on one machine: ranks in step, and every way in which one of them may be lost.

Each node is a launcher with a torchrun of its own and two ranks in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from smoke_tests.launch import end_stopped
from smoke_tests.records import RankState, Result, read
from smoke_tests.watch import Sibling

needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)
SUMS = "integers_add_up_over_gloo"
VERSIONS = "every_rank_has_the_same_versions"
TOKEN = "SMOKE_TEST_TOKEN"


@dataclass
class Launch:
    """Two nodes, each with a folder of its own for reports."""

    nodes: list[subprocess.Popen[str]]
    folder: Path
    token: str

    def report(self, node: int = 0) -> Result:
        return read(self.folder / str(node) / "run.jsonl")

    def agent(self, node: int) -> int:
        launcher = self.nodes[node].pid
        text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
        return int(text.split()[0])

    def rank(self, rank: int) -> int:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = (path / "environ").read_bytes().split(b"\0")
                if {f"{TOKEN}={self.token}".encode(), f"RANK={rank}".encode()} <= {*environment}:
                    return int(path.name)
        raise AssertionError(f"no rank {rank}")

    def codes(self) -> list[int]:
        return [node.wait(timeout=90) for node in self.nodes]

    def survivors(self) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{TOKEN}={self.token}".encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_text().replace("\0", " "))
        return found

    def wait_for_sums(self) -> None:
        """Wait until the first check is through and all ranks are in the second."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                if self.report().checks:
                    time.sleep(2)
                    return
            time.sleep(0.2)
        raise AssertionError("the first check did not end")


Start = Callable[..., Launch]


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    launches: list[Launch] = []

    def begin(*options: str) -> Launch:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launch = Launch([], tmp_path, uuid.uuid4().hex)
        launches.append(launch)
        for node in range(2):
            command = [sys.executable, "-m", "smoke_tests.launch", "--nodes=2", "--kind=cpu"]
            command += [f"--node-rank={node}", "--ranks-per-node=2", "--master-addr=127.0.0.1"]
            command += [f"--master-port={port}", f"--out={tmp_path / str(node)}", *options]
            log = tmp_path.joinpath(f"log-{node}").open("w")
            environment = {**os.environ, TOKEN: launch.token}
            launch.nodes.append(
                subprocess.Popen(
                    command, cwd=root, env=environment, stdout=log, stderr=log, text=True
                )
            )
        return launch

    yield begin
    for launch in launches:
        for node in launch.nodes:
            node.kill()
        left = launch.survivors()
        for rank in range(4):
            with contextlib.suppress(AssertionError, OSError):
                os.kill(launch.rank(rank), signal.SIGKILL)
        assert not left, left


def named(report: Result) -> dict[int, RankState]:
    """What the last check says of each rank that did not pass."""
    return {state.rank: state for state in report.checks[-1].ranks}


@needs_torch
def test_two_nodes_run_in_step(start: Start) -> None:
    launch = start("--check", VERSIONS, "--check", SUMS, "--check", "integers_are_exact")
    assert launch.codes() == [0, 0], (launch.folder / "log-0").read_text()
    report = launch.report()
    assert [(c.tier, c.name, c.outcome) for c in report.checks] == [
        ("multi-node", f"n2-w4-{VERSIONS}", "passed"),
        ("multi-node", f"n2-w4-{SUMS}", "passed"),
        ("multi-node", "n2-cpu-w2-integers_are_exact", "passed"),
    ]
    assert report.verdict is not None
    assert report.verdict.ok
    assert len(report.run.machine["nodes"]) == 2
    assert (report.run.machine["interface"], report.run.machine["family"]) == ("lo", "AF_INET")
    assert {(m.labels["over"], m.labels["w"], m.unit) for m in report.measures} == {
        ("gloo", 4, "us"), ("gloo", 4, "GB/s")
    }  # fmt: skip
    assert all(m.value > 0 for m in report.measures)
    assert not launch.survivors()


@needs_torch
def test_a_stalled_rank_is_named_and_all_end_with_6(start: Start) -> None:
    launch = start("--check", VERSIONS, "--check", SUMS, "--plant=stall:2", "--limit-s=5")
    launch.wait_for_sums()
    begin = time.monotonic()
    assert launch.codes() == [6, 6]
    assert time.monotonic() - begin < 15  # the limit, of which 2 s are over, and 10 s
    for node in range(2):
        report = launch.report(node)
        assert report.verdict is not None
        assert report.verdict.exit_code == 6
        assert [c.outcome for c in report.checks] == ["passed", "hung"]
        states = named(report)
        assert {r: s.state for r, s in states.items()} == {
            0: "left", 1: "left", 2: "hung", 3: "left"
        }  # fmt: skip
        assert "_fault" in states[2].step
        assert "add up over gloo" in states[0].step
        assert sorted(e.rank for e in report.evidence) == [0, 1, 2, 3]
        assert all("Thread" in e.stacks for e in report.evidence)
        assert "_fault" in report.evidence[2].stacks
    assert not launch.survivors()


@needs_torch
@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_dies_is_named(start: Start, rank: int) -> None:
    launch = start("--check", VERSIONS, "--check", SUMS, f"--plant=die:{rank}")
    assert set(launch.codes()) == {1}
    for node in range(2):
        report = launch.report(node)
        assert [c.outcome for c in report.checks] == ["passed", "died"]
        died = [s for s in named(report).values() if s.state == "died"]
        assert [s.rank for s in died] == [rank]
        assert SUMS in died[0].step
        assert {e.rank for e in report.evidence} == {0, 1, 2, 3} - {rank}
    assert not launch.survivors()


@needs_torch
@pytest.mark.parametrize("node", [0, 1])
def test_a_torchrun_that_is_killed_takes_all_ranks_with_it(start: Start, node: int) -> None:
    launch = start("--check", VERSIONS, "--check", SUMS, "--plant=stall:1", "--limit-s=100")
    launch.wait_for_sums()
    os.kill(launch.agent(node), signal.SIGKILL)
    assert launch.codes() == [1, 1]
    for place in range(2):
        report = launch.report(place)
        assert report.checks[-1].outcome == "died"
        died = {r: s for r, s in named(report).items() if s.state == "died"}
        assert sorted(died) == [2 * node, 2 * node + 1], place
        assert all(f"torchrun of node {node}" in s.detail for s in died.values())
        assert SUMS in report.checks[-1].name
    assert not launch.survivors()


@needs_torch
def test_a_stopped_rank_is_missed_and_ended(start: Start) -> None:
    options = ("--plant=stall:1", "--limit-s=100", "--silent-s=4")
    launch = start("--check", VERSIONS, "--check", SUMS, *options)
    launch.wait_for_sums()
    os.kill(launch.rank(3), signal.SIGSTOP)
    assert launch.codes() == [6, 6]
    for node in range(2):
        states = named(launch.report(node))
        assert [r for r, s in states.items() if s.state == "hung"] == [3]
        assert "not been heard" in states[3].detail
    assert not launch.survivors()


def test_a_rank_that_stands_still_is_ended_from_outside(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as one, subprocess.Popen(["sleep", "60"]) as other:
        for name, process in (("0", one), ("1", other)):
            started = Sibling.of(process.pid).started
            (tmp_path / name).write_text(f"{process.pid} {started}")
        os.utime(tmp_path / "0", (0, 0))
        (tmp_path / "2").write_text(f"{other.pid} 1")  # its number, once another process's
        os.utime(tmp_path / "2", (0, 0))
        end_stopped(tmp_path)
        assert one.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


def test_what_is_missing_is_said_before_anything_starts(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smoke_tests.launch", f"--out={tmp_path / 'out'}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        [*command, "--nodes=2", "--node-rank=1"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "--master-addr" in done.stderr
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2",
             "SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_NODEID": "1"}  # fmt: skip
    done = subprocess.run(
        [*command, "--dry", "--kind=cpu"],
        cwd=root,
        env=environment | slurm,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes=2 --node-rank=1" in done.stdout
    assert "--master-addr=gpu3 --master-port=20112" in done.stdout
    assert done.stdout.strip().endswith("--kind=cpu")
    assert not (tmp_path / "out").exists()
