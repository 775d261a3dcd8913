"""Layers out of an engine, compressed, and into a registry, the next one while one is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.image import Image
from tdstack.console import Stopwatch
from tdstack.engines.base import Engine
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.ship.compress import compress
from tdstack.ship.records import Records
from tdstack.ship.scratch import scratch
from tdstack.ship.target import Place, Target
from tdstack.ship.workers import Workers
from tdstack.space import check_room
from tdstack.wheelhouse.store import Store

# Compressed layers that may wait on the disk for their turn to be sent.
WAITING = 2


@dataclass(frozen=True)
class Sent:
    """A layer that the registry has now; `anew` if its bytes went there just now."""

    diff_id: str
    place: Place
    anew: bool


@dataclass(frozen=True)
class Sender:
    """Sends layers of images of one engine."""

    target: Target
    engine: Engine
    store: Store
    say: Callable[[str], None]
    watch: Stopwatch

    def send(self, ref: str, image: Image, homes: Mapping[str, Repository]) -> list[Sent]:
        """Send layers of the image `ref`, each to its home; `homes` maps diff ids to them.

        Raises: IntegrityError when the engine's bytes are not those of a diff id; UpstreamError;
        HostError.
        """
        rest = left_out(image, homes)
        need = sum(step.blob.size for step in image.steps if step.blob.digest not in rest)
        with ExitStack() as stack:
            layout = stack.enter_context(scratch(self.store, self.engine, "push"))
            check_room(self.store.root, need, "for the image on its way")
            with self.watch.step("export"):
                self.say(f"  reading {ref} out of {self.engine.name}")
                self.engine.export(ref, layout, rest)
            folder = layout / "blobs" / "sha256"
            for path in folder.iterdir():  # only what is sent needs the room
                if f"sha256:{path.name}" not in homes:
                    path.unlink()
            workers = stack.enter_context(Workers())
            sending: list[Future[Sent]] = []
            for diff_id, home in homes.items():
                with self.watch.step("compress"):
                    made, blob = self._compress(folder, diff_id)
                sending.append(workers.submit(self._send_one, made, Place(blob, home), diff_id))
                if len(sending) > WAITING:
                    sending[-WAITING - 1].result()
            with self.watch.step("send"):
                return [future.result() for future in sending]

    def _compress(self, folder: Path, diff_id: str) -> tuple[Path, Descriptor]:
        source = folder / diff_id.removeprefix("sha256:")
        made = source.with_suffix(".packed")
        with source.open("rb") as stream, made.open("wb") as out:
            packed = compress(stream, out, self.target.compression, diff_id)
        source.unlink()
        blob = Descriptor(packed.media_type, packed.digest, packed.size)
        Records(self.store).put(diff_id, self.target.compression, blob)
        return made, blob

    def _send_one(self, made: Path, place: Place, diff_id: str) -> Sent:
        blob, home = place.blob, place.repository
        anew = self.target.registry.put_blob(home, made, blob)
        made.unlink()
        self.say(f"  sent {blob.size / 1e6:9,.1f} MB  {blob.digest[7:19]} to {home.path}")
        return Sent(diff_id, place, anew)


def left_out(image: Image, absent: Collection[str]) -> frozenset[str]:
    """Return the layers to leave out of an export. Pure.

    An engine that leaves some out may compress the others for it: worth it for a small part only.
    """
    wanted = sum(step.blob.size for step in image.steps if step.blob.digest in absent)
    if wanted > image.size / 4:
        return frozenset()
    return frozenset(step.blob.digest for step in image.steps) - frozenset(absent)
