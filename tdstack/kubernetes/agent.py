"""The agent of a node: runs the checks now and then, and has the node say what they found.

python -m tdstack.kubernetes.agent --node NAME --image REF --line cu124 --check NAME=COMMAND ...

Standard library only. It ends when it is told to (SIGTERM), and for no other reason: whatever fails
is said in its log and tried again. Files in --state are for the pod's probes: `alive` is touched
while it works, `reported` is there after the first report.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from tdstack.kubernetes.api import NodeApi
from tdstack.kubernetes.options import Given, given_of
from tdstack.kubernetes.report import Reporter
from tdstack.kubernetes.verdict import Ended, Verdict, judge

BEAT_S: Final = 1.0
END_S: Final = 5.0
"""For a killed process to be gone: one that waits for a driver may never be."""
MAX_OUTPUT: Final = 4 << 20


class Stopped(BaseException):
    """SIGTERM or SIGINT came; raised wherever the agent is."""


@dataclass
class Agent:
    """One node's checks, every `interval_s` seconds, each with a limit of `limit_s`.

    Attributes:
        checks: name and command; the command prints a report of findings as JSON.
        tolerated: names of findings that do not make a node unfit.
        report: says a verdict for at most so many seconds; returns whether it was heard.
        stuck: commands that could not be killed, by name.
    """

    checks: Sequence[tuple[str, Sequence[str]]]
    tolerated: frozenset[str]
    report: Callable[[Verdict, float], bool]
    state: Path
    interval_s: float
    limit_s: float
    stuck: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def work(self) -> NoReturn:
        """Check and report until Stopped is raised."""
        while True:
            begin = time.monotonic()
            verdict = judge([self.run(*check) for check in self.checks], self.tolerated)
            found = f" ({verdict.reason}): {verdict.text}" if verdict.reason else ""
            say(f"{verdict.state}{found}")
            if self.report(verdict, self.interval_s):
                self._touch("reported")
            self.wait(begin + self.interval_s - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Wait, alive."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._touch("alive")
            time.sleep(min(BEAT_S, left))

    def run(self, name: str, command: Sequence[str]) -> Ended:
        """Run one check; past its limit it is killed with all that it started."""
        if (old := self.stuck.pop(name, None)) is not None and old.poll() is None:
            self.stuck[name] = old  # another one would be stuck beside it
            return Ended(name, None, "", self.limit_s)
        written = self.state / f"{name}.json"
        try:
            with written.open("wb") as stream:
                child = subprocess.Popen(command, stdout=stream, start_new_session=True)
        except OSError as error:
            say(f"error: {name}: {error}")
            return Ended(name, 127, "", self.limit_s)
        try:
            self._wait_for(child, self.limit_s)
            code = child.poll()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        self._wait_for(child, END_S)
        if child.poll() is None:
            self.stuck[name] = child
        with written.open("rb") as stream:
            out = stream.read(MAX_OUTPUT).decode(errors="replace")
        return Ended(name, code, out, self.limit_s)

    def _wait_for(self, child: subprocess.Popen[bytes], limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while child.poll() is None and (left := end - time.monotonic()) > 0:
            self._touch("alive")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(BEAT_S, left))

    def _touch(self, name: str) -> None:
        # On a disk that is full the probe finds the file old, and the pod comes anew.
        with contextlib.suppress(OSError):
            (self.state / name).touch()


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until SIGTERM; return the exit code, which is 0 then."""
    given = given_of(arguments)

    def stop(_number: int, _frame: object) -> NoReturn:
        raise Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        given.state.mkdir(parents=True, exist_ok=True)
        (given.state / "reported").unlink(missing_ok=True)
        agent_of(given).work()
    except Stopped:
        say("told to end")
    return 0


def agent_of(given: Given) -> Agent:
    """Return the agent that the options describe."""
    api = NodeApi(given.server, given.credentials)
    reporter = Reporter(api, given.node, given.checked, say)
    agent = Agent(
        given.checks,
        given.tolerated,
        reporter.report,
        given.state,
        given.interval_s,
        given.limit_s,
    )
    reporter.wait = agent.wait
    return agent


def say(text: str) -> None:
    """Print one line of the log."""
    print(f"node-check: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
