"""Runs the programs of the checks that need no ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
GPULESS: Final = ROOT / "tdstack" / "verify" / "gpuless.py"
VERIFY: Final = ROOT / "scripts" / "tdstack-verify"
_LIMIT_S: Final = 300.0


def run(
    words: Sequence[str], variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this environment's Python, with the package that the checks use, to its end.

    Raises: subprocess.TimeoutExpired.
    """
    path = [str(p) for p in (ROOT / "kernels" / "src", ROOT) if p.is_dir()]
    path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_LIMIT_S,
        check=False,
    )


def compiler(words: Sequence[str]) -> list[str]:
    """Return the command for a program that imports Triton: Triton-distributed asks for a GPU."""
    return [str(GPULESS), *words] if GPULESS.is_file() else list(words)


def report_of(done: subprocess.CompletedProcess[str]) -> Mapping[str, Any]:
    """Return the JSON that a program printed. Raises: AssertionError with its last words."""
    try:
        found: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise AssertionError(
            f"exit code {done.returncode} and no report: {done.stderr.strip()[-1000:]}"
        ) from None
    return found


def verified(prefix: Path) -> Mapping[str, Any]:
    """Return what tdstack-verify says of an environment.

    Raises: AssertionError when it says nothing.
    """
    own = Path(sys.prefix, "bin", "tdstack-verify")
    program = VERIFY if VERIFY.is_file() else own
    return report_of(run([str(program), "--prefix", str(prefix), "--json"]))
