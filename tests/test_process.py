"""Programs of the host: what they say while they run, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tdstack.engines.docker import lines_of
from tdstack.errors import TimeLimitError
from tdstack.process import run

# It forks a child that outlives it unless the group ends: both ignore that a pipe closes.
FORKS = 'sh -c \'echo $$ >> "$PIDS"; sleep 60\' & echo $! >> "$PIDS"; sleep 60'


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def all_ended(pids: Path) -> bool:
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) >= 2
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in started)


def test_stderr_is_heard_line_by_line_while_the_program_runs(tmp_path: Path) -> None:
    go, heard = tmp_path / "go", []

    def say(line: str) -> None:
        heard.append(line)
        go.touch()  # the program ends only when its first line has arrived

    script = f'echo one >&2; echo data; until [ -e "{go}" ]; do sleep 0.02; done; printf two >&2'
    done = run(["sh", "-c", script], say=say, limit_s=30)
    assert heard == ["one", "two"]
    assert (done.returncode, done.stdout, done.stderr) == (0, "data\n", "one\ntwo")


def test_without_a_listener_stderr_is_returned_alone() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 5"])
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")


def test_broken_text_is_heard_and_does_not_stop_the_program() -> None:
    heard: list[str] = []
    done = run(["sh", "-c", r"printf '\377\n' >&2; echo end >&2"], say=heard.append)
    assert (done.returncode, heard[-1], len(heard)) == (0, "end", 2)


# Its child has a group of its own, and ends only when the program ends it.
APART = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"], process_group=0)
def end(*_):
    child.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
with open(os.environ["PIDS"], "w") as out:
    print(os.getpid(), child.pid, sep=chr(10), file=out)
time.sleep(60)
"""


@pytest.mark.parametrize("listening", [True, False])
def test_at_the_time_limit_what_the_program_forked_ends_too(
    tmp_path: Path, listening: bool
) -> None:
    pids = tmp_path / "pids"
    begin = time.monotonic()
    with pytest.raises(TimeLimitError):
        run(
            ["sh", "-c", FORKS],
            environment={"PIDS": str(pids)},
            limit_s=1,
            say=(lambda _: None) if listening else None,
            group=True,
        )
    assert time.monotonic() - begin < 20
    assert all_ended(pids)


def test_an_interruption_ends_what_the_program_forked(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", FORKS], environment={"PIDS": str(pids)}, limit_s=30, group=True)
    timer.join()
    assert all_ended(pids)


def test_a_program_may_end_itself_what_left_its_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(TimeLimitError):
        run([sys.executable, "-c", APART], environment={"PIDS": str(pids)}, limit_s=2, group=True)
    assert all_ended(pids)


def test_a_program_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdstack.process.GRACE_S", 0.5)
    pids, deaf = tmp_path / "pids", f"trap '' TERM; {FORKS}"
    with pytest.raises(TimeLimitError):
        run(["sh", "-c", deaf], environment={"PIDS": str(pids)}, limit_s=1, group=True)
    assert all_ended(pids)


def test_lines_are_whole_however_a_log_is_cut() -> None:
    text = "one\n\nzwölf\nthe rest".encode()
    for size in (1, 2, 5, len(text)):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(lines_of(pieces)) == ["one", "", "zwölf", "the rest"]
    assert list(lines_of([b"one\n"])) == ["one"]
    assert list(lines_of([])) == []
