"""A prefix: the folder of a bare-metal install, where things are in it, and whose it is.

DIR/current -> versions/KEY     what programs use; switched by one rename
DIR/previous -> versions/KEY    what a rollback goes back to
DIR/versions/KEY/               a virtual environment with all layers
DIR/activate, DIR/modulefiles/  ways to use `current`, or one version
DIR/.tdstack/                   whose the folder is, the lock, what is in the making
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.errors import HostError, IntegrityError, UsageError

OWN = ".tdstack"
# They would need quoting in PATH, in a first line, in a shell, Tcl or Lua; nobody names folders so.
REFUSED = re.compile(r"[^\w ./+@,=~%()-]")
MODULE = "tdstack"


@dataclass(frozen=True)
class Prefix:
    """The folder `root`, absolute and without its links resolved: users may name a stable one."""

    root: Path

    @staticmethod
    def of(named: str) -> Prefix:
        """Return the prefix that `--prefix` names; it need not be there.

        Raises: UsageError for a path that cannot be one.
        """
        if not named:
            raise UsageError("no prefix named", where="--prefix", expected="a folder")
        root = Path(os.path.abspath(Path(named).expanduser()))
        if bad := REFUSED.search(str(root)):
            raise UsageError(
                f"a prefix cannot have {bad[0]!r} in its path",
                where=f"--prefix {root}",
                expected="letters, digits, spaces and . _ - + @ , = ~ % ( )",
            )
        return Prefix(root)

    @property
    def own(self) -> Path:
        """Return the folder of what only tdstack reads."""
        return self.root / OWN

    @property
    def marker(self) -> Path:
        """Return the file that says that the folder is ours, and where it was made."""
        return self.own / "prefix.json"

    @property
    def staging(self) -> Path:
        """Return the folder of versions in the making."""
        return self.own / "new"

    @property
    def trash(self) -> Path:
        """Return the folder of what is being removed."""
        return self.own / "old"

    @property
    def versions(self) -> Path:
        """Return the folder of whole versions."""
        return self.root / "versions"

    @property
    def current(self) -> Path:
        """Return the link to the version in use."""
        return self.root / "current"

    @property
    def previous(self) -> Path:
        """Return the link to the version that was in use before."""
        return self.root / "previous"

    @property
    def modules(self) -> Path:
        """Return the folder of the files for environment modules."""
        return self.root / "modulefiles" / MODULE

    @property
    def is_ours(self) -> bool:
        """Return whether an install made this a prefix."""
        return self.marker.is_file()

    def version_keys(self) -> list[str]:
        """Return the keys of all whole versions, sorted."""
        try:
            return sorted(p.name for p in self.versions.iterdir() if p.is_dir())
        except FileNotFoundError:
            return []

    def named_by(self, link: Path) -> str:
        """Return the key that `current` or `previous` names, or empty where there is none."""
        try:
            key = os.path.basename(os.readlink(link))
        except OSError:
            return ""
        return key if (self.versions / key).is_dir() else ""

    def require_ours(self) -> None:
        """Refuse a folder that is no prefix, or that was moved since it was made.

        Raises: UsageError; HostError; IntegrityError for a marker that cannot be read.
        """
        if not self.is_ours:
            raise UsageError(
                "that is no prefix of tdstack",
                where=f"--prefix {self.root}",
                expected=f"a folder that `invoke install` made, with {OWN}/{self.marker.name}",
            )
        made_at = str(self.read_marker()["path"])
        if not _same(made_at, self.root):
            raise HostError(
                "the prefix was moved or copied, or is mounted elsewhere on this host; its "
                "environments hold absolute paths and do not run from here",
                where=str(self.root),
                expected=made_at,
                remedy=f"bring it back to {made_at}; or install into another folder, and remove "
                "this one",
            )

    def require_current(self) -> Path:
        """Return the folder of the version in use.

        Raises: as require_ours; HostError when there is none.
        """
        self.require_ours()
        if key := self.named_by(self.current):
            return self.versions / key
        raise HostError(
            "the prefix has no version in use",
            where=str(self.current),
            remedy="run `invoke install` again; it goes on with what was interrupted",
        )

    def read_marker(self) -> dict[str, object]:
        """Return what the marker says: `path`, and the folders that were `made` for the prefix.

        Raises: IntegrityError when it cannot be read.
        """
        try:
            told = json.loads(self.marker.read_text())
            return {"path": str(told["path"]), "made": [str(m) for m in told["made"]]}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise IntegrityError(
                "the prefix does not say what it is", where=str(self.marker), got=str(error)
            ) from error

    def write_marker(self, made: Sequence[Path]) -> None:
        """Make the folder a prefix, at its present path."""
        text = {"schema": 1, "path": str(self.root), "made": [str(m) for m in made]}
        write_atomically(self.marker, json.dumps(text, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step: after a crash it holds the old text or the new one."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder onto the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _same(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
