"""`invoke bench`: what the kernels' dispatch table chooses, and what launching them costs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tdstack.errors import CheckFailed, HostError, UsageError

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


def launch(root: Path) -> dict[str, Any]:
    """Time first calls and launches on this host's GPU; return the report.

    Raises: HostError without torch, Triton or a GPU; CheckFailed when a measurement fails.
    """
    missing = [name for name in ("torch", "triton") if not importlib.util.find_spec(name)]
    if missing:
        raise HostError(
            "nothing can be timed here",
            got=f"not installed: {', '.join(missing)}",
            remedy="run inside an image of tdstack, on a host with a GPU",
        )
    import torch

    if not torch.cuda.is_available():
        raise HostError("timing launches needs a GPU", got=f"torch {torch.__version__} sees none")
    path = [str(root / "kernels" / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder, "launch.json")
        done = subprocess.run(
            [sys.executable, str(root / "kernels/benchmarks/launch.py"), "--out", str(file)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            stdout=sys.stderr,
            check=False,
        )
        if done.returncode:
            raise CheckFailed(
                "the measurement failed; what it said is above",
                where="kernels/benchmarks/launch.py",
                remedy="cubins must fit this package: see docs/compile.md",
            )
        report: dict[str, Any] = json.loads(file.read_text())
    return report
