"""What ranks that were killed leave: files in /dev/shm that nobody can reach any more."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

SHM: Final = Path("/dev/shm")
PATTERNS: Final = ("*nvshmem*", "nccl-*", "torch_*", "sem.mp-*")
"""Of NVSHMEM, NCCL, PyTorch and multiprocessing."""


def present() -> frozenset[str]:
    """Return the names of files in /dev/shm that ranks may have made."""
    return frozenset(path.name for pattern in PATTERNS for path in SHM.glob(pattern))


def sweep(before: frozenset[str]) -> list[str]:
    """Remove what came since ``before``, is ours, and is in no process's memory; return its names.

    To be called when the ranks have ended. Other runs on this host keep theirs: what they use is
    mapped or open.
    """
    new = present() - before
    used = _in_use() if new else set()
    removed = []
    for name in sorted(new - used):
        with contextlib.suppress(OSError):
            if (SHM / name).stat().st_uid == os.getuid():
                (SHM / name).unlink()
                removed.append(name)
    return removed


def _in_use() -> set[str]:
    """Return the names of files in /dev/shm that a process has mapped or open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for line in process.joinpath("maps").read_text().splitlines():
                _, there, name = line.partition(f"{SHM}/")
                if there:
                    found.add(name)
        with contextlib.suppress(OSError):
            for descriptor in process.joinpath("fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith(f"{SHM}/"):
                        found.add(target.removeprefix(f"{SHM}/"))
    return found
