"""`invoke bench`: so far, what the kernels' dispatch table chooses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tdstack.errors import UsageError

EXPECTED = "--explain M,N,K,W,ARCH, for example --explain 16,8192,1024,8,sm_90"


def explain(root: Path, shape: str) -> None:
    """Print the choice for a shape `M,N,K,W,ARCH`, and the rules that did not fit.

    Raises: UsageError for a shape that is not one, or is not served.
    """
    parts = shape.split(",")
    if len(parts) != 5:
        raise UsageError("a shape is needed", where=f"--explain {shape}", expected=EXPECTED)
    # In a process of its own: the kernels' package is not part of the toolkit's environment.
    done = subprocess.run(
        [sys.executable, "-m", "gemm_allreduce.dispatch", *parts],
        cwd=root / "kernels" / "src",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise UsageError(
            "the shape is not served",
            where=f"--explain {shape}",
            got=words[-1].partition("error: ")[2] if words else "",
            expected=EXPECTED,
        )
    print(done.stdout, end="")
