"""The package sigstore from requirements-keyless.lock, in a folder beside the toolkit's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.triton_environments import UV

LOCK = Path(__file__).resolve().parent.parent / "requirements-keyless.lock"
LIMIT_S = 120


def forget(folder: Path | None = None) -> None:
    """Drop sigstore's modules, or all that came from `folder`, so that they are looked for anew."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        ours = Path(file).is_relative_to(folder) if folder and file else False
        if ours or name.split(".")[0] == "sigstore":
            del sys.modules[name]


@contextmanager
def keyless_site(folder: Path) -> Iterator[Path]:
    """Install the lock's packages into `folder`, by hash, and let them be imported."""
    command = [UV, "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", str(LOCK)]
    command += ["--target", str(folder), "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        if os.environ.get("CI"):
            pytest.fail(f"CI must not skip sigstore: {done.stderr}")
        pytest.skip(f"sigstore cannot be installed: {done.stderr[-200:]}")
    sys.path.append(str(folder))  # last: versions are those of requirements.lock
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        forget(folder)
