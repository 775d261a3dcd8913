"""Bytecode of a version: linked to another version's where the source is, else compiled.

A version lists the sha256 of all its bytecode, so that another one need not trust what lies there.
The path inside it is the image's: Python puts the real one in when it loads a module
(importlib, _fix_co_filename), and so it fits any version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tdstack.assemble.entries import Entry, from_bytes
from tdstack.errors import HostError
from tdstack.plan import PREFIX
from tdstack.process import last_words, run
from tdstack.verify.installed import sha256_digest

PLACE = Path("share", "tdstack", "bytecode.json")
# Runs in the version's Python. Not the image's way (assemble/bytecode.py), whose bytes must not
# depend on the number of processors; here what counts is time.
COMPILE = """
import importlib.util, os, py_compile, sys
shown, root = sys.argv[1:]
os.umask(0o022)  # others are to read the folders of bytecode, too
mode = py_compile.PycInvalidationMode.TIMESTAMP
files = [os.path.join(d, f) for d, _, n in os.walk(root) for f in n if f.endswith(".py")]
files = [f for f in files if not os.path.exists(importlib.util.cache_from_source(f))]
above, count = [os.getppid(), os.getpid()], len(os.sched_getaffinity(0))
children = []
for turn in range(count):
    if (child := os.fork()):
        children.append(child)
        continue
    for path in files[turn::count]:
        if os.getppid() not in above:
            os._exit(1)  # whoever wanted this was killed
        try:
            name = shown + path[len(root):]
            py_compile.compile(path, dfile=name, doraise=True, invalidation_mode=mode)
        except (py_compile.PyCompileError, ValueError):
            pass  # test data that is no Python on purpose; it fails at import, as it would anyway
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    os._exit(0)
statuses = [os.waitpid(child, 0)[1] for child in children]
sys.exit(1 if any(statuses) else 0)
"""


def compile_version(folder: Path, donors: Iterable[Path]) -> int:
    """Give a version all its bytecode; `donors` are versions with the same Python.

    Returns how many files were linked.
    Raises: HostError when the version's Python does not run.
    """
    linked = sum(_link_from(donor, folder) for donor in donors)
    python = str(folder / "bin" / "python")
    done = run([python, "-I", "-c", COMPILE, f"/{PREFIX}", str(folder)])
    if done.returncode:
        raise HostError(
            "the version's Python could not compile the installed sources",
            where=python,
            got=last_words(done),
        )
    return linked


def listed(folder: Path) -> Entry:
    """Return the file that lists a version's bytecode."""
    found = {str(p.relative_to(folder)): sha256_digest(p) for p in folder.rglob("*.pyc")}
    return from_bytes(str(PLACE), json.dumps(found, indent=0, sort_keys=True).encode())


def _link_from(donor: Path, folder: Path) -> int:
    count = 0
    for name, digest in _list_of(donor).items():
        compiled, there = folder / name, donor / name
        source = Path(name).parent.parent / f"{Path(name).name.partition('.')[0]}.py"
        try:
            # The very same source: linked a moment ago, as its bytes are the wheel's.
            if compiled.exists() or not os.path.samefile(donor / source, folder / source):
                continue
            if sha256_digest(there) == digest:
                compiled.parent.mkdir(exist_ok=True)
                compiled.parent.chmod(0o755)
                os.link(there, compiled)
                count += 1
        except OSError:  # not there, or one link too many: then it is compiled
            continue
    return count


def _list_of(version: Path) -> Mapping[str, str]:
    try:
        told = json.loads((version / PLACE).read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
