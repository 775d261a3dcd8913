"""An image's own files, out of its layers in a registry."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import IO, cast

from tdstack.attest.imageconfig import ImageConfig, parse_config
from tdstack.attest.inside import Inside, inside_of, read_tar
from tdstack.errors import CheckFailed, IntegrityError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.ship.compress import decompressed

# The kernels layer may have 42 MB by its recipe; what a few bytes decompress to has no limit.
LARGEST = 1 << 30


def read_config(registry: Registry, repository: Repository, manifest: ImageManifest) -> ImageConfig:
    """Return an image's configuration.

    Raises: IntegrityError for one that cannot be read, or has not the manifest's number of
    layers; UpstreamError.
    """
    where = f"{repository}@{manifest.config.digest}"
    config = parse_config(registry.get_blob(repository, manifest.config), where)
    if len(config.diff_ids) != len(manifest.layers):
        raise IntegrityError(
            "the image's configuration is of another manifest",
            where=where,
            expected=f"{len(manifest.layers)} layers",
            got=str(len(config.diff_ids)),
        )
    return config


def read_inside(registry: Registry, repository: Repository, manifest: ImageManifest) -> Inside:
    """Return what an image says of itself, reading the kernels layer alone.

    Raises: CheckFailed for an image without one; IntegrityError for bytes that are not those of
    the digests, or files that are not there or cannot be read; UpstreamError.
    """
    config = read_config(registry, repository, manifest)
    files: dict[str, bytes] = {}
    for layer, diff_id, made_by in zip(
        manifest.layers, config.diff_ids, config.made_by, strict=True
    ):
        if made_by.startswith("tdstack kernels") and not made_by.endswith("bytecode"):
            files |= _files(registry, repository, layer, diff_id)
    if config.layer != "kernels" or not files:
        raise CheckFailed(
            "this is no final image of tdstack",
            where=str(repository),
            expected="a kernels layer",
            got=config.layer or "no label io.tdstack.layer",
        )
    return inside_of(files, str(repository))


def _files(
    registry: Registry, repository: Repository, layer: Descriptor, diff_id: str
) -> dict[str, bytes]:
    where = f"{repository}@{layer.digest}"
    with registry.open_blob(repository, layer) as blob:
        stream = _Tar(decompressed(blob, layer.media_type), where)
        files = read_tar(cast(IO[bytes], stream), where)
        got = stream.rest()
    if got != diff_id:
        raise IntegrityError(
            "a layer is not the one that the image's configuration names",
            where=where,
            expected=diff_id,
            got=got,
        )
    return files


class _Tar(io.RawIOBase):
    """Pieces of a tar as a stream that hashes what goes by."""

    def __init__(self, pieces: Iterator[bytes], where: str) -> None:
        self._pieces, self._where = pieces, where
        self._hash, self._size = hashlib.sha256(), 0
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read into a buffer; return how many bytes, 0 at the end."""
        if not self._held:
            self._held = memoryview(next(self._pieces, b""))
            self._hash.update(self._held)
            self._size += len(self._held)
            if self._size > LARGEST:
                raise IntegrityError(
                    "a layer is too large", where=self._where, expected=f"at most {LARGEST} bytes"
                )
        block, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)

    def rest(self) -> str:
        """Read to the end; return `sha256:<hex>` of all."""
        while self.read(1 << 20):
            pass
        return f"sha256:{self._hash.hexdigest()}"
