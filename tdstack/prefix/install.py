"""`invoke install` into a prefix: beside what is there, checked, then switched to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tdstack.errors import CheckFailed, HostError, IntegrityError, TdstackError, UsageError
from tdstack.lock.model import LockedFile
from tdstack.prefix.checked import check_version
from tdstack.prefix.lock import locked
from tdstack.prefix.place import Prefix
from tdstack.prefix.switch import switch
from tdstack.prefix.tree import Written
from tdstack.prefix.version import Target, make_version
from tdstack.workspace import Workspace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Installed:
    """What a verb left: the version in use, and what was done for it.

    `made` says that the version was not there, or not whole; `changed` also that another one was
    in use. `written` and `linked` are bytes, `seconds` those of each step.
    """

    prefix: str
    version: str
    previous: str
    changed: bool
    made: bool
    versions: tuple[str, ...]
    written: int = 0
    linked: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    findings: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON-ready data (docs/bare-metal.md)."""
        seconds = {name: round(value, 2) for name, value in self.seconds.items()}
        return {"schema": 1, **asdict(self), "key": self.version, "seconds": seconds}


def install(workspace: Workspace, prefix: Prefix, target: Target, say: Say) -> Installed:
    """Make the version of a plan if it is not there, check it, and switch to it.

    Whatever ends it, the version that was in use is in use; a version that does not pass its
    check is removed.
    Raises: as make_version and check_version do; UsageError, HostError for the prefix.
    """
    with locked(prefix, make=True):
        before = prefix.named_by(prefix.current)
        version = prefix.versions / target.key
        findings: list[dict[str, Any]] = []
        done, seconds, made = Written(), dict[str, float](), not version.is_dir()
        if not made:
            try:
                findings = check_version(version, quick=before == target.key)
            except (CheckFailed, IntegrityError, HostError) as error:
                say(f"version {target.key} is there and not whole, and is made again")
                say(f"  {error.got or error.what}")
                made = True
        if made:
            done, seconds = _make(workspace, prefix, target, say)
            findings = _checked_or_removed(prefix, target, before)
        if changed := made or before != target.key:
            switch(prefix, target.key)
        return Installed(
            prefix=str(prefix.root),
            version=target.key,
            previous=prefix.named_by(prefix.previous),
            changed=changed,
            made=made,
            versions=tuple(prefix.version_keys()),
            written=done.written,
            linked=done.linked,
            seconds=seconds,
            findings=tuple(findings),
        )


def rollback(prefix: Prefix, wanted: str) -> Installed:
    """Switch to the version that was in use before, or to another one that is there.

    `wanted` is the beginning of a key, or empty. The version is checked first.
    Raises: UsageError when there is none; as check_version does, with nothing changed.
    """
    with locked(prefix, make=False):
        now = prefix.named_by(prefix.current)
        key = find_key(prefix, wanted) if wanted else prefix.named_by(prefix.previous)
        if not key:
            raise UsageError(
                "there is no version to go back to",
                where=str(prefix.previous),
                expected="; ".join(prefix.version_keys()),
                remedy="name one of these with --version KEY",
            )
        findings = check_version(prefix.versions / key)
        if key != now:
            switch(prefix, key)
        return Installed(
            prefix=str(prefix.root),
            version=key,
            previous=prefix.named_by(prefix.previous),
            changed=key != now,
            made=False,
            versions=tuple(prefix.version_keys()),
            findings=tuple(findings),
        )


def find_key(prefix: Prefix, wanted: str) -> str:
    """Return the one key that begins with `wanted`.

    Raises: UsageError for none or several.
    """
    found = [key for key in prefix.version_keys() if key.startswith(wanted)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} versions begin with {wanted!r}",
            where="--version",
            expected="; ".join(prefix.version_keys()) or "there is none",
        )
    return found[0]


def _make(
    workspace: Workspace, prefix: Prefix, target: Target, say: Say
) -> tuple[Written, dict[str, float]]:
    files: list[LockedFile] = [p.file for p in target.plan.stack.all_packages() if p.file]
    workspace.fetch(files)
    return make_version(workspace, prefix, target, say)


def _checked_or_removed(prefix: Prefix, target: Target, before: str) -> list[dict[str, Any]]:
    version = prefix.versions / target.key
    try:
        return check_version(version)
    except (TdstackError, KeyboardInterrupt):
        # What it took the place of was not whole either, and may be in use: that one stays.
        if before != target.key:
            prefix.trash.mkdir(exist_ok=True)
            shutil.rmtree(prefix.trash / target.key, ignore_errors=True)
            version.rename(prefix.trash / target.key)
        raise
