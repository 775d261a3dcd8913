"""Running the programs of the host, with errors that name the program and its last words."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tdstack.errors import HostError, TimeLimitError

GRACE_S = 10.0


def find(program: str, remedy: str) -> str:
    """Return the path of `program`.

    Raises: HostError with `remedy` when it is not on PATH.
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise HostError(f"{program} is missing on this host", where="PATH", remedy=remedy)
    return found


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_s: float | None = None,
    say: Callable[[str], None] | None = None,
    group: bool = False,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end and return it, whatever its exit status.

    `stdin` is what it may read there.
    `say` gets each line of its stderr as it is written. With `group` an interruption or the time
    limit also ends what the program started: it has GRACE_S to do so itself, as only it knows of
    processes that left its group.
    Raises: HostError when the program cannot be started; TimeLimitError past `limit_s`.
    """
    try:
        with (
            _listening(say) as (heard, ear),
            subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=ear,
                text=True,
                errors="replace",
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                process_group=0 if group else None,
            ) as process,
        ):
            try:
                out, error_text = process.communicate(stdin, timeout=limit_s)
            except BaseException:
                if group:
                    _end_group(process)
                process.kill()
                raise
        text = "".join(heard) if say else error_text
        return subprocess.CompletedProcess(list(command), process.returncode, out, text)
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} is missing on this host", where="PATH") from error
    except subprocess.TimeoutExpired as error:
        raise TimeLimitError(
            f"{command[0]} ran longer than {limit_s:.0f} s", where=" ".join(command)
        ) from error


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(GRACE_S)
    finally:  # a second interruption comes here at once
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _listening(say: Callable[[str], None] | None) -> Iterator[tuple[list[str], int]]:
    """Yield what is heard, line by line, and what a program takes for its stderr."""
    heard: list[str] = []
    if say is None:
        yield heard, subprocess.PIPE
        return
    reading, writing = os.pipe()

    def listen() -> None:
        with open(reading, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                heard.append(line)
                say(line.rstrip("\n"))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield heard, writing
    finally:
        os.close(writing)
        thread.join(10)  # whom the program left behind could hold the other end for ever


def last_words(done: subprocess.CompletedProcess[str], lines: int = 12) -> str:
    """Return the tail of what a failed program printed."""
    text = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "\n".join(text[-lines:])


def json_report(text: str) -> dict[str, Any]:
    """Return the JSON object that a program printed, or an empty one where it printed none."""
    try:
        report = json.loads(text)
    except ValueError:
        report = {}
    return report if isinstance(report, dict) else {}
