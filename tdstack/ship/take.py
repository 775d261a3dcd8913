"""Images of a registry into an engine, from the bottom up: all that is asked for, or none.

While the engine takes one image over, the blobs of the next come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from pathlib import Path

from tdstack.console import FetchProgress, Stopwatch, megabytes
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError
from tdstack.plan import LABEL, Plan
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.ship.blobs import Blobs
from tdstack.ship.remote import Complain, Remote
from tdstack.ship.rollback import Names
from tdstack.ship.scratch import scratch
from tdstack.ship.slices import check_slice
from tdstack.ship.unpack import unpack
from tdstack.ship.workers import Workers
from tdstack.space import check_room
from tdstack.wheelhouse.store import Store


@dataclass(frozen=True)
class Wanted:
    """An image to take, and the name that it gets."""

    remote: Remote
    ref: str


@dataclass
class Taker:
    """Takes images of one plan. `then` runs when all have their names; its errors undo them."""

    plan: Plan
    engine: Engine
    store: Store
    registry: Registry
    complain: Complain
    say: Callable[[str], None]
    watch: Stopwatch = field(default_factory=Stopwatch)
    fetched: int = 0

    def take(
        self,
        wanted: Sequence[Wanted],
        held: Sequence[str],
        then: Callable[[Names], None] = lambda names: None,
    ) -> None:
        """Load `wanted`, each on top of the one before it.

        `held` are the diff ids of the image in the engine that the lowest of them stands on.

        Raises: IntegrityError for bytes that are not those of the digests, for images that do not
        stand on each other, or a lock slice that is not the plan's; UpstreamError; HostError.
        """
        _check_chain(wanted)
        top = wanted[-1].remote
        with ExitStack() as stack:
            layout = stack.enter_context(scratch(self.store, self.engine, "pull"))
            pending = self._pending(wanted, held)
            progress = stack.enter_context(FetchProgress(len(pending)))
            workers = stack.enter_context(Workers())
            blobs = Blobs(self.registry, self.store, progress, workers.stopped)
            self._check_room(blobs, wanted, pending)
            # The topmost layer first: it says what the whole was built from, and is small.
            own = pending[-self._own_of_top(wanted, held) :]
            order = sorted(pending, key=lambda diff_id: diff_id not in own)
            coming = {
                diff_id: workers.submit(blobs.get, *self._place(wanted, diff_id))
                for diff_id in order
            }
            folder = layout / "blobs" / "sha256"
            if top.config.labels.get(f"{LABEL}.layer") == "kernels":
                with self.watch.step("download"):
                    self._unpack([d for d in coming if d in own], coming, top, folder)
                self._check_slice(top, own, folder)
            names = stack.enter_context(Names(self.engine))
            for each in wanted:
                self._load(each, coming, layout, names)
            then(names)
            self.fetched += blobs.fetched
            blobs.forget(top.manifest.layers)  # also what a killed pull had fetched

    def _load(
        self, each: Wanted, coming: dict[str, Future[Path]], layout: Path, names: Names
    ) -> None:
        folder = layout / "blobs" / "sha256"
        config = each.remote.config
        with self.watch.step("download"):
            absent = [d for d in config.diff_ids if d in coming and not (folder / d[7:]).exists()]
            self._unpack(absent, coming, each.remote, folder)
        names.about_to_give(each.ref)
        with self.watch.step("load"):
            image = config.image(config.sizes)
            self.engine.load(layout, image, each.ref)
        for diff_id in config.diff_ids:
            coming.pop(diff_id, None)  # the engine has it; on a small disk copies would fill it
            (folder / diff_id.removeprefix("sha256:")).unlink(missing_ok=True)
        size = megabytes(image.size)
        self.say(f"  {config.labels.get(f'{LABEL}.layer', ''):8} loaded  {size}  {each.ref}")

    @staticmethod
    def _unpack(
        diff_ids: Sequence[str], coming: dict[str, Future[Path]], remote: Remote, folder: Path
    ) -> None:
        layers = dict(zip(remote.config.diff_ids, remote.manifest.layers, strict=True))
        for diff_id in diff_ids:
            source = coming[diff_id].result()
            unpack(source, layers[diff_id], diff_id, remote.config.sizes.get(diff_id), folder)

    def _check_slice(self, top: Remote, own: Sequence[str], folder: Path) -> None:
        steps = [s for s in top.config.image(top.config.sizes).steps if s.blob.digest in own]
        try:
            check_slice(self.plan, folder, steps, str(top.reference))
        except IntegrityError as error:
            self.complain(error)

    @staticmethod
    def _pending(wanted: Sequence[Wanted], held: Sequence[str]) -> list[str]:
        top = wanted[-1].remote.config.diff_ids
        return list(dict.fromkeys(top[_shared(top, held) :]))

    @staticmethod
    def _own_of_top(wanted: Sequence[Wanted], held: Sequence[str]) -> int:
        top = wanted[-1].remote.config.diff_ids
        below = wanted[-2].remote.config.diff_ids if len(wanted) > 1 else ()
        return len(top) - max(len(below), _shared(top, held))

    @staticmethod
    def _place(wanted: Sequence[Wanted], diff_id: str) -> tuple[Repository, Descriptor, str]:
        """Return where a layer's blob is, and what to call it: the lowest image that has it."""
        remote = next(w.remote for w in wanted if diff_id in w.remote.config.diff_ids)
        blob = remote.manifest.layers[remote.config.diff_ids.index(diff_id)]
        return remote.repository, blob, remote.config.labels.get(f"{LABEL}.layer", "blob")

    def _check_room(self, blobs: Blobs, wanted: Sequence[Wanted], pending: Sequence[str]) -> None:
        sizes = wanted[-1].remote.config.sizes
        coming = blobs.missing(self._place(wanted, diff_id)[1] for diff_id in pending)
        largest = max(
            (
                sum(
                    sizes[d] for d in each.remote.config.diff_ids if d in pending and d not in below
                )
                for each, below in zip(wanted, _below(wanted), strict=True)
            ),
            default=0,
        )
        if pending:
            self.say(f"  fetching {len(pending)} blobs, {megabytes(coming)}")
        check_room(self.store.root, coming + largest, "for the image on its way")
        storage = self.engine.storage()
        if storage and pending:
            total = sum(sizes[diff_id] for diff_id in pending)
            both = storage.stat().st_dev == self.store.root.stat().st_dev
            need = total + (coming + largest if both else 0)
            check_room(storage, need, "in the engine's store")


def _shared(top: Sequence[str], held: Sequence[str]) -> int:
    """Return how many layers two images share from the bottom up.

    An engine knows a layer by all that lies below it, not by its own hash.
    """
    equal = (mine == theirs for mine, theirs in zip(top, held, strict=False))
    return sum(1 for _ in takewhile(bool, equal))


def _below(wanted: Sequence[Wanted]) -> list[tuple[str, ...]]:
    return [(), *(each.remote.config.diff_ids for each in wanted[:-1])]


def _check_chain(wanted: Sequence[Wanted]) -> None:
    for lower, upper in pairwise(wanted):
        below, above = lower.remote.config.diff_ids, upper.remote.config.diff_ids
        if above[: len(below)] != below:
            raise IntegrityError(
                "images of the registry do not stand on each other",
                where=str(upper.remote.reference),
                expected=f"the layers of {lower.remote.reference} below its own",
                remedy="push the images again",
            )
