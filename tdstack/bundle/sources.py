"""The toolkit itself, for a host that has none: the checkout and the wheels of its tools."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from tdstack.errors import HostError, UpstreamError, UsageError
from tdstack.process import last_words, run

REQUIREMENTS = "requirements.lock"
LIMIT_S = 1800


def tracked_files(root: Path) -> list[str]:
    """Return the paths of the checkout's files that version control knows, sorted.

    They are taken as they are in the working tree: content keys are computed over that.
    Raises: UsageError where there is no version control, or a tracked file is none any more.
    """
    done = run(["git", "ls-files", "-z", "--cached"], cwd=root, limit_s=60)
    if done.returncode:
        raise UsageError(
            "version control does not say which files are the checkout's",
            where=str(root),
            got=last_words(done, 2),
            remedy="make the bundle from a clone",
        )
    names = sorted(name for name in done.stdout.split("\0") if name)
    wrong = [name for name in names if not _is_plain(root / name)]
    if wrong:
        raise UsageError(
            "a tracked file is missing, or is no plain file",
            where=str(root / wrong[0]),
            remedy="restore it, or remove it from version control",
        )
    return names


def is_executable(path: Path) -> bool:
    """Return whether its owner may run a file, which is all that version control keeps of modes."""
    return bool(path.stat().st_mode & stat.S_IXUSR)


def download_tools(root: Path, folder: Path) -> list[Path]:
    """Bring the wheels of requirements.lock for this Python and host, by hash, into `folder`.

    Raises: UpstreamError when the index cannot be read; HostError without pip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--requirement", str(root / REQUIREMENTS)]
    done = run(command, limit_s=LIMIT_S)
    if "No module named pip" in done.stderr:
        raise HostError(
            "there is no pip beside the toolkit",
            where=sys.executable,
            remedy="run scripts/bootstrap.sh; or leave the tools out with --no-tools",
        )
    if done.returncode:
        raise UpstreamError(
            "the wheels of the tools cannot be brought",
            where=REQUIREMENTS,
            got=last_words(done, 3),
            remedy="check `pip config list`; or leave them out with --no-tools",
        )
    return sorted(folder.iterdir())


def python_here() -> str:
    """Return the Python that runs this, as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
