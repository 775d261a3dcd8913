"""`invoke uninstall`: one version, or the whole prefix; nothing that an install did not make."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass

from tdstack.errors import UsageError
from tdstack.prefix.install import find_key
from tdstack.prefix.lock import locked
from tdstack.prefix.place import Prefix
from tdstack.prefix.switch import settle


@dataclass(frozen=True)
class Removed:
    """What was removed, or, in a dry run, would be; `left` lies in the prefix and is not ours."""

    prefix: str
    removed: tuple[str, ...]
    versions: tuple[str, ...]
    changed: bool
    left: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready data (docs/uninstall.md)."""
        return {"schema": 1, **asdict(self)}


def uninstall(prefix: Prefix, wanted: str, *, everything: bool, dry: bool) -> Removed:
    """Remove the version whose key begins with `wanted`, or everything that is ours.

    A prefix that is not there, or an empty folder, is no error: it is what was asked for.
    Raises: UsageError for a folder that is no prefix, for the version in use, and where it is not
    said what to remove; HostError when another verb is at work there, or it was moved.
    """
    if not prefix.root.exists() or (prefix.root.is_dir() and not list(prefix.root.iterdir())):
        return Removed(str(prefix.root), (), (), changed=False)
    if not dry and prefix.own.is_dir() and not list(prefix.own.iterdir()):
        prefix.own.rmdir()  # all that a killed uninstall had left to do
        return Removed(str(prefix.root), (), (), changed=True)
    if everything == bool(wanted):
        raise UsageError(
            "say what to remove",
            where="--version, --all",
            expected="one of them",
            got="; ".join(prefix.version_keys()),
        )
    if dry:
        prefix.require_ours()
        keys = prefix.version_keys() if everything else [_removable(prefix, wanted)]
        return _told(prefix, keys, changed=False)
    with locked(prefix, make=False):
        keys = prefix.version_keys() if everything else [_removable(prefix, wanted)]
        if everything:
            # First, so that nobody starts in a version that is going.
            prefix.current.unlink(missing_ok=True)
            prefix.previous.unlink(missing_ok=True)
        prefix.trash.mkdir(exist_ok=True)
        for key in keys:
            (prefix.versions / key).rename(prefix.trash / key)
        settle(prefix)
        for key in keys:
            shutil.rmtree(prefix.trash / key)
    return _told(prefix, keys, changed=True)


def _removable(prefix: Prefix, wanted: str) -> str:
    key = find_key(prefix, wanted)
    if key == prefix.named_by(prefix.current):
        raise UsageError(
            "that version is in use",
            where=f"--version {key}",
            remedy="switch first (`invoke install --rollback`), or remove all with --all",
        )
    return key


def _told(prefix: Prefix, keys: list[str], *, changed: bool) -> Removed:
    there = sorted(p.name for p in prefix.root.iterdir()) if prefix.root.is_dir() else []
    ours = {prefix.own.name, "current", "previous", "activate", "modulefiles", "versions"}
    left = tuple(name for name in there if name not in ours or (changed and not prefix.is_ours))
    kept = tuple(key for key in prefix.version_keys() if key not in keys)
    return Removed(str(prefix.root), tuple(keys), kept, changed, left)
