"""`invoke bench`: what the dispatch table chooses, what launches cost, fused against serial."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smoke_tests.bands import explain as explain_measure
from smoke_tests.records import RecordError, read
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


def fused(root: Path, *, quick: bool, out: str) -> dict[str, Any]:
    """Time the fused kernels against the serial way on this host's GPUs; return the verdict.

    Raises: UsageError as `new_file`; HostError without torch or a GPU; CheckFailed when a result
    was wrong or a measure is outside of its band.
    """
    file = new_file(out, "the records need")
    if not importlib.util.find_spec("torch"):
        remedy = "run inside an image of tdstack, on a host with a GPU"
        raise HostError("nothing can be timed here", got="not installed: torch", remedy=remedy)
    words = fused_command(gpus("timing kernels needs a GPU"), quick=quick, file=file)
    status = subprocess.run(words, cwd=root, stdout=sys.stderr, check=False).returncode
    try:
        result = read(file)
    except (OSError, RecordError) as error:
        raise CheckFailed(
            "nothing was measured; what was said is above", got=f"exit code {status}: {error}"
        ) from None
    wrong = [check.name for check in result.checks if check.outcome != "passed"]
    wrong += [explain_measure(m) for m in result.measures if m.outcome == "failed"]
    found = {"records": str(file), "measures": len(result.measures), "wrong": wrong}
    if status or wrong or result.verdict is None:
        raise CheckFailed(
            "a measurement failed; what was said is above",
            where="; ".join(wrong) or str(file),
            got=f"exit code {status}",
            details=found,
        )
    return found


def new_file(out: str, what: str) -> Path:
    """Return the path of a file to be written, before the work that it is for.

    Raises: UsageError, saying `what` needs one, when it exists or its folder cannot take it.
    """
    file = Path(out).expanduser().resolve()
    if file.exists():
        raise UsageError(f"{what} a new file", where=f"--out {out}", got="it exists")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        why = "cannot be written" if file.parent.is_dir() else "is no folder"
        raise UsageError(f"{what} a new file", where=f"--out {out}", got=f"{file.parent} {why}")
    return file


def fused_command(count: int, *, quick: bool, file: Path) -> list[str]:
    """Return what times them: a process per GPU, or on one GPU virtual ranks. Pure."""
    words, several = ranks_command(count)
    words += ["--ranks", "processes" if several else "virtual"]
    words += [] if several else ["--w", "8" if quick else "1,2,4,8"]
    words += ["--quick"] if quick else []
    return [*words, "--out", str(file)]


def ranks_command(count: int) -> tuple[list[str], bool]:
    """Return what starts the measuring code, and whether as a process per GPU. Pure."""
    processes = max(w for w in (1, 2, 4, 8) if w <= count)
    words = [sys.executable, "-m"]
    if processes > 1:
        words += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [*words, "smoke_tests.measure"], processes > 1


def gpus(what: str) -> int:
    """Return how many GPUs torch sees. Raises: HostError, saying ``what`` needs one, for none."""
    import torch

    if not torch.cuda.is_available():
        raise HostError(what, got=f"torch {torch.__version__} sees none")
    return torch.cuda.device_count()


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
    gpus("timing launches needs a GPU")
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
