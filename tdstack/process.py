"""Running the programs of the host, with errors that name the program and its last words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tdstack.errors import HostError, TimeLimitError


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
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end and return it, whatever its exit status.

    Raises: HostError when the program cannot be started; TimeLimitError past `limit_s`.
    """
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            timeout=limit_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostError(f"{command[0]} is missing on this host", where="PATH") from error
    except subprocess.TimeoutExpired as error:
        raise TimeLimitError(
            f"{command[0]} ran longer than {limit_s:.0f} s", where=" ".join(command)
        ) from error


def last_words(done: subprocess.CompletedProcess[str], lines: int = 12) -> str:
    """Return the tail of what a failed program printed."""
    text = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "\n".join(text[-lines:])
