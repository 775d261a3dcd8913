"""Our own wheel, built from kernels/ the same way every time."""

from __future__ import annotations

from pathlib import Path

from tdstack.assemble.backend import build_wheel
from tdstack.lock.model import LockedFile
from tdstack.wheelhouse.store import Store


def kernels_wheel(root: Path, scratch: Path, store: Store) -> LockedFile:
    """Build the wheel of kernels/ and put it into the store.

    Raises: HostError when the build backend fails.
    """
    return build_wheel(root / "kernels", scratch / "kernels-dist", store, origin="kernels/")
