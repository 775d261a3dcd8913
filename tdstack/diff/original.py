"""The image that a rebuild is compared with, of an engine or a registry, read only if need be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.stored import steps_of
from tdstack.assemble.tar import CHUNK
from tdstack.attest.inside import read_engine
from tdstack.attest.layerfiles import read_inside
from tdstack.attest.lockslice import LockSlice
from tdstack.attest.verbs import is_local
from tdstack.engines.base import Engine
from tdstack.errors import HostError
from tdstack.registry.client import registry_of
from tdstack.registry.oci import parse_json
from tdstack.registry.reference import parse_reference
from tdstack.ship.compress import decompressed
from tdstack.ship.config import parse_config
from tdstack.ship.resolve import resolve
from tdstack.space import check_room


@dataclass(frozen=True)
class Configuration:
    """What an image's id stands for beside its layers."""

    env: Mapping[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Original:
    """An image of tdstack. `slice` is what it says it was built from, `id` is in hex.

    `fetch` writes the tars of the diff ids given into a folder, each under its hex digits.
    """

    ref: str
    id: str
    diff_ids: tuple[str, ...]
    configuration: Configuration
    slice: LockSlice
    fetch: Callable[[Collection[str], Path], None]


def find_original(engine: Engine, ref: str, platform: str) -> Original:
    """Return an image of the engine, or of a registry.

    Raises: HostError, UpstreamError when it is not there; CheckFailed for one that is none of
    tdstack; IntegrityError for bytes that are not those of their digests.
    """
    return _of_engine(engine, ref) if is_local(ref) else _of_registry(ref, platform)


def export_layers(engine: Engine, ref: str, wanted: Collection[str], folder: Path) -> None:
    """Write layer tars of an engine's image into `folder`, each under its hex digits."""
    stored = engine.image(ref)
    assert stored is not None
    told = {step.blob.digest for step in steps_of(stored.labels)}
    engine.export(ref, folder / "layout", told - set(wanted))
    for path in (folder / "layout" / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" in wanted:
            path.replace(folder / path.name)
        else:
            path.unlink()


def _of_engine(engine: Engine, ref: str) -> Original:
    stored = engine.image(ref)
    if stored is None:
        raise HostError(
            "there is no such image in the engine",
            where=f"{engine.describe()}: {ref}",
            remedy="`invoke build` makes it, `invoke pull` brings it",
        )

    def fetch(wanted: Collection[str], folder: Path) -> None:
        check_room(folder, 2 * stored.size, "for the layers of the image")
        export_layers(engine, ref, wanted, folder)

    configuration = Configuration(stored.env, stored.labels)
    inside = read_engine(engine, ref)
    return Original(ref, stored.id, stored.diff_ids, configuration, inside.slice, fetch)


def _of_registry(ref: str, platform: str) -> Original:
    reference = parse_reference(ref)
    registry, repository = registry_of(reference.repository), reference.repository
    _, manifest = resolve(registry, reference, platform)
    data = registry.get_blob(repository, manifest.config)
    config = parse_config(data, manifest)
    running = parse_json(data, "the image's configuration").get("config") or {}
    env = dict(pair.partition("=")[::2] for pair in running.get("Env") or [])

    def fetch(wanted: Collection[str], folder: Path) -> None:
        for diff_id, blob in zip(config.diff_ids, manifest.layers, strict=True):
            if diff_id not in wanted:
                continue
            check_room(folder, config.sizes.get(diff_id, blob.size), "for a layer of the image")
            with (
                registry.open_blob(repository, blob) as stream,
                (folder / diff_id.removeprefix("sha256:")).open("wb", buffering=CHUNK) as out,
            ):
                for piece in decompressed(stream, blob.media_type):
                    out.write(piece)

    inside = read_inside(registry, repository, manifest)
    configuration = Configuration(env, config.labels)
    return Original(ref, config.id, config.diff_ids, configuration, inside.slice, fetch)
