"""`invoke smoke`: the checks of smoke_tests/, on the ranks of one tier, as a verdict."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tdstack.console import say
from tdstack.errors import CheckFailed, ExitCode, HostError, TimeLimitError, UsageError

TIERS = ("cpu", "gpu", "multi-gpu")
RANKS = (0, 1, 2, 4, 8)
KERNELS = ("auto", "cubins", "jit")


def smoke(
    root: Path, tier: str, ranks: int, *, controls: bool, kernels: str = "auto"
) -> dict[str, Any]:
    """Run a tier; return its report (schema in smoke_tests/report.py).

    Raises: UsageError for an unknown tier, number of ranks or source of kernels; HostError for
    what this host lacks; CheckFailed naming the checks that failed; TimeLimitError when ranks hung.
    """
    if tier not in TIERS:
        raise UsageError("unknown tier", where=f"--tier {tier}", expected=", ".join(TIERS))
    if ranks not in RANKS:
        expected = "1, 2, 4 or 8; 0 for the tier's own"
        raise UsageError("no such number of ranks", where=f"--ranks {ranks}", expected=expected)
    if kernels not in KERNELS:
        expected = ", ".join(KERNELS)
        raise UsageError("unknown value", where=f"--kernels {kernels}", expected=expected)
    if kernels != "auto" and tier == "cpu":
        raise UsageError(
            "cubins need a GPU: on CPUs the kernels are interpreted",
            where=f"--kernels {kernels}",
            expected="--tier gpu or multi-gpu",
        )
    _require_host(tier, interpreted=tier == "cpu" or controls)
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        file = Path(folder, "report.json")
        command = [sys.executable, "-m", "pytest", "smoke_tests", "-p", "no:cacheprovider", "-ra"]
        command += ["-q", f"--tier={tier}", f"--ranks={ranks}", f"--report={file}"]
        command += ["--controls"] if controls else []
        command += [f"--kernels={kernels}"] if kernels != "auto" else []
        # stdout is for the report: what pytest says goes where the rest of our words go.
        done = subprocess.run(command, cwd=root, stdout=sys.stderr, check=False)
        if not file.is_file():
            raise HostError("the checks did not run", got=f"pytest's exit code {done.returncode}")
        report: dict[str, Any] = json.loads(file.read_text())
    failed = [check["name"] for check in report["checks"] if check["outcome"] != "passed"]
    if done.returncode == ExitCode.TIME_LIMIT:
        raise TimeLimitError(
            "ranks hung, and were ended; their stacks are above",
            where=", ".join(failed),
            details=report,
        )
    if failed or done.returncode:
        raise CheckFailed(
            f"{len(failed)} of {len(report['checks'])} checks failed",
            where=", ".join(failed),
            details=report,
        )
    say(f"smoke {tier}: {len(report['checks'])} checks passed")
    return report


def _require_host(tier: str, *, interpreted: bool) -> None:
    # Where there are cubins nothing is compiled; the kernels themselves say what is missing.
    needed = ("torch", "numpy", *(["triton"] if interpreted else []))
    missing = [name for name in needed if not importlib.util.find_spec(name)]
    if missing:
        raise HostError(
            "the checks cannot run here",
            got=f"not installed: {', '.join(missing)}",
            remedy="scripts/bootstrap.sh smoke installs a CPU build of torch where it can be had; "
            "or run inside an image with torch",
        )
    if tier != "cpu":
        import torch

        count = torch.cuda.device_count()
        if count < (2 if tier == "multi-gpu" else 1):
            raise HostError(
                f"the tier {tier} needs {'two GPUs' if tier == 'multi-gpu' else 'a GPU'}",
                got=f"torch {torch.__version__} sees {count}",
                remedy="run `invoke smoke --tier cpu`, which needs none",
            )
