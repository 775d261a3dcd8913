"""Runs the cases of interpreter_*.py, a process for each file, with a time limit.

TRITON_INTERPRET must be set before Triton is first imported, which other tests of the same run
may have done already; and a hang must fail, not hang.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TIME_LIMIT = 240
MODULES = (
    "interpreter_results",
    "interpreter_protocol",
    "interpreter_workspace",
    "interpreter_memory",
    "interpreter_multimem",
    "interpreter_all_reduce",
    "interpreter_custom_op",
    "interpreter_transformers",
)
NEEDS = {"interpreter_transformers": ("transformers", "accelerate")}
CASES = [
    (module, name)
    for module in MODULES
    for name in re.findall(r"^def (case_\w+)\(", (HERE / f"{module}.py").read_text(), re.M)
]
_MISSING = [name for name in ("torch", "numpy", "triton") if not importlib.util.find_spec(name)]
needs_interpreter = pytest.mark.skipif(
    bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"
)
Outcomes = dict[str, str | None]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"} | variables


@pytest.fixture(scope="session")
def outcomes() -> Callable[[str], Outcomes]:
    """Run a module's cases, once; return what went wrong in each, None where nothing did."""

    @cache
    def run(module: str) -> Outcomes:
        command = [sys.executable, str(HERE / "interpreter_cases.py"), module]
        try:
            done = subprocess.run(
                command,
                env=environment(
                    TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo"
                ),
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
            )
            output, rest = done.stdout, f"exit code {done.returncode}: {done.stderr}"
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode()
            rest = f"it, or a case before it, did not end within {TIME_LIMIT} s"
        found: Outcomes = {name: rest for of, name in CASES if of == module}
        for line in output.splitlines():
            outcome = json.loads(line)
            found[outcome["case"]] = outcome["error"]
        return found

    return run


@needs_interpreter
@pytest.mark.parametrize(("module", "name"), CASES)
def test_interpreter(module: str, name: str, outcomes: Callable[[str], Outcomes]) -> None:
    if missing := [n for n in NEEDS.get(module, ()) if not importlib.util.find_spec(n)]:
        pytest.skip(f"not installed: {', '.join(missing)} (requirements-models.lock)")
    error = outcomes(module)[name]
    assert error is None, error


@needs_interpreter
def test_cpu_without_the_interpreter_is_refused() -> None:
    code = (
        "import torch\n"
        "from gemm_allreduce import Workspace, gemm_allreduce\n"
        "from gemm_allreduce.transports.virtual import VirtualTransport\n"
        "half = {'dtype': torch.float16}\n"
        "w = Workspace(VirtualTransport(1, 'cpu'), max_tokens=16, max_features=64, **half)\n"
        "gemm_allreduce(torch.ones(1, 4, 16, **half), torch.ones(1, 64, 16, **half), w)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PYTHONPATH=str(HERE.parent / "src")),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: the kernel needs a CUDA device, or TRITON_INTERPRET=1")
