"""What every verb starts from: the checkout, the store, the sources, and the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.console import FetchProgress, megabytes, say
from tdstack.errors import IntegrityError, UsageError
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedDeb, LockedFile
from tdstack.pipconf import pip_config
from tdstack.plan import Plan, make_plan
from tdstack.stack import ForkWheel, Request, make_stack
from tdstack.triton_distributed import fork_wheel, take_wheel
from tdstack.wheelhouse.store import Store, default_cache

if TYPE_CHECKING:
    from tdstack.wheelhouse.fetch import Fetched

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Workspace:
    """A checkout with a store, and local folders that may supply files."""

    root: Path
    store: Store
    folders: tuple[Path, ...] = ()

    @staticmethod
    def here(wheelhouse: str = "", root: Path = ROOT) -> Workspace:
        """Return the workspace of this checkout; `wheelhouse` is a folder or a file."""
        folders = (Path(wheelhouse).expanduser(),) if wheelhouse else ()
        if folders and not folders[0].exists():
            raise UsageError("no such file or folder", where=f"--wheelhouse {wheelhouse}")
        return Workspace(root, Store(default_cache()), folders)

    def plan(self, request: Request, wheel: str = "") -> Plan:
        """Make the plan. `wheel` is a Triton-distributed wheel: a path, or URL#sha256=HEX.

        Raises: UsageError, IntegrityError as lock, stack, plan and wheel do.
        """
        lock, _ = load_lock(self.root)
        fork: ForkWheel | None = None
        if wheel:
            fork = take_wheel(wheel, self.store)
        elif request.triton == "distributed":
            fork = fork_wheel(lock.triton_distributed, self.folders, self.store)
        return make_plan(make_stack(lock, replace(request, fork=fork)), self.root)

    def fetch(self, files: Iterable[LockedFile]) -> Fetched:
        """Bring files into the store, with progress."""
        # Imported here: the HTTP libraries take longer to load than a plan takes to make.
        from tdstack.wheelhouse.fetch import fetch
        from tdstack.wheelhouse.sources import Sources

        wanted = list(files)
        missing = sum(not self.store.has(f) for f in wanted)
        if missing:
            size = sum(f.size for f in wanted if not self.store.has(f))
            say(f"fetching {missing} files, {megabytes(size)}")
        with FetchProgress(missing) as progress:
            return fetch(wanted, self.store, Sources(pip_config(), self.folders), progress)

    def fetch_debs(self, debs: Iterable[LockedDeb]) -> dict[str, Path]:
        """Bring Debian packages into the store; return where each lies."""
        wanted = list(debs)
        self.fetch(wanted)
        return {deb.name: self.store.path(deb) for deb in wanted}

    def verify_present(self, files: Iterable[LockedFile]) -> list[LockedFile]:
        """Read every file of `files` that is in the store; return those that are not there.

        Raises: IntegrityError naming the first file whose bytes rotted, after all were read.
        """
        absent: list[LockedFile] = []
        rotten: list[IntegrityError] = []
        for file in files:
            if not self.store.has(file):
                absent.append(file)
                continue
            try:
                self.store.verify(file)
            except IntegrityError as error:
                rotten.append(error)
        if rotten:
            raise rotten[0]
        return absent
