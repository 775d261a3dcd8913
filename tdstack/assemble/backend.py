"""A project folder -> its wheel, the same bytes every time, with the network off."""

from __future__ import annotations

import sys
from pathlib import Path

from tdstack.errors import HostError
from tdstack.lock.model import LockedFile
from tdstack.process import last_words, run
from tdstack.rootfs import SOURCE_DATE_EPOCH
from tdstack.wheelhouse.store import Store, file_of

LIMIT_S = 120


def build_wheel(project: Path, out: Path, store: Store, *, origin: str) -> LockedFile:
    """Build the wheel of a project folder and put it into the store.

    `out` is a folder that nothing else writes to; `origin` is the project's name for people.
    The build backend runs from this environment, so that no network is needed.
    Raises: HostError when the backend fails.
    """
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = run(
        command,
        cwd=project,
        environment={"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH)},
        limit_s=LIMIT_S,
    )
    wheels = list(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise HostError(
            f"the wheel of {origin} could not be built",
            where=origin,
            got=last_words(done),
            remedy="run scripts/bootstrap.sh; it installs the pinned build backend",
        )
    file = file_of(wheels[0])
    store.admit(wheels[0], file, origin=origin, move=True)
    return file
