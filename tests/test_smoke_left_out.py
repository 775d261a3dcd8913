"""A check whose package is missing, or too old, is left out of a real run, with the reason and the
remedy."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smoke_tests.records import Verdict, read

ABSENT = [name for name in ("torch", "numpy", "triton") if not importlib.util.find_spec(name)]
HIDE = """
import importlib.util
found = importlib.util.find_spec
def hide(name, *rest):
    return None if name == "transformers" else found(name, *rest)
importlib.util.find_spec = hide
"""
AGE = """
import importlib.metadata
found = importlib.metadata.version
def age(name):
    return "5.18.2" if name == "transformers" else found(name)
importlib.metadata.version = age
"""


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (HIDE, "not installed: transformers"),
        (AGE, "too old: transformers 5.18.2, 5.19 or later is needed"),
    ],
    ids=["absent", "too old"],
)
@pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}")
def test_without_transformers_models_are_left_out_and_other_checks_run(
    root: Path, tmp_path: Path, plugin: str, reason: str
) -> None:
    if plugin is AGE:
        pytest.importorskip("transformers", reason="not installed: transformers")
    (tmp_path / "other_transformers.py").write_text(plugin)
    records = tmp_path / "run.jsonl"
    command = [sys.executable, "-m", "pytest", "smoke_tests", "-p", "other_transformers"]
    command += ["-p", "no:cacheprovider", "--tier=cpu", "--ranks=2", f"--records={records}"]
    command += ["-k", "whole_models or a_result_outlives"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    result = read(records)
    assert [c.name for c in result.checks] == ["cpu-w2-a_result_outlives_later_calls"]
    (left,) = result.left_out
    assert left.check == "cpu-w2-whole_models_agree_layer_by_layer"
    assert left.reason.startswith(f"{reason}; remedy: pip install ")
    lock = left.reason.rpartition(" ")[2]
    assert "\ntransformers==" in (root / lock).read_text()
    assert isinstance(result.verdict, Verdict)
    assert dict(result.verdict.counts) == {"passed": 1, "skipped": 1}
