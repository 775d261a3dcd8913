"""Shapes of the layers that end in an all-reduce, from models.toml. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

Layer = Literal["o_proj", "down_proj"]
LAYERS: Final[tuple[Layer, ...]] = ("o_proj", "down_proj")
_DEPTH_STEP: Final = 8
"""Rows of x and weight are multiples of 16 bytes, in 2-byte elements."""


@dataclass(frozen=True)
class Model:
    """Sizes in elements; ``layers`` is how often each of LAYERS occurs."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    layers: int

    def depth(self, layer: Layer, split: int) -> int:
        """Return K of one rank of ``split``.

        Raises: ValueError when the layer cannot be split so.
        """
        whole = self.heads * self.head_dim if layer == "o_proj" else self.intermediate
        if split < 1 or whole % (split * _DEPTH_STEP):
            raise ValueError(f"{self.name} {layer}: {whole} cannot be split over {split} ranks")
        return whole // split


@dataclass(frozen=True)
class Shape:
    """A weight [n, k] of one rank, and the (model, layer) that have it."""

    n: int
    k: int
    users: tuple[tuple[str, Layer], ...]

    @property
    def layer(self) -> str:
        """The layers' names, each once."""
        return "/".join(dict.fromkeys(layer for _, layer in self.users))

    @property
    def models(self) -> str:
        """The models' names, each once."""
        return ", ".join(dict.fromkeys(model for model, _ in self.users))


@cache
def models() -> dict[str, Model]:
    """Return the models of models.toml by name."""
    tables = tomllib.loads(Path(__file__).with_name("models.toml").read_text("utf-8"))
    return {name: Model(name, **table) for name, table in tables.items()}


def shapes_of(chosen: Iterable[Model], split: int) -> tuple[Shape, ...]:
    """Return every shape of the models at ``split`` ranks once.

    Raises: ValueError when a layer cannot be split so.
    """
    users: dict[tuple[int, int], list[tuple[str, Layer]]] = {}
    for model in chosen:
        for layer in LAYERS:
            key = (model.hidden, model.depth(layer, split))
            users.setdefault(key, []).append((model.name, layer))
    return tuple(Shape(n, k, tuple(found)) for (n, k), found in users.items())
