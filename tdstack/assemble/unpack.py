"""A wheel -> files on disk, as its entries say."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from tdstack.assemble.entries import Entry
from tdstack.assemble.wheel import WheelEntries


def unpack_wheel(
    wheel: Path, name: str, folder: Path, site: str, drops: Callable[[str], bool]
) -> None:
    """Write a wheel below `folder`, as the prefix of an environment; `site` is relative to it.

    `name` is the wheel's file name; `drops` says which paths below `site` are left out.
    Raises: IntegrityError for a wheel that is not whole, or would leave the folder.
    """
    own = WheelEntries(wheel, name, "env", f"env/{site}" if site else "env")
    with zipfile.ZipFile(wheel) as archive:
        for entry in own.entries(drops):
            write_entry(entry, archive, folder / entry.path.removeprefix("env/"))


def write_entry(entry: Entry, archive: zipfile.ZipFile, path: Path) -> None:
    """Write a file entry of the wheel that `archive` is to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        if entry.content.data is not None:
            out.write(entry.content.data)
        else:
            with archive.open(entry.content.member) as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
    path.chmod(entry.mode)
