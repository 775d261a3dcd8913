"""Which version a prefix uses: one rename of a link, and what follows from it.

A journal says which switch was meant. After a kill the link says whether it happened; either way
the next verb makes the rest (`previous`, the files for shells and modules) agree with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tdstack.prefix.modules import default_module, module_files
from tdstack.prefix.place import Prefix, sync_folder, write_atomically
from tdstack.prefix.record import read_record
from tdstack.prefix.shells import activate_current


def switch(prefix: Prefix, key: str) -> None:
    """Make `key`, a whole version, the one in use, and the one in use before the previous one."""
    before = prefix.named_by(prefix.current)
    journal = prefix.own / "switch.json"
    write_atomically(journal, json.dumps({"from": before, "to": key}))
    _link(prefix, prefix.current, f"versions/{key}")
    recover(prefix)


def recover(prefix: Prefix) -> None:
    """Finish what follows from the link `current`, after a switch or a kill in one."""
    journal = prefix.own / "switch.json"
    try:
        meant = json.loads(journal.read_text())
    except (OSError, ValueError):
        meant = {}
    now = prefix.named_by(prefix.current)
    if meant and now == meant["to"] and meant["from"] not in ("", now):
        _link(prefix, prefix.previous, f"versions/{meant['from']}")
    settle(prefix)
    journal.unlink(missing_ok=True)


def settle(prefix: Prefix) -> None:
    """Make links and files agree with the versions that are there."""
    for link in (prefix.current, prefix.previous):
        if link.is_symlink() and not prefix.named_by(link):
            link.unlink()
    records = [r for key in prefix.version_keys() if (r := read_record(prefix.versions / key))]
    if not records:
        return
    wanted = {prefix.root / "activate": activate_current(prefix.root)}
    current = prefix.named_by(prefix.current)
    for record in records:
        wanted |= module_files(prefix, record)
    default = next((r for r in records if r.key == current), None)
    wanted |= default_module(prefix, default) if default else {}
    prefix.modules.mkdir(parents=True, exist_ok=True)
    for path in prefix.modules.iterdir():
        if path not in wanted and path != prefix.modules / "default":
            path.unlink()
    for path, text in wanted.items():
        if not _holds(path, text):
            write_atomically(path, text)
    if default:
        _link(prefix, prefix.modules / "default", f"{default.module}.lua")


def _link(prefix: Prefix, link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    draft = prefix.own / f"{link.name}.new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.rename(link)
    sync_folder(link.parent)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
