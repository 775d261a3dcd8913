"""A folder for an install's work in the store; what killed installs left there goes first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdstack.wheelhouse.store import Store

LOCK = "lock"


@contextmanager
def scratch(store: Store, root: Path) -> Iterator[Path]:
    """Give a folder beside the store's files for an install into the prefix `root`.

    What other installs into a prefix of that path left is removed, unless somebody holds it: hosts
    may share a store, and each have a prefix of this path.
    Raises: OSError when the store cannot be written, or its file system knows no locks.
    """
    place = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    work = store.work()
    # A folder is seen by others before it is held; nobody looks meanwhile.
    with store.locked(f"prefix-{place}"):
        for left in work.glob(f"prefix-{place}-*"):
            remove_unheld(left)
        folder = Path(tempfile.mkdtemp(prefix=f"prefix-{place}-", dir=work))
        # For writing: over NFS an exclusive lock needs that.
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
    files = folder / "files"
    try:
        files.mkdir()
        yield files
    finally:
        shutil.rmtree(files, ignore_errors=True)
        # Over NFS the folder of an open file cannot be removed.
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def remove_unheld(folder: Path) -> bool:
    """Remove a folder of `scratch` that no process holds; return whether it was removed."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # it is going away at this moment, or belongs to somebody else
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        # Let go again: nobody takes a folder up a second time.
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
