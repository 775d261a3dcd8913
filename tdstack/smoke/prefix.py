"""`invoke smoke --prefix`: the same checks on what `invoke install` made, run by its own Python.

Like an image, a prefix has no pytest: this environment's goes in behind everything that it has.
The checks are copied, as beside the checkout's kernels they would check those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tdstack.errors import HostError, UsageError
from tdstack.smoke.image import kernels_version, tools

_PROBE: Final = "from importlib.metadata import version; print(version('gemm-allreduce'))"
_PROBE_S: Final = 60.0
# Appended, not put in front: where the prefix has one of these packages, it keeps its own.
_BOOT: Final = (
    "import sys; sys.path.append(sys.argv.pop(1)); import pytest; "
    "sys.exit(pytest.main(sys.argv[1:]))"
)


def find_python(root: Path, prefix: str) -> Path:
    """Return the Python of a prefix: of the version in use, or of a plain environment.

    Raises: HostError when there is none; UsageError when it holds other kernels than this
    checkout's checks are for.
    """
    folder = Path(prefix).expanduser().absolute()
    # The version itself, not the link to it: what is checked must not change under the checks.
    for environment in ((folder / "current").resolve(), folder):
        python = environment / "bin/python"
        if python.is_file():
            break
    else:
        raise HostError(
            "there is no environment",
            where=f"--prefix {prefix}",
            expected="a folder that `invoke install --prefix` made, or one with bin/python",
        )
    done = subprocess.run(
        [str(python), "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_S, check=False
    )
    found = done.stdout.strip() or "none"
    if found != (wanted := kernels_version(root)):
        raise UsageError(
            "the checks of this checkout are for other kernels than the prefix's",
            where=f"--prefix {prefix}",
            expected=f"gemm_allreduce {wanted}",
            got=found,
            remedy="install from this checkout, or take the checkout that it was installed from",
        )
    return python


@contextmanager
def command(root: Path, python: Path, words: Sequence[str]) -> Iterator[list[str]]:
    """Yield what runs the checks with that Python, for as long as its files are there.

    `words` are pytest's options. Raises: HostError as `tools`.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-prefix-") as folder, tools() as packages:
        checks = Path(folder, "smoke_tests")
        shutil.copytree(root / "smoke_tests", checks, ignore=shutil.ignore_patterns("__pycache__"))
        (toolkit := Path(folder, "tdstack")).mkdir()
        (toolkit / "__init__.py").touch()
        (toolkit / "verify").symlink_to(root / "tdstack/verify")
        boot = f"import sys; sys.path.insert(0, {folder!r}); {_BOOT}"
        options = [f"--rootdir={checks}", "--import-mode=importlib", "-p", "no:cacheprovider"]
        options += [f"--parent={os.getpid()}", f"--place=prefix {python.parents[1]}"]
        yield [str(python), "-B", "-c", boot, str(packages), str(checks), *options, *words]
