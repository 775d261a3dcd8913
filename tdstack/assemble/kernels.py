"""Our own wheel, built from kernels/ the same way every time."""

from __future__ import annotations

import sys
from pathlib import Path

from tdstack.errors import HostError
from tdstack.lock.model import LockedFile
from tdstack.process import last_words, run
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.wheelhouse.store import Store, file_of


def kernels_wheel(root: Path, scratch: Path, store: Store) -> LockedFile:
    """Build the wheel of kernels/ and put it into the store.

    The build backend runs from this environment, so that no network is needed.
    Raises: HostError when the backend fails.
    """
    out = scratch / "kernels-dist"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = run(
        command,
        cwd=root / "kernels",
        environment={"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH)},
        limit_s=120,
    )
    wheels = list(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise HostError(
            "the kernels wheel could not be built",
            where="kernels/",
            got=last_words(done),
            remedy="run scripts/bootstrap.sh; it installs the pinned build backend",
        )
    wheel = wheels[0]
    file = file_of(wheel)
    store.admit(wheel, file, origin="kernels/", move=True)
    return file
