"""Copies of the checkout that a test may change, and one with few kernels to compile."""

from __future__ import annotations

import shutil
from pathlib import Path

CHECKOUT = (
    "LICENSE", "images", "kernels", "scripts", "smoke_tests", "tdstack", "tasks.py",
    "versions.lock",
)  # fmt: skip
TABLE = Path("kernels/src/gemm_allreduce/dispatch.toml")
# One kernel of each algorithm, for every type of operand. The compiler's --quick names a shape of
# 8 ranks.
FEW_KERNELS = """
[[rule]]
algorithm = "one_shot"
world_sizes = [8]
max_tokens = 16
tile = [16, 128, 128, 3, 8]

[[rule]]
algorithm = "two_shot"
world_sizes = [8]
tile = [128, 128, 64, 3, 8]
comm_ctas = 16
"""


def copy_checkout(root: Path, copy: Path) -> Path:
    """Copy what the verbs need."""
    copy.mkdir(parents=True)
    for name in CHECKOUT:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def few_kernels(root: Path, copy: Path) -> Path:
    """Copy the checkout with a dispatch table of two rules: what else it is stays as it is.

    A cubin takes 1.5 s of a core; what a build does with them does not depend on their number.
    """
    copy_checkout(root, copy)
    assert (copy / TABLE).is_file()
    (copy / TABLE).write_text(FEW_KERNELS)
    return copy
