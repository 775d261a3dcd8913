"""Bytecode as a part of its own: compiled by the image's Python, not by the host's.

An arbitrary user id cannot write __pycache__ in the image, so without this every process
would compile torch's sources anew at import.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.entries import Entry, arrange, from_file
from tdstack.assemble.layer import WheelSource, extract_sources, scratch
from tdstack.assemble.tar import Blob, write_tar
from tdstack.engines.base import Engine, Mount, RunRequest
from tdstack.errors import CheckFailed
from tdstack.recipe import Recipe
from tdstack.rootfs import SOURCE_DATE_EPOCH

# Runs in the container. Two processes over fixed halves, each file compiled in a fixed
# order: marshal's output depends on which strings the process has seen before.
COMPILE = """
import os, py_compile, sys
mode = py_compile.PycInvalidationMode.TIMESTAMP
files = sorted(os.path.join(d, f) for d, _, n in os.walk("/work") for f in n if f.endswith(".py"))
child = os.fork()
for path in files[0 if child else 1 :: 2]:
    try:
        shown = sys.argv[1] + path[len("/work"):]
        py_compile.compile(path, dfile=shown, doraise=True, invalidation_mode=mode)
    except (py_compile.PyCompileError, ValueError):
        pass  # test data that is no Python on purpose; it fails at import, as it would anyway
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@dataclass(frozen=True)
class CPythonTree:
    """A stand-alone CPython, unpacked in `folder`; `place` is where the image has it."""

    folder: Path
    place: str


def write_bytecode(
    engine: Engine,
    ref: str,
    interpreter: str,
    wheels: Sequence[WheelSource],
    recipe: Recipe,
    site: str,
    blobs: Path,
    cpython: CPythonTree | None = None,
) -> Blob | None:
    """Compile the sources of `wheels` in the image `ref`; return the tar of the results.

    The recorded source time is the one that every layer's files carry. With `cpython` its own
    library is compiled too, by itself: the image does not hold it yet.
    Raises: CheckFailed when the image's Python does not run.
    """
    with scratch(blobs.parent) as name:
        # Sources lie as in the image, so that one run compiles what goes to several places.
        folder = Path(name)
        count = extract_sources(wheels, recipe, site, folder / site)
        if cpython:
            count += _copy_sources(cpython, folder)
        if not count:
            return None
        for source in folder.rglob("*.py"):
            os.utime(source, (SOURCE_DATE_EPOCH, SOURCE_DATE_EPOCH))
        command = [interpreter, "-I", "-c", COMPILE, ""]
        mounts = [Mount(folder, "/work", writable=True)]
        mounts += [Mount(cpython.folder, f"/{cpython.place}")] if cpython else []
        # What it writes must be ours to remove, under a daemon of root too.
        request = RunRequest(ref, command, mounts, {"PYTHONHASHSEED": "0"}, user=engine.owner())
        done = engine.run(request)
        if done.status:
            raise CheckFailed(
                "the image's Python could not compile the installed sources",
                where=f"{ref}: {interpreter}",
                got=done.stderr[-800:],
            )
        entries: list[Entry] = [
            from_file(str(path.relative_to(folder)), path, 0o644) for path in folder.rglob("*.pyc")
        ]
        return write_tar(arrange(entries), blobs)


def _copy_sources(cpython: CPythonTree, folder: Path) -> int:
    count = 0
    for source in cpython.folder.glob("lib/python*/**/*.py"):
        target = folder / cpython.place / source.relative_to(cpython.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        count += 1
    return count
