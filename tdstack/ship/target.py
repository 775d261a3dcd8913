"""Where a push goes, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.ship.compress import Compression

if TYPE_CHECKING:
    from tdstack.attest.bundles import KeylessSigner
    from tdstack.attest.keys import Signer


@dataclass
class PushReport:
    """What a push did. Sizes are in bytes of blobs as they are on the wire, times in seconds.

    `layers` says of each layer whether its image was `present` or `pushed`.
    """

    ref: str
    tags: tuple[str, ...]
    digest: str = ""
    image_id: str = ""
    layers: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    mounted: int = 0
    present: int = 0
    attached: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data."""
        times = {name: round(value, 2) for name, value in self.seconds.items()}
        both = {"tags": list(self.tags), "attached": list(self.attached), "seconds": times}
        return vars(self) | both


@dataclass(frozen=True)
class Target:
    """Where a push goes, and how. `recompress` replaces layers that are there in another form."""

    registry: Registry
    repository: Repository
    compression: Compression = "zstd"
    recompress: bool = False
    signer: Signer | None = None
    force: bool = False
    keyless: KeylessSigner | None = None


@dataclass(frozen=True)
class Place:
    """A compressed layer and a repository that has it."""

    blob: Descriptor
    repository: Repository
