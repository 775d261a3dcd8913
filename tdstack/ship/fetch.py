"""An image of a registry as an OCI layout whose layers are uncompressed, as engines take it."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from tdstack.assemble.image import Image
from tdstack.registry.client import Registry
from tdstack.registry.oci import ImageManifest
from tdstack.registry.reference import Repository
from tdstack.ship.blobs import Blobs
from tdstack.ship.config import parse_config
from tdstack.ship.unpack import unpack
from tdstack.ship.workers import Workers
from tdstack.wheelhouse.store import Store, default_cache


def fetch_image(
    registry: Registry,
    repository: Repository,
    manifest: ImageManifest,
    layout: Path,
    skip: Container[str] = (),
    store: Store | None = None,
) -> Image:
    """Bring an image's layers into `layout` and return its description.

    Both digests of every layer are checked, of the blob and of the tar in it. `skip` holds the
    diff ids that need not come. What an interruption left in the store is used; at the end
    nothing stays there.
    Raises: IntegrityError; UpstreamError; OSError where the disk is full.
    """
    config = parse_config(registry.get_blob(repository, manifest.config), manifest)
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    layers = dict(zip(config.diff_ids, manifest.layers, strict=True))
    # What is skipped must have a size from elsewhere: the label of an image of ours says it.
    wanted = [d for d in layers if not (d in skip and d in config.sizes)]
    store = store or Store(default_cache())
    # One at a time, as in a pull: what one no longer needs of the store another may need.
    with store.locked("pull"), Workers() as workers:
        blobs = Blobs(registry, store, stopped=workers.stopped)

        def bring(diff_id: str) -> int:
            blob = layers[diff_id]
            source = blobs.get(repository, blob)
            return unpack(source, blob, diff_id, config.sizes.get(diff_id), folder)

        coming = {diff_id: workers.submit(bring, diff_id) for diff_id in wanted}
        sizes = {diff_id: future.result() for diff_id, future in coming.items()}
        blobs.forget(manifest.layers)
    return config.image({**config.sizes, **sizes})
