"""What every verb starts from: the checkout, the store, the sources, and the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.console import FetchProgress, megabytes, say
from tdstack.cpython import take_cpython
from tdstack.errors import IntegrityError, UsageError
from tdstack.fork.acquire import fork_wheel, take_wheel
from tdstack.fork.model import ANYWHERE, ForkSource, ForkWheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedDeb, LockedFile
from tdstack.pipconf import pip_config
from tdstack.plan import Plan, make_plan
from tdstack.stack import Request, is_rootfs, make_stack
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

    def plan(self, request: Request, source: ForkSource = ANYWHERE) -> Plan:
        """Make the plan.

        Raises: UsageError, IntegrityError as lock, stack, plan and wheel do.
        """
        lock = load_lock(self.root)[0]
        fork: ForkWheel | None = None
        if source.wheel or request.triton == "distributed":
            own = [r.python for r in lock.rootfs if r.platform == request.platform]
            python = request.python or (request.cpython.python if request.cpython else None)
            python = python or (own[0] if own and is_rootfs(request.base) else None)
            fork = self.fork(source, python)
        return make_plan(make_stack(lock, replace(request, fork=fork)), self.root)

    def request(self, request: Request, cpython: str) -> Request:
        """Return the request with a stand-alone CPython, if one is named.

        Raises: UsageError, IntegrityError as take_cpython does.
        """
        return replace(request, cpython=take_cpython(cpython, self.store)) if cpython else request

    def fork(self, source: ForkSource, python: str | None) -> ForkWheel | None:
        """Return Triton-distributed for Python `python`, if it is named or there already.

        Raises: UsageError, IntegrityError, UpstreamError as take_wheel and fork_wheel do.
        """
        pinned = load_lock(self.root)[0].triton_distributed
        options = {"incomplete": source.incomplete}
        if source.wheel:
            return take_wheel(source.wheel, self.store, pinned, **options)
        return fork_wheel(pinned, self.folders, self.store, python=python, **options)

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
