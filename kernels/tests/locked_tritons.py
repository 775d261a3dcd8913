"""Several Tritons side by side: each `triton-VERSION.lock` here, in a folder of its own.

A folder on PYTHONPATH comes before site-packages, so that a process uses its Triton and no other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_UNREACHABLE = re.compile(
    r"No matching distribution found|Connection|timed out|Max retries|Network is unreachable|"
    r"Temporary failure in name resolution|ProxyError|5\d\d Server Error"
)
TIME_LIMIT = 900  # a wheel has up to 300 MB


class IndexUnreachableError(Exception):
    """The package index does not answer, or does not have the wheel."""


def locked_versions() -> list[str]:
    """Versions that are locked, oldest first."""
    versions = [path.stem.removeprefix("triton-") for path in _HERE.glob("triton-*.lock")]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def installed_version() -> str | None:
    """Version of the Triton that this interpreter imports, if there is one."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def folder_of(version: str) -> Path:
    """Return the folder of a locked version, installing it there if it is not.

    Raises:
        IndexUnreachableError: it cannot be had now.
        RuntimeError: pip failed for another reason, such as a hash that differs.
    """
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    lock = _HERE / f"triton-{version}.lock"
    return installed(f"tritons/triton-{version}-{python}", lock)


def installed(name: str, lock: Path) -> Path:
    """Return the folder `name` of the cache, installing the lock there if it is not.

    Raises: as `folder_of`.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("TDSTACK_CACHE") or f"{base}/tdstack").expanduser().absolute()
    folder = cache / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".installing-") as scratch:
        target = Path(scratch) / "target"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--no-compile"]
        command += ["--retries", "1", "--timeout", "20"]
        command += ["--disable-pip-version-check", "--target", str(target)]
        command += ["--requirement", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            message = f"pip cannot install {lock.name}: {' '.join(errors) or done.stderr}"
            if _UNREACHABLE.search(message):
                raise IndexUnreachableError(message)
            raise RuntimeError(message)
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster
                raise
    return folder
