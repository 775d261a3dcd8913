"""Which tests may run beside which, when two processes share them (`invoke test`).

Those of one group run one after another, in one process. Every other file is a group of its own.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Final

ENGINES: Final = "engines"
"""They share daemons, registries, Slurm's ports, the user's store, and images that others built."""
RANKS: Final = "ranks"
"""They start ranks, or look at what is left of ranks in /dev/shm and in the process table."""

_OF_ENGINES: Final = (
    *("ansible", "attest", "build", "bundle", "cluster_images", "compile", "compiler", "diff"),
    *("doctor_probes_software", "keyless", "rebuild", "registry", "scripts_images", "ship"),
    *("kernel_wheels", "slurm", "smoke_image", "verify_bitcode", "verify_cubins"),
    "verify_nvshmem",
)
_OF_RANKS: Final = (
    *("bench_tune", "cloud_init", "kubernetes_pods", "measure", "prefix_steps", "smoke"),
    "verify_swap",
)
"""Beginnings of the names of files below tests/, without test_."""


def group_of(path: PurePath) -> str:
    """Return the group of a test file, relative to the checkout. Pure."""
    if path.parts[0] != "tests":
        return RANKS
    name = path.stem.removeprefix("test_")

    def among(subjects: tuple[str, ...]) -> bool:
        return any(name == subject or name.startswith(f"{subject}_") for subject in subjects)

    if among(_OF_ENGINES):
        return ENGINES
    return RANKS if among(_OF_RANKS) else name


def order_of(group: str) -> int:
    """Return when a group begins: the long ones first, so that others fill what time is left."""
    return {ENGINES: 0, RANKS: 1}.get(group, 2)
