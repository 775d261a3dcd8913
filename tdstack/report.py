"""What a build did, as data."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LayerReport:
    """What became of one layer. `parts` maps part titles to unpacked bytes."""

    name: str
    key: str
    source: str
    size: int = 0
    budget: int = 0
    parts: dict[str, int] = field(default_factory=dict)


@dataclass
class BuildReport:
    """What a build did. Sizes are in bytes, times in seconds.

    `cubins` says what was compiled; None when the kernels layer was there already.
    """

    ref: str
    tags: tuple[str, ...]
    image_id: str
    engine: str
    layers: list[LayerReport]
    seconds: dict[str, float]
    cubins: dict[str, object] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data."""
        return {
            "ref": self.ref,
            "tags": list(self.tags),
            "image_id": self.image_id,
            "engine": self.engine,
            "size": sum(layer.size for layer in self.layers),
            "layers": [vars(layer) for layer in self.layers],
            "cubins": self.cubins,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }
