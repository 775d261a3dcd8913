"""Is there room on a disk? Asked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tdstack.errors import HostError
from tdstack.lock.model import LayerName


def check_space(sizes: Mapping[LayerName, list[int]], cache: Path, storage: Path | None) -> None:
    """Compare what the missing layers need with what is free, per disk.

    `sizes` are the bytes of each part of each layer; `storage` is the engine's folder, None where
    it is not on this host.
    Raises: HostError with the need of every layer.
    """
    total = sum(sum(group) for group in sizes.values())
    largest = max((size for group in sizes.values() for size in group), default=0)
    # The engine keeps the whole and holds the part that it takes over twice; our own tars
    # are removed as soon as it has them.
    needs = {cache: min(total, 3 * largest)}
    if storage:
        needs[storage] = total + 2 * largest
    on_disk: dict[int, int] = {}
    for folder, need in needs.items():
        device = folder.stat().st_dev
        on_disk[device] = on_disk.get(device, 0) + need
        free = shutil.disk_usage(folder).free
        if free < on_disk[device]:
            layers = ", ".join(f"{name} {sum(group) / 1e9:.1f}" for name, group in sizes.items())
            raise HostError(
                "not enough disk space to build",
                where=str(folder),
                expected=f"{on_disk[device] / 1e9:.1f} GB free (layers: {layers})",
                got=f"{free / 1e9:.1f} GB free",
                remedy="free some space, or set TDSTACK_CACHE to a folder on a larger disk",
            )


def check_room(folder: Path, need: int, what: str) -> None:
    """Compare what is needed with what is free on the disk of `folder`, in bytes.

    Raises: HostError.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise HostError(
            f"not enough disk space {what}",
            where=str(folder),
            expected=f"{need / 1e9:.2f} GB free",
            got=f"{free / 1e9:.2f} GB free",
            remedy="free some space and run the verb again; it resumes",
        )
