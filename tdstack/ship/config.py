"""The configuration of an image in a registry, read before any of its layers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tdstack.assemble.image import Image
from tdstack.assemble.stored import steps_of
from tdstack.engines.export import image_of
from tdstack.errors import HostError, IntegrityError
from tdstack.registry.oci import ImageManifest, digest_of, parse_json


@dataclass(frozen=True)
class Config:
    """An image's configuration: its exact bytes and what is read from them.

    `sizes` are those of the layer tars in bytes, by diff id, as far as the labels say them.
    """

    data: bytes
    labels: Mapping[str, str]
    diff_ids: tuple[str, ...]
    sizes: Mapping[str, int]

    @property
    def id(self) -> str:
        """Return the image's id in every engine: the sha256 in hex."""
        return digest_of(self.data).removeprefix("sha256:")

    def image(self, sizes: Mapping[str, int]) -> Image:
        """Return the description of the image whose layer tars have these sizes.

        Raises: IntegrityError when it does not give this configuration, byte for byte.
        """
        try:
            image = image_of(dict(parse_json(self.data, "the image's configuration")), dict(sizes))
        except (KeyError, TypeError, AttributeError, ValueError, HostError) as error:
            raise _malformed(str(error)) from error
        if image.config() != self.data:
            raise IntegrityError(
                "the image was not made by tdstack",
                where=f"image id {self.id[:12]}",
                expected="a configuration as tdstack writes it",
            )
        return image


def parse_config(data: bytes, manifest: ImageManifest) -> Config:
    """Read a configuration that belongs to `manifest`.

    Raises: IntegrityError when it is malformed, contradicts its labels or has not as many layers
    as the manifest.
    """
    top = parse_json(data, "the image's configuration")
    rootfs, running = top.get("rootfs"), top.get("config") or {}
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    labels = running.get("Labels") or {} if isinstance(running, dict) else None
    if not isinstance(diff_ids, list) or not all(isinstance(d, str) for d in diff_ids):
        raise _malformed("no diff_ids")
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise _malformed("no labels")
    if len(diff_ids) != len(manifest.layers):
        raise _malformed(f"{len(diff_ids)} diff_ids for {len(manifest.layers)} layers")
    steps = steps_of(labels)
    if steps and [step.blob.digest for step in steps] != diff_ids:
        raise _malformed("its label lists other layers than it has")
    sizes = {step.blob.digest: step.blob.size for step in steps}
    return Config(data, labels, tuple(diff_ids), sizes)


def _malformed(got: str) -> IntegrityError:
    return IntegrityError("the image's configuration is malformed", got=got[:200])
