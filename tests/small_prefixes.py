"""Prefixes whose versions are a few files: what is tested is what becomes of them."""

from __future__ import annotations

import sys
from pathlib import Path

from tdstack.prefix.lock import locked
from tdstack.prefix.place import Prefix
from tdstack.prefix.record import PLACE, Record
from tdstack.prefix.shells import activate_version
from tdstack.prefix.switch import switch

FILES = ("lib/a/one", "lib/a/two", "lib/b/three")


def a_record(prefix: Prefix, key: str) -> Record:
    version = prefix.versions / key
    return Record(
        key=key,
        plan="0" * 64,
        cuda="12.4",
        triton="stock",
        torch="none",
        python="3.11",
        interpreter=sys.executable,
        archs=("sm_90",),
        driver_floor="525.60.13",
        lock_slice="1" * 64,
        wheels=(),
        environment={"VIRTUAL_ENV": str(version), "TRITON_PTXAS_PATH": f"{version}/ptxas"},
        cached={"TRITON_CACHE_DIR": "triton"},
    )


def a_version(prefix: Prefix, key: str, folder: Path | None = None) -> Path:
    """Write a version into `folder`, by default where it belongs."""
    folder = folder or prefix.versions / key
    record = a_record(prefix, key)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "activate").write_text(activate_version(prefix.versions / key, record))
    for name in (*FILES, str(PLACE)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(record.text() if name == str(PLACE) else name)
    return folder


def whole(version: Path) -> bool:
    """Return whether all files of a version are there."""
    return all((version / name).is_file() for name in (*FILES, PLACE, "bin/activate"))


def a_prefix(root: Path, *keys: str) -> Prefix:
    """Make a prefix with these versions, each switched to in turn."""
    prefix = Prefix.of(str(root))
    with locked(prefix, make=True):
        for key in keys:
            a_version(prefix, key)
            switch(prefix, key)
    return prefix
