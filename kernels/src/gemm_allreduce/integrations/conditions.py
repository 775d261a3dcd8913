"""When a layer, and when a call, takes the fused path. Pure, and without torch.

All ranks must decide alike, or those that call wait for those that do not. So a decision uses only
what is the same on all ranks: sizes of the whole layer, types, modes; never an address or a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..variants import ROW_BYTES

MULTIPLE: Final = ROW_BYTES // 2
"""Of N and of one rank's K, in 2-byte elements."""


@dataclass(frozen=True)
class Layer:
    """A row-parallel linear layer.

    Attributes:
        kind: its class, by full name; ``plain``: the class is torch.nn.Linear, not quantized.
        features: N.
        depth: K of all ranks together.
        dtype, device: of the weight; ``bias_dtype``: of the bias, None where there is none.
        ranks: global ranks that share the layer, in the order of their shards.
    """

    kind: str
    plain: bool
    features: int
    depth: int
    dtype: str
    device: str
    bias_dtype: str | None
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Served:
    """What a workspace serves. ``ranks``: its global ranks in their order, empty if unknown."""

    dtype: str
    device: str
    max_features: int
    ranks: tuple[int, ...]
    virtual: bool = False


@dataclass(frozen=True)
class Tokens:
    """Numbers of rows, M, that take the fused path; ``most`` None is any."""

    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise ValueError(f"no range of rows: from {self.least} to {self.most}")

    def __str__(self) -> str:
        return f"{self.least} rows or more" if self.most is None else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Call:
    """A call of a layer.

    Attributes:
        tokens: M.
        dtype: of x.
        local: x is an ordinary tensor of this rank's columns, [..., K of this rank].
        grad, autocast: these modes are on.
        open: the workspace is not closed.
    """

    tokens: int
    dtype: str
    local: bool
    grad: bool
    autocast: bool
    open: bool


def why_declined(layer: Layer, served: Served) -> str:
    """Return why a layer stays with the native path, or nothing."""
    if not layer.plain:
        return f"it is a {layer.kind}, not a plain torch.nn.Linear"
    if served.virtual:
        return "the workspace's ranks are virtual"
    if layer.ranks != served.ranks:
        return f"its ranks are {layer.ranks}, the workspace's {served.ranks or 'unknown'}"
    if layer.device != served.device:
        return f"it is on {layer.device}, the workspace on {served.device}"
    for name, dtype in (("weight", layer.dtype), ("bias", layer.bias_dtype)):
        if dtype not in (None, served.dtype):
            return f"its {name} is {dtype}, the workspace {served.dtype}"
    if layer.features > served.max_features:
        return f"N is {layer.features}, the workspace's max_features {served.max_features}"
    if layer.features % MULTIPLE:
        return f"N is {layer.features}, no multiple of {MULTIPLE}"
    if layer.depth % (MULTIPLE * len(layer.ranks)):
        return f"K is {layer.depth}, no multiple of {MULTIPLE} x {len(layer.ranks)} ranks"
    return ""


def why_native(call: Call, served_dtype: str, tokens: Tokens) -> str:
    """Return why a call of an armed layer takes the native path, or nothing. A counter's name."""
    if not call.open:
        return "the workspace is closed"
    if call.grad:
        return "grad mode is on"
    if call.autocast:
        return "autocast is on"
    if not call.local:
        return "x is not a local shard"
    if call.dtype != served_dtype:
        return f"x is {call.dtype}"
    return why_outside(call.tokens, tokens.least, tokens.most)


def why_outside(rows: int, least: int, most: int | None) -> str:
    """Return why a number of rows is not fused, or nothing; ``most`` None is any."""
    if rows < least:
        return f"fewer than {least} rows"
    if most is not None and rows > most:
        return f"more than {most} rows"
    return ""


def by_reason(declined: Iterable[tuple[str, str]]) -> list[str]:
    """Return what was declined, of (name, reason), in one phrase for each reason."""
    names: dict[str, list[str]] = {}
    for name, reason in declined:
        names.setdefault(reason, []).append(name)
    return [
        f"{first}{f' and {len(more)} more' if more else ''}: {reason}"
        for reason, (first, *more) in names.items()
    ]
