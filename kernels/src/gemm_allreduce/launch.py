"""What a launch consists of: its grid and its run-time arguments, whoever launches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .arguments import ARGUMENTS, EXTRA_BIAS, EXTRA_RESIDUAL, INTEGERS, POINTERS
from .dispatch import Choice
from .layout import MOST_CTAS, PAGE, HeapLayout, ceil_div
from .variants import ROW_BYTES, Variant

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Operands:
    """The tensors of one call; shapes and meaning as in arguments.py. Checked by the caller."""

    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    x_scale: torch.Tensor | None = None
    weight_scale: torch.Tensor | None = None


@dataclass(frozen=True)
class Ranks:
    """Where the heaps are.

    ``table`` is int64 [W], ``status`` int32 [W, STATUS_WORDS] on the host; ``scratch`` is int32
    [MOST_CTAS * DESCRIPTOR_BYTES / 4], the part of this process's first heap for descriptors.
    """

    layout: HeapLayout
    table: torch.Tensor
    status: torch.Tensor
    scratch: torch.Tensor
    rank: int
    virtual: bool


@dataclass(frozen=True)
class Grid:
    """CTAs of one rank: all of them, those that compute, and the first of those that copy."""

    ctas: int
    gemm_ctas: int
    copy_first: int


def plan_grid(
    choice: Choice,
    tokens: int,
    features: int,
    resident_ctas: int,
    *,
    in_order: bool,
    sharing: int = 1,
) -> Grid:
    """Return the grid of one rank for a call. Pure.

    Args:
        choice: the kernel and its shares.
        tokens, features: M and N of the call.
        resident_ctas: how many CTAs of this rank the GPU can hold at once.
        in_order: CTAs run one after another, each to its end, as in Triton's interpreter; a CTA
            then may wait only for what CTAs before it, or the same CTA of peers, do first.
        sharing: ranks on the GPU: each has so many times fewer CTAs that only communicate.
    """
    tile = choice.variant.tile
    if tile.bulk:
        resident_ctas = min(resident_ctas, MOST_CTAS // sharing)
    tiles = ceil_div(tokens, tile.block_m) * ceil_div(features, tile.block_n)
    both = resident_ctas < 2 and not in_order  # no room for CTAs that only communicate
    if choice.variant.algorithm != "two_shot" or not choice.comm_ctas or both:
        ctas = max(1, min(tiles, resident_ctas))
        if in_order and choice.variant.algorithm == "two_shot":
            ctas = 1
        return Grid(ctas, ctas, 0)
    comm = max(1, min(ceil_div(choice.comm_ctas, sharing), resident_ctas // 2))
    gemm = max(1, min(tiles, resident_ctas - comm))
    if in_order:
        return Grid(gemm + 1, gemm, gemm)
    return Grid(gemm + comm, gemm, 0)


def pointers_of(ranks: Ranks, operands: Operands) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a launch, in the order of `arguments.POINTERS`."""
    y = operands.y
    return (
        operands.x,
        operands.weight,
        y,
        y if operands.bias is None else operands.bias,
        y if operands.residual is None else operands.residual,
        ranks.status if operands.x_scale is None else operands.x_scale,
        ranks.status if operands.weight_scale is None else operands.weight_scale,
        ranks.table,
        ranks.status,
    )


def integers_of(ranks: Ranks, operands: Operands, grid: Grid, spin_limit: int) -> tuple[int, ...]:
    """Return the numbers of a launch, in the order of `arguments.INTEGERS`."""
    x, y, layout = operands.x, operands.y, ranks.layout
    extras = EXTRA_BIAS if operands.bias is not None else 0
    extras |= EXTRA_RESIDUAL if operands.residual is not None else 0
    return (
        x.shape[-2],
        y.shape[-1] * y.element_size() // ROW_BYTES,
        x.shape[-1] * x.element_size() // ROW_BYTES,
        ranks.rank,
        grid.gemm_ctas,
        grid.copy_first,
        extras,
        spin_limit,
        layout.partial_flags // PAGE,
        layout.result_flags // PAGE,
        layout.slots // PAGE,
        layout.small_area // 128,
        layout.cells // PAGE,
        layout.receive // PAGE,
        layout.owned_area // 128,
        layout.result // PAGE,
    )


def launch_grid(ranks: Ranks, grid: Grid) -> tuple[int, int]:
    """Return the grid of a launch: ranks in it, and CTAs of each."""
    return (ranks.layout.world_size if ranks.virtual else 1), grid.ctas


def require_runnable(variant: Variant) -> None:
    """Raise RuntimeError for a variant that can be compiled, not run."""
    if variant.multimem:
        raise RuntimeError(
            f"{variant.name} can be compiled, not run: it needs a multicast address of all heaps, "
            "which no transport has; choose the same variant without multimem"
        )


assert tuple(ARGUMENTS) == POINTERS + INTEGERS, "launches give pointers first, then numbers"
