"""Processes that do not outlive who started them, and what the kernel says of one. Linux."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(number: int = signal.SIGKILL, parent: int = 0) -> None:
    """Get the signal when the parent ends, however it ends; SIGKILL reaches stopped ones too.

    ``parent`` is the process that is meant: one that is gone already sends nothing any more.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), number)


def state_of(pid: int) -> str:
    """Return the state of a process as one letter (R, S, D, T stopped, Z ended); empty for none."""
    try:
        # The program's name stands in brackets, and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped it."""
    return state_of(pid) in ("T", "t")


def is_gone(pid: int) -> bool:
    """Whether it has ended."""
    return state_of(pid) in ("", "Z", "X")
