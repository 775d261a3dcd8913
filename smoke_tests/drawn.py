"""Whole sequences of calls as plain data: what a property test draws, prints and plays again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

Algorithm = Literal["table", "one_shot", "lamport", "two_shot", "two_shot_split", "two_shot_comm"]
Out = Literal["new", "given", "residual"]

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)
TILES: Final = ((16, 64), (64, 64), (32, 128))
"""Rows and columns of a tile. A table's call has the table's, and two-shot takes no (16, 64)."""


@dataclass(frozen=True)
class Layer:
    """A weight [W, features, depth]; all calls with it take x of the same kind.

    Attributes:
        features, depth: N, and K of one rank, in elements.
        operand: ``fp16``, or ``int8`` with scales.
        exact: small integers, whose results are known bit for bit; else random values.
    """

    features: int
    depth: int
    operand: Literal["fp16", "int8"]
    exact: bool


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        layer: index of its layer.
        tokens: M, rows; may be 0, or over the workspace's.
        algorithm: which kernel, ``table`` for the package's choice; ``lamport`` as far as it
            serves so many rows, else ``one_shot``.
        tile: one of TILES.
        bias, residual: whether they are given.
        out: where y goes; ``residual`` overwrites that.
        late: a rank that comes some milliseconds late, or -1.
    """

    layer: int
    tokens: int
    algorithm: Algorithm
    tile: tuple[int, int]
    bias: bool
    residual: bool
    out: Out
    late: int


@dataclass(frozen=True)
class Sequence:
    """Calls on one workspace of W ranks. ``seed`` makes all values; see `Layer` and `Call`."""

    world_size: int
    max_tokens: int
    first_epoch: int
    seed: int
    layers: tuple[Layer, ...]
    calls: tuple[Call, ...]

    def to_json(self) -> str:
        """Return it on one line, for `from_json`."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Sequence:
        """Return what `to_json` wrote. Raises: ValueError, TypeError, KeyError for other text."""
        fields = json.loads(text)
        layers = tuple(Layer(**layer) for layer in fields.pop("layers"))
        calls = tuple(
            Call(**(call | {"tile": tuple(call["tile"])})) for call in fields.pop("calls")
        )
        return Sequence(**fields, layers=layers, calls=calls)

    def __str__(self) -> str:
        lines = [
            f"{self.world_size} ranks, max_tokens {self.max_tokens}, first epoch "
            f"{self.first_epoch}, seed {self.seed}"
        ]
        lines += [f"layer {number}: {layer}" for number, layer in enumerate(self.layers)]
        lines += [f"call {number}: {call}" for number, call in enumerate(self.calls)]
        return "\n".join(lines)


def fixed(world_size: int) -> Sequence:
    """Return a sequence with something of everything: it is played whatever else is drawn."""
    first, last = 0, world_size - 1
    return Sequence(
        world_size,
        max_tokens=40,
        first_epoch=-2,
        seed=1,
        layers=(Layer(136, 48, "fp16", exact=False), Layer(72, 32, "int8", exact=True)),
        calls=(
            Call(0, 17, "one_shot", (16, 64), bias=True, residual=False, out="new", late=last),
            Call(1, 40, "two_shot_split", (32, 128), False, True, out="residual", late=-1),
            Call(0, 0, "table", (64, 64), bias=True, residual=True, out="new", late=-1),
            Call(1, 41, "two_shot_comm", (64, 64), True, False, out="given", late=first),
            Call(0, 1, "table", (64, 64), bias=True, residual=True, out="given", late=-1),
            Call(1, 81, "one_shot", (64, 64), bias=False, residual=True, out="new", late=-1),
            Call(0, 16, "lamport", (16, 64), bias=False, residual=False, out="new", late=first),
            Call(0, 33, "two_shot", (32, 128), bias=True, residual=True, out="new", late=last),
        ),
    )
