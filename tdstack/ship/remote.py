"""The image of a layer in a registry, compared with the plan before any of its blobs is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tdstack.assemble.image import Image
from tdstack.assemble.stored import BLOBS, health_check, steps_of
from tdstack.errors import IntegrityError
from tdstack.plan import LABEL, Layer, Plan
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Reference, Repository
from tdstack.ship.config import Config, parse_config
from tdstack.ship.names import layer_reference
from tdstack.ship.resolve import find

if TYPE_CHECKING:
    from tdstack.attest.bundles import Keyless
    from tdstack.attest.keys import PublicKey

# What becomes of a mismatch with the lock: an error, or with --force a warning.
Complain = Callable[[IntegrityError], None]


@dataclass(frozen=True)
class Remote:
    """An image in a registry: where, its manifest, its configuration, and who signed it.

    `signed_by` is a key's fingerprint, an identity, or both with a comma between them.
    """

    reference: Reference
    descriptor: Descriptor
    manifest: ImageManifest
    config: Config
    signed_by: str = ""

    @property
    def repository(self) -> Repository:
        """Return where its blobs are."""
        return self.reference.repository

    def blobs(self, below: int) -> list[tuple[str, Descriptor]]:
        """Return diff id and blob of every layer but the lowest `below`."""
        pairs = zip(self.config.diff_ids, self.manifest.layers, strict=True)
        return list(pairs)[below:]


@dataclass(frozen=True)
class Source:
    """A registry to take images from.

    Images must be signed by one of `keys`, if there are any, and as `keyless` asks, if it does.
    """

    registry: Registry
    repository: Repository
    platform: str
    keys: Sequence[PublicKey] = ()
    keyless: Keyless | None = None

    def image(self, reference: Reference) -> Remote | None:
        """Return an image whose digests and signatures hold, or None when there is none.

        Raises: IntegrityError; UpstreamError.
        """
        found = find(self.registry, reference, self.platform)
        if found is None:
            return None
        descriptor, manifest = found
        signed_by = self._signer(reference.repository, descriptor)
        data = self.registry.get_blob(reference.repository, manifest.config)
        return Remote(reference, descriptor, manifest, parse_config(data, manifest), signed_by)

    def layer(self, plan: Plan, layer: Layer) -> Remote | None:
        """Return the image of a layer, which is what the plan says; or None when there is none.

        Raises: IntegrityError; UpstreamError.
        """
        remote = self.image(layer_reference(self.repository, layer))
        if remote:
            check_layer(remote, plan, layer)
        return remote

    def _signer(self, repository: Repository, descriptor: Descriptor) -> str:
        found = []
        if self.keys:
            from tdstack.attest.check import check_signature

            found.append(check_signature(self.registry, repository, descriptor, self.keys))
        if self.keyless:
            found.append(str(self.keyless.check(self.registry, repository, descriptor)))
        return ", ".join(found)


def check_layer(remote: Remote, plan: Plan, layer: Layer) -> None:
    """Compare an image with the layer that it should be: its configuration follows from the plan.

    Raises: IntegrityError for another key, another lock slice, or anything else that differs.
    """
    config = remote.config
    names = (f"{LABEL}.key", f"{LABEL}.lock-slice", f"{LABEL}.layer", f"{LABEL}.parent")
    for name in names:
        wanted, got = layer.labels.get(name, ""), config.labels.get(name, "")
        if wanted != got:
            raise _other(remote, f"{name} {wanted or 'absent'}", f"{name} {got or 'absent'}")
    image = config.image(config.sizes) if config.sizes else None
    if image is None:
        raise _other(remote, f"the label {BLOBS}", "no such label")
    expected = expected_image(plan, layer, image)
    if expected.config() != config.data:
        raise _other(remote, *_difference(expected, image))


def expected_image(plan: Plan, layer: Layer, image: Image) -> Image:
    """Return what the plan makes of a layer whose blobs are those of `image`. Pure."""
    # Of another base's environment the plan knows nothing; of ours there is none.
    below = image.env if plan.stack.rootfs is None else {}
    labels = {**layer.labels, BLOBS: image.labels.get(BLOBS, "")}
    return Image(
        plan.stack.platform,
        steps_of(image.labels),
        env={**below, **layer.env},
        labels=labels,
        healthcheck=health_check(layer.name),
    )


def _difference(expected: Image, got: Image) -> tuple[str, str]:
    for name, value in vars(expected).items():
        other = getattr(got, name)
        if value != other:
            return f"{name} {value}"[:200], f"{name} {other}"[:200]
    return "the plan's configuration", "another one"


def _other(remote: Remote, expected: str, got: str) -> IntegrityError:
    return IntegrityError(
        "the registry's image is not what the lock says",
        where=str(remote.reference),
        expected=expected,
        got=got,
        remedy="push the right image again; do not use this one, as its tag was moved or its "
        "registry altered",
    )
