"""Runs each case of interpreter_cases.py in a process of its own, with a time limit.

TRITON_INTERPRET must be set before Triton is first imported, which other tests of the same run
may have done already; and a hang must fail, not hang.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().with_name("interpreter_cases.py")
NAMES = (
    "tails",
    "random_bound",
    "epochs",
    "wrap",
    "rank_order",
    "peer_ahead",
    "absent_peer",
    "refusals",
    "two_processes",
)
TIME_LIMIT = 180

_MISSING = [name for name in ("torch", "numpy", "triton") if not importlib.util.find_spec(name)]


@pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")
@pytest.mark.parametrize("name", NAMES)
def test_interpreter(name: str) -> None:
    environment = dict(os.environ) | {
        "TRITON_INTERPRET": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(CASES), name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == f"{name} passed"
