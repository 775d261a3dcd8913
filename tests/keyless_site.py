"""The package sigstore from requirements-keyless.lock, in a folder beside the toolkit's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOCK = Path(__file__).resolve().parent.parent / "requirements-keyless.lock"
LIMIT_S = 120


@contextmanager
def keyless_site(folder: Path) -> Iterator[Path]:
    """Install the lock's packages into `folder`, by hash, and let them be imported."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--require-hashes"]
    command += ["-r", str(LOCK), "--target", str(folder)]
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
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]
