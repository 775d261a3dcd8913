"""The compile-time variants of the one-shot kernel, as plain data. Imports no Triton."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DTYPES: Final = ("bf16", "fp16")
WORLD_SIZES: Final = (1, 2, 4, 8)

ENABLE_FP_FUSION: Final = False
"""Pinned for JIT and ahead of time alike, since Triton's default differs between releases."""


@dataclass(frozen=True)
class Variant:
    """What is fixed when the kernel is compiled.

    Attributes:
        dtype: element type of x, weight, partials and y: ``"bf16"`` or ``"fp16"``.
        world_size: number of ranks W.
        block_m, block_n: tile of y that one CTA computes, in elements.
        block_k: depth of one step of the K loop, in elements.
        num_stages: depth of the software pipeline of the K loop.
        num_warps: warps per CTA.

    Raises:
        ValueError: an attribute is outside what the kernel supports.
    """

    dtype: str
    world_size: int
    block_m: int
    block_n: int
    block_k: int
    num_stages: int
    num_warps: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("world_size", "block_m", "block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        for name in ("block_m", "block_n", "block_k"):
            if getattr(self, name) < 16:
                raise ValueError(f"{name} must be at least 16, got {getattr(self, name)}")
        if self.num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, got {self.num_stages}")

    @property
    def name(self) -> str:
        """Unique name, also the stem of the cubin's file name."""
        return (
            f"one_shot_{self.dtype}_w{self.world_size}"
            f"_{self.block_m}x{self.block_n}x{self.block_k}"
            f"_stages{self.num_stages}_warps{self.num_warps}"
        )


# W -> (block_m, block_n, block_k, num_stages, num_warps). The wide tile of W > 1 was the fastest
# of those tried on one H100 at N 8192, M 16; at W 1 the narrow one was.
_TILES: Final[dict[int, tuple[int, int, int, int, int]]] = {
    1: (16, 64, 128, 4, 4),
    2: (16, 128, 128, 3, 8),
    4: (16, 128, 128, 3, 8),
    8: (16, 128, 128, 3, 8),
}

VARIANTS: Final[tuple[Variant, ...]] = tuple(
    Variant(dtype, world_size, *_TILES[world_size])
    for dtype in DTYPES
    for world_size in WORLD_SIZES
)


def variant_names() -> tuple[str, ...]:
    """Return the names of all variants, in table order."""
    return tuple(variant.name for variant in VARIANTS)


def find_variant(dtype: str, world_size: int) -> Variant:
    """Return the table's variant for an element type and a number of ranks.

    Depends on nothing else, so that all ranks of a group choose alike.

    Raises:
        LookupError: the table has none; the message names what it has.
    """
    for variant in VARIANTS:
        if (variant.dtype, variant.world_size) == (dtype, world_size):
            return variant
    raise LookupError(
        f"no one-shot variant for dtype {dtype!r} and {world_size} ranks; "
        f"there are dtypes {', '.join(DTYPES)} and world sizes {', '.join(map(str, WORLD_SIZES))}"
    )


QUICK_VARIANT: Final = find_variant("bf16", 8)


def select_variants(names: Iterable[str]) -> tuple[Variant, ...]:
    """Return the named variants in table order, each once.

    Raises:
        LookupError: a name is unknown; the message lists the valid ones.
    """
    wanted = set(names)
    unknown = sorted(wanted - set(variant_names()))
    if unknown:
        raise LookupError(
            f"unknown variant {', '.join(unknown)}; valid: {', '.join(variant_names())}"
        )
    return tuple(variant for variant in VARIANTS if variant.name in wanted)
