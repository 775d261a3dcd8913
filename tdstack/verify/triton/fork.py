"""What tells Triton-distributed from stock Triton, on disk and in a wheel."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Literal

Library = Literal["distributed", "stock", "none"]

LIBRARY = "triton/_C/libtriton.so"
# Only the fork's library holds this name; `triton.__version__` is 3.4.0 on both.
FINGERPRINT = b"distributed.get_rank"
# The label of a fork that was installed under the name `triton`: 3.4.0+dist.<sha8>.
LABEL = "+dist."
# Top-level packages of a Triton-distributed wheel.
PACKAGES = ("triton", "triton_dist", "little_kernel")
# Distributions that own the package `triton`: stock's names and the fork's.
STOCK_NAMES = frozenset({"triton", "pytorch-triton", "triton-nightly"})
FORK_NAME = "triton-dist"
NAMES = STOCK_NAMES | {FORK_NAME}


def library_of(path: Path) -> Library:
    """Return whose libtriton.so this is, by fingerprint; `none` for no file or an empty one."""
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            return "distributed" if view.find(FINGERPRINT) >= 0 else "stock"
    except (OSError, ValueError):
        return "none"
