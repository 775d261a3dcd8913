"""A folder for images on their way, which the next verb clears if this one is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdstack.engines.base import Engine
from tdstack.wheelhouse.store import Store


@contextmanager
def scratch(store: Store, engine: Engine, purpose: str) -> Iterator[Path]:
    """Yield an empty OCI layout; hold the store's lock of this purpose, `pull` or `push`.

    One at a time: what one pull no longer needs of the store, another may be about to read.
    """
    with store.locked(purpose):
        folder = store.work() / purpose
        # A load that was killed leaves the name that it had given for its own use.
        stray = [f"localhost/{link.name}:latest" for link in folder.glob("tdstack-load-*")]
        shutil.rmtree(folder, ignore_errors=True)
        layout = folder / "layout"
        (layout / "blobs" / "sha256").mkdir(parents=True)
        try:
            yield layout
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for name in stray:  # at the end: what the killed one had started may have gone on
                engine.untag(name)
