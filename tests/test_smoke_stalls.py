"""A stall that the compiler deletes tests nothing: each must be in the machine's code. No GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KINDS = {"one_shot": "one_shot.py", "lamport": "cells.py", "two_shot_split": "two_shot.py"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
@pytest.mark.usefixtures("kernels_on_the_path")
def test_every_stall_is_compiled(tmp_path: Path) -> None:
    from smoke_tests.controls import CONTROLS, NEVER_HELD, altered_sources

    stalled = [c for c in CONTROLS if any(str(NEVER_HELD) in new for _, _, new in c.edits)]
    assert "results_are_not_waited_for" in [control.name for control in stalled]
    # How long a stall takes does not decide whether it is deleted: one of those at the same places.
    places = {tuple((file, old) for file, old, _ in control.edits): control for control in stalled}
    for control in places.values():
        folder = tmp_path / control.name
        code = compiled(altered_sources(control, folder), folder / "out")
        for kind, file in KINDS.items():
            stalls = [e for e in control.edits if e[0] == file and str(NEVER_HELD) in e[2]]
            assert code[kind].count(str(NEVER_HELD)) == len(stalls), (control.name, kind)


def compiled(sources: Path, out: Path) -> dict[str, str]:
    """Return the PTX of each kind, by the installed Triton."""
    program = ROOT / "kernels/tests/ptx_cases.py"
    kinds = [f"--kind={kind}" for kind in KINDS]
    done = subprocess.run(
        [sys.executable, str(program), str(out), "--arch=sm_90", *kinds],
        env={**os.environ, "PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {kind: (out / f"sm_90.{kind}.ptx").read_text() for kind in KINDS}
