"""Tasks in forked processes, and what is told of them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gemm_allreduce
from gemm_allreduce.forked import run_forked
from gemm_allreduce.progress import PACE_S, Progress


def _work(task: str) -> int:
    if task == "fail":
        raise ValueError("it failed")
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(3)
    return os.getpid()


def test_each_task_ends_for_itself() -> None:
    tasks = ["a", "fail", "kill", "leave", "b"]
    done = sorted(run_forked(tasks, _work, 2), key=lambda one: one.index)
    assert [one.index for one in done] == list(range(5))
    assert [one.error for one in done] == [
        "",
        "it failed",
        "its process was killed by signal 9 and gave no result; "
        "this host may have too little memory for as many jobs",
        "its process ended with code 3 and gave no result",
        "",
    ]
    processes = {one.result for one in done if one.result}
    assert len(processes) == 2 and os.getpid() not in processes


def test_nothing_to_do() -> None:
    assert list(run_forked([], _work, 4)) == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_no_more_than_so_many_at_a_time(jobs: int, tmp_path: Path) -> None:
    def work(task: int) -> int:
        mark = tmp_path / str(task)
        mark.touch()
        time.sleep(0.1)
        at_once = len(list(tmp_path.iterdir()))
        mark.unlink()
        return at_once

    most = max(one.result or 0 for one in run_forked(range(6), work, jobs))
    assert 1 <= most <= jobs
    assert jobs == 1 or most > 1


def test_a_large_result_arrives() -> None:
    (done,) = run_forked([0], lambda task: bytes(10_000_000), 1)
    assert done.result == bytes(10_000_000)


def test_children_of_a_parent_that_is_killed_end_with_their_task(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys, time\n"
        "from gemm_allreduce.forked import run_forked\n"
        "def work(_):\n"
        "    pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(1)\n"
        "    return bytes(1_000_000)  # more than a pipe holds\n"
        "list(run_forked(range(3), work, 3))\n"
    )
    sources = str(Path(gemm_allreduce.__file__).resolve().parent.parent)
    command = [sys.executable, "-c", script, str(tmp_path)]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": sources})
    _until(lambda: len(list(tmp_path.iterdir())) == 3)
    parent.kill()
    parent.wait()
    children = [int(path.name) for path in tmp_path.iterdir()]
    _until(lambda: not [pid for pid in children if Path(f"/proc/{pid}/cmdline").exists()])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_leaving_early_kills_what_runs(tmp_path: Path) -> None:
    def work(task: int) -> int:
        if task:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        return task

    started = time.monotonic()
    for done in run_forked([0, 1], work, 2):
        assert done.index == 0
        break
    (pid,) = (int(path.name) for path in tmp_path.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert time.monotonic() - started < 30


# ------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_a_readable_pace() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress({"sm_80": 30, "sm_90": 2}, stream, clock)
    for _ in range(30):
        clock.now += 1
        progress.count("sm_80", 1_000_000, reused=False)
    progress.count("sm_90", None, reused=False)
    progress.count("sm_90", 500_000, reused=True)
    progress.close()
    assert PACE_S == 10
    assert stream.getvalue().splitlines() == [
        "10 of 32 cubins, sm_80 10 of 30, 10 s",
        "20 of 32 cubins, sm_80 20 of 30, 20 s",
        "sm_80: 30 cubins, 0 reused, 30.00 MB, after 30 s",
        "sm_90: 2 cubins, 1 FAILED, 1 reused, 0.50 MB, after 30 s",
    ]


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress({"sm_90": 3}, stream, clock)
    progress.count("sm_90", 1, reused=False)
    progress.count("sm_90", 1, reused=False)
    progress.say("a word")
    progress.count("sm_90", 1, reused=False)
    clear = "\r\x1b[K"
    assert stream.getvalue() == (
        f"1 of 3 cubins, sm_90 1 of 3, 0 s{clear}2 of 3 cubins, sm_90 2 of 3, 0 s{clear}a word\n"
        "sm_90: 3 cubins, 0 reused, 0.00 MB, after 0 s\n"
    )


def test_no_half_line_stays() -> None:
    stream = Terminal()
    progress = Progress({"sm_90": 3}, stream, Clock())
    progress.count("sm_90", 1, reused=False)
    progress.close()
    assert stream.getvalue().endswith("\r\x1b[K")
