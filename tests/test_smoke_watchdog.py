"""A run from outside: a rank stops or dies, the run is interrupted or killed; nothing is left."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import pytest

from smoke_tests.leash import is_gone
from smoke_tests.records import read
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)

LIMIT_S = 8.0
END_S = 10.0
MARK = "SMOKE_TEST_MARK"
# What `invoke smoke` runs, without the tiers below cpu, which would take most of the time.
DRIVER = """
import sys
from pathlib import Path
from tdstack.smoke.run import Options, command, run_checks
options = Options(tier="cpu", ranks=2, limit={limit})
words = [*command(options, Path({file!r})), "-k", "cpu-w2"]
try:
    sys.exit(run_checks(Path({root!r}), words))
except KeyboardInterrupt:
    sys.exit(130)
"""


@dataclass
class Running:
    """A run with two ranks, and what tells its processes from all others."""

    process: subprocess.Popen[bytes]
    mark: str
    file: Path
    shm: set[str]

    def pids(self) -> dict[int, str]:
        """All its processes that live, with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                if ours and not is_gone(int(folder.name)):
                    found[int(folder.name)] = (folder / "cmdline").read_text()
        return found

    def ranks(self) -> list[int]:
        """The processes that were forked from one that waits for requests to fork."""
        servers = {pid for pid, line in self.pids().items() if "forkserver" in line}
        return sorted(pid for pid in servers if _parent(pid) in servers)

    def wait_for_checks(self) -> None:
        """Until a check has passed, so that all ranks are at work."""
        deadline = time.monotonic() + 60
        while not (self.file.exists() and '"kind": "check"' in self.file.read_text()):
            assert time.monotonic() < deadline, "no check was run"
            assert self.process.poll() is None, "it has ended"
            time.sleep(0.05)

    def require_nothing_left(self, limit_s: float = 15.0) -> None:
        """Nothing in the process table, in /dev/shm, or in the folder of temporary files."""
        deadline = time.monotonic() + limit_s
        while (left := self.pids()) or (folders := _folders()):
            assert time.monotonic() < deadline, (left, folders if not left else "")
            time.sleep(0.1)
        assert _shm() == self.shm


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _shm() -> set[str]:
    # Hidden ones are of browsers, which may run beside this.
    return {path.name for path in Path("/dev/shm").iterdir() if path.name[0] != "."}


def _folders() -> list[str]:
    own = os.environ["TMPDIR"]
    return [path.name for path in Path(own).glob("smoke-*")]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Start the run; wait until it is at work."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    assert gettempdir() != str(folder), "this process keeps its own"
    mark = uuid.uuid4().hex
    file = tmp_path / "run.jsonl"
    code = DRIVER.format(limit=LIMIT_S, file=str(file), root=str(ROOT))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = Running(process, mark, file, _shm())
    try:
        run.wait_for_checks()
        yield run
    finally:
        for pid in run.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def test_a_rank_that_is_stopped_ends_the_run_with_6(running: Running) -> None:
    ranks = running.ranks()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGSTOP)
    begin = time.monotonic()
    assert running.process.wait(60) == 6
    # The step may have begun when the rank was stopped, and the others' is over later.
    assert time.monotonic() - begin < LIMIT_S + END_S
    running.require_nothing_left()
    result = read(running.file)
    (check,) = (c for c in result.checks if c.outcome != "passed")
    assert check.outcome == "hung"
    assert [r.state for r in check.ranks if "stopped by a signal" in r.detail] == ["hung"]
    assert check.ranks[0].step
    assert {e.rank for e in result.evidence if e.check == check.name} == {0, 1}
    for evidence in result.evidence:
        assert "smoke_tests" in evidence.stacks
        assert evidence.environment["TRITON_INTERPRET"] == "1"
        assert "/dev/shm" in evidence.topology
        assert MARK not in evidence.environment
    assert result.verdict
    assert result.verdict.exit_code == 6


def test_a_rank_that_is_killed_fails_its_check_and_the_run_goes_on(running: Running) -> None:
    os.kill(running.ranks()[0], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while True:
        result = read(running.file)
        states = [c.outcome for c in result.checks]
        if "died" in states and states[-1] == "passed":
            break
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    running.process.send_signal(signal.SIGINT)
    running.process.wait(20)
    running.require_nothing_left()
    (check,) = (c for c in result.checks if c.outcome != "passed")
    assert check.outcome == "died"
    assert (check.ranks[0].state, check.ranks[0].detail) == ("died", "killed by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing_but_what_it_found(
    running: Running, number: signal.Signals
) -> None:
    os.kill(running.ranks()[0], signal.SIGSTOP)  # it cannot end itself
    running.process.send_signal(number)
    running.process.wait(20)
    assert running.process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    running.require_nothing_left()
    result = read(running.file)
    assert result.checks
    assert result.verdict is None, "it was cut off"


def test_a_run_whose_pytest_is_killed_leaves_nothing(running: Running) -> None:
    (pytest_pid,) = (pid for pid in running.pids() if _parent(pid) == running.process.pid)
    os.kill(pytest_pid, signal.SIGKILL)
    assert running.process.wait(20) != 0
    running.require_nothing_left()
    assert read(running.file).verdict is None
