"""`invoke diff A B`: two sides read, compared and shown."""

from __future__ import annotations

from functools import cached_property

from tdstack.console import emit_json
from tdstack.diff.compare import Difference, compare
from tdstack.diff.containers import container
from tdstack.diff.images import ImageSource, archive_image, engine_image, registry_image
from tdstack.diff.locks import beside_the_lock, lock_for, lock_of_revision, read_lock, whole_lock
from tdstack.diff.model import Snapshot
from tdstack.diff.show import show
from tdstack.diff.sides import (
    Archive,
    Container,
    EngineImage,
    LockFile,
    LockRevision,
    RegistryImage,
    Side,
    parse_side,
)
from tdstack.engines.base import Engine
from tdstack.engines.choose import choose_engine
from tdstack.errors import CheckFailed, UsageError
from tdstack.lock.model import Lock
from tdstack.workspace import Workspace


def diff_verb(
    workspace: Workspace,
    a: str,
    b: str,
    *,
    engine: str,
    platform: str,
    all_files: bool,
    as_json: bool,
) -> Difference:
    """Show what differs from `a` to `b`.

    Raises: UsageError for a side that names nothing; IntegrityError for one that is not whole;
    CheckFailed, with the difference, when the sides differ.
    """
    reader = Reader(workspace, engine, platform)
    found = reader.difference(parse_side(a, "A"), parse_side(b, "B"))
    show(found, all_files=all_files)
    if not found.equal:
        raise CheckFailed("the two differ", where=f"{a}, {b}", details=found.as_dict())
    if as_json:
        emit_json(found.as_dict())
    return found


class Reader:
    """Reads sides; the engine is chosen when a side first needs one."""

    def __init__(self, workspace: Workspace, engine: str, platform: str) -> None:
        self._workspace, self._wanted, self._platform = workspace, engine, platform

    @cached_property
    def _engine(self) -> Engine:
        return choose_engine(self._wanted).engine

    def difference(self, a: Side, b: Side) -> Difference:
        """Read both sides and compare them."""
        locks = [isinstance(side, LockFile | LockRevision) for side in (a, b)]
        if all(locks):
            return compare(whole_lock(*self._lock(a)), whole_lock(*self._lock(b)))
        if any(locks):
            other = beside_the_lock(self._snapshot(b if locks[0] else a))
            if other.manifest is None:
                raise UsageError(
                    "this image does not say what it was built from, so no lock can be compared",
                    where=other.name,
                    expected="an image of `invoke build`, with /opt/tdstack/manifest.json",
                )
            name, lock = self._lock(a if locks[0] else b)
            pinned = lock_for(name, lock, other.manifest)
            return compare(pinned, other) if locks[0] else compare(other, pinned)
        sources = [self._source(side) for side in (a, b)]
        first, second = sources
        if isinstance(first, ImageSource) and isinstance(second, ImageSource):
            if first.id == second.id:  # it binds every byte: nothing needs to be read
                return Difference(first.name, second.name)
            return compare(first.snapshot(), second.snapshot())
        snapshots = [s.snapshot() if isinstance(s, ImageSource) else s for s in sources]
        return compare(snapshots[0], snapshots[1])

    def _snapshot(self, side: Side) -> Snapshot:
        source = self._source(side)
        return source.snapshot() if isinstance(source, ImageSource) else source

    def _source(self, side: Side) -> ImageSource | Snapshot:
        if isinstance(side, EngineImage):
            return engine_image(self._engine, side.ref, self._workspace.store)
        if isinstance(side, Archive):
            return archive_image(side.path)
        if isinstance(side, Container):
            return container(self._engine, side.name)
        assert isinstance(side, RegistryImage)
        return registry_image(side.ref, self._platform)

    def _lock(self, side: Side) -> tuple[str, Lock]:
        if isinstance(side, LockFile):
            return str(side.path), read_lock(side.path)
        assert isinstance(side, LockRevision)
        lock = lock_of_revision(self._workspace.root, side.revision, side.path)
        return f"{side.revision}:{side.path}", lock
