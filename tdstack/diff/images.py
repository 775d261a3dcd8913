"""Images -> snapshots: from an engine, an OCI archive or a registry, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdstack.diff.blobs import OciArchive, layer_tar
from tdstack.diff.facts import (
    altered_of,
    cubins_of,
    manifest_of,
    packages_of,
    settings_of,
    wanted,
)
from tdstack.diff.model import LayerFact, Snapshot
from tdstack.diff.tree import Tree
from tdstack.engines.base import Engine
from tdstack.errors import IntegrityError, UsageError
from tdstack.registry.client import registry_of
from tdstack.registry.oci import Descriptor, parse_json
from tdstack.registry.reference import parse_reference
from tdstack.ship.compress import Readable
from tdstack.ship.resolve import resolve
from tdstack.space import check_room
from tdstack.wheelhouse.store import Store

Open = Callable[[], AbstractContextManager[Readable]]


@dataclass(frozen=True)
class LayerStream:
    """A layer that can be read: its title, its diff id in hex, and how to open its tar."""

    title: str
    diff_id: str
    open: Open


@dataclass(frozen=True)
class ImageSource:
    """An image that can be read. `id` binds all of it; `snapshot` reads every byte."""

    name: str
    id: str
    snapshot: Callable[[], Snapshot]


def engine_image(engine: Engine, ref: str, store: Store) -> ImageSource:
    """Return the image `ref` of the engine.

    Raises: UsageError when the engine has none of that name.
    """
    stored = engine.image(ref)
    if stored is None:
        raise UsageError(
            f"{engine.name} holds no image of that name", where=ref, remedy="invoke build makes one"
        )

    def snapshot() -> Snapshot:
        # The engine can only give all layers at once; on the disk they lie until they are read.
        check_room(store.work(), 2 * stored.size, f"for the layers of {ref}")
        with store.scratch("diff") as folder:
            layout = folder / "layout"
            image = engine.export(ref, layout)
            blobs = layout / "blobs" / "sha256"
            layers = [
                LayerStream(s.made_by, s.blob.sha256, _file(blobs / s.blob.sha256))
                for s in image.steps
            ]
            return read_image(ref, stored.id, layers, image.env, image.labels)

    return ImageSource(ref, stored.id, snapshot)


def archive_image(path: Path) -> ImageSource:
    """Return the one image of an OCI archive."""
    with OciArchive(path) as archive:
        identity = archive.manifest().config.sha256

    def snapshot() -> Snapshot:
        with OciArchive(path) as archive:
            manifest = archive.manifest()
            config = parse_json(archive.document(manifest.config.digest), f"{path}: configuration")

            def opened(blob: Descriptor) -> Open:
                @contextmanager
                def opening() -> Iterator[Readable]:
                    with archive.blob(blob.digest) as stream:
                        yield layer_tar(stream, blob.media_type)

                return opening

            layers = layer_streams(config, [opened(blob) for blob in manifest.layers])
            running = config.get("config", {})
            return read_image(
                str(path), identity, layers, env_of(running), running.get("Labels") or {}
            )

    return ImageSource(str(path), identity, snapshot)


def registry_image(text: str, platform: str) -> ImageSource:
    """Return an image in a registry; its layers are read as they come, and kept nowhere.

    Raises: UsageError for a malformed name; UpstreamError; IntegrityError.
    """
    reference = parse_reference(text)
    registry, repository = registry_of(reference.repository), reference.repository
    _, manifest = resolve(registry, reference, platform)

    def opened(blob: Descriptor) -> Open:
        @contextmanager
        def opening() -> Iterator[Readable]:
            with registry.open_blob(repository, blob) as stream:
                yield layer_tar(stream, blob.media_type)

        return opening

    def snapshot() -> Snapshot:
        data = registry.get_blob(repository, manifest.config)
        config = parse_json(data, "the image's configuration")
        layers = layer_streams(config, [opened(blob) for blob in manifest.layers])
        running = config.get("config") or {}
        labels = running.get("Labels") or {}
        return read_image(text, manifest.config.sha256, layers, env_of(running), labels)

    return ImageSource(text, manifest.config.sha256, snapshot)


def layer_streams(config: Mapping[str, Any], opens: Sequence[Open]) -> list[LayerStream]:
    """Pair the layers of an image's configuration with what opens them. Pure.

    Raises: IntegrityError when it is malformed, or says another number of layers.
    """
    try:
        diff_ids = [str(diff_id) for diff_id in config["rootfs"]["diff_ids"]]
        history = [h for h in config.get("history") or [] if not h.get("empty_layer")]
        titles = [str(h.get("created_by", "")) for h in history]
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError("an image's configuration is malformed", got=repr(error)) from error
    titles += [""] * (len(diff_ids) - len(titles))
    if len(opens) != len(diff_ids):
        raise IntegrityError(
            "an image's manifest and its configuration disagree",
            expected=f"{len(diff_ids)} layers, as in the configuration",
            got=f"{len(opens)} layers",
        )
    return [
        LayerStream(title, diff_id.removeprefix("sha256:"), opening)
        for title, diff_id, opening in zip(titles, diff_ids, opens, strict=False)
    ]


def read_image(
    name: str,
    identity: str,
    layers: Sequence[LayerStream],
    env: Mapping[str, str],
    labels: Mapping[str, str],
) -> Snapshot:
    """Read every layer once.

    Raises: IntegrityError for a layer whose bytes are not those of its diff id.
    """
    tree = Tree(wanted)
    facts = []
    for layer in layers:
        title = layer.title or layer.diff_id[:12]
        with layer.open() as stream:
            size = tree.apply(stream, title, layer.diff_id)
        facts.append(LayerFact(title, layer.diff_id, size))
    return snapshot_of(name, identity, tree, tuple(facts), env, labels)


def snapshot_of(
    name: str,
    identity: str,
    tree: Tree,
    layers: tuple[LayerFact, ...] | None,
    env: Mapping[str, str],
    labels: Mapping[str, str],
    transient: tuple[str, ...] = (),
) -> Snapshot:
    """Return what a file system and its configuration say. Pure."""
    manifest = manifest_of(tree.texts)
    return Snapshot(
        name=name,
        id=identity,
        packages=packages_of(tree.texts, manifest),
        settings=settings_of(manifest),
        files=tree.files,
        layers=layers,
        cubins=cubins_of(tree.texts),
        altered=altered_of(tree.texts, tree.files),
        env=env,
        labels=labels,
        manifest=manifest,
        transient=transient,
    )


def env_of(running: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a container's or image's configuration. Pure."""
    return dict(pair.partition("=")[::2] for pair in running.get("Env") or [])


def _file(path: Path) -> Open:
    @contextmanager
    def opening() -> Iterator[Readable]:
        with path.open("rb") as stream:
            yield stream

    return opening
