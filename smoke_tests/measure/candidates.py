"""Which kernels are worth a try for a shape, and which of them do not fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Final

from gemm_allreduce.dispatch import Choice, Shape
from gemm_allreduce.layout import TILE_ROWS, HeapLayout
from gemm_allreduce.limits import limits
from gemm_allreduce.variants import WARP, Algorithm, Tile, Variant

COLUMNS: Final = (64, 128, 256)
DEPTHS: Final = (64, 128, 256)
"""Of one step of the K loop, in elements of 2 bytes."""
MOST_STAGES: Final = {64: 6, 128: 4, 256: 3}
"""Of the pipeline, by the depth of a step."""
ALONE_TO: Final = 64
"""Values of M up to which tiles are tried that leave no second one room on a multiprocessor: early
kernels then spread evenly. With more rows tiles are so large anyway."""
MOST_PER_SM: Final = 2
COMM_CTAS: Final = (8, 16, 24)
ACCUMULATORS: Final = 128
"""Most registers of a thread for its part of a tile; the rest is for pointers and operands."""
OTHERS: Final = 40
"""Least registers of a thread for all but that."""
COMMUNICATE_FROM: Final = 256
"""CTAs that only communicate pay where there are many tiles: M above."""
LEAST_AREA: Final = ((256, 128 * 128), (128, 64 * 128))
"""Elements of a tile for M above: smaller ones read x and weight too often."""
BULK_ROWS: Final = 64
"""Bulk copies pay with the matrix units that read shared memory: from so many rows, on sm_90 on."""
UNFUSED_FROM: Final = 17
UNFUSED_TO: Final = 512
"""Values of M for which a product by torch and a sum by its own kernel are tried: with fewer rows
the second launch costs more than a faster product gives, with more there is much to overlap."""


def candidates(shape: Shape) -> tuple[Choice, ...]:
    """Return the choices to time for a shape, the same on every rank.

    Tiles of the least rows that hold M (and of half as many), with the deepest pipeline that fits,
    and with the least that leaves no room for another CTA; every algorithm that serves the shape.
    What needs more shared memory than the architecture has, by estimate, or more registers than
    its warps can have, is left out.
    """
    found = dict.fromkeys(
        choice for tile, per_sm in _tiles(shape) for choice in _choices(shape, tile, per_sm)
    )
    return (*found, *_unfused(shape))


def misfit(choice: Choice, arch: str, registers: int, shared: int) -> str | None:
    """Return why a compiled kernel cannot be resident as often as the choice says, or None.

    Args:
        choice: the kernel and its CTAs on a multiprocessor.
        arch: of the GPU.
        registers: of a thread, as compiled.
        shared: bytes of a CTA, as compiled.
    """
    table, ctas, warps = limits(), choice.ctas_per_sm, choice.variant.tile.num_warps
    if registers > (most := table.registers_of_thread(warps, ctas)):
        return f"{registers} registers a thread, at most {most} for {ctas} a multiprocessor"
    if shared > (most := table.shared_of_cta(arch, ctas)):
        return f"{shared} bytes of shared memory, at most {most} for {ctas} a multiprocessor"
    return None


def _tiles(shape: Shape) -> Iterator[tuple[Tile, int]]:
    """Yield tiles, and how many CTAs of each a multiprocessor shall hold."""
    fitting = _fitting_rows(shape)
    least = next((area for above, area in LEAST_AREA if shape.tokens > above), 0)
    for rows in sorted({fitting, max(16, fitting // 2)}):
        for columns in COLUMNS:
            if rows * columns < least:
                continue
            for depth, warps, bulk in product(DEPTHS, (4, 8), (False, True)):
                for per_sm in range(1, MOST_PER_SM + 1):
                    for tile in _made(shape, rows, columns, depth, warps, bulk=bulk, per_sm=per_sm):
                        yield tile, per_sm


def _fitting_rows(shape: Shape) -> int:
    return min(TILE_ROWS, max(16, 1 << (shape.tokens - 1).bit_length()))


def _made(
    shape: Shape, rows: int, columns: int, depth: int, warps: int, *, bulk: bool, per_sm: int
) -> Iterator[Tile]:
    """Yield a tile with each pipeline that is worth a try; none, if no pipeline fits."""
    table, matrix_units = limits(), _reads_shared(shape.arch) and rows >= BULK_ROWS
    if bulk and not matrix_units:
        return
    flat = depth == max(DEPTHS)
    if flat and rows > 16:
        return  # the step of a tall tile is long enough
    accumulators = rows * columns // (WARP * warps)
    if accumulators > ACCUMULATORS:
        return
    if accumulators + OTHERS > table.registers_of_thread(warps, per_sm):
        return
    stage = 2 * depth * (rows + columns)
    room = table.shared_of_cta(shape.arch, per_sm) // stage
    # Without such matrix units the last stage goes from shared memory to registers at once.
    spare = 0 if matrix_units else 1
    found = set()
    if warps == 4 or rows * columns >= 128 * 128 or flat:  # else too little for so many to do
        found = {min(MOST_STAGES[depth], room + spare)}
    if per_sm == 1 and shape.tokens <= ALONE_TO and rows == _fitting_rows(shape):
        alone = table.shared_of_cta(shape.arch, 2) // stage + 1
        found |= {stages + spare for stages in (alone, alone + 1) if stages <= room}
    for stages in sorted(found - {0, 1}):
        yield Tile(rows, columns, depth, stages, warps, bulk)


def _reads_shared(arch: str) -> bool:
    return int(arch.removeprefix("sm_")) in (90, 100, 103)


def _choices(shape: Shape, tile: Tile, per_sm: int) -> Iterator[Choice]:
    """Yield every algorithm with a tile that serves the shape."""
    w = shape.world_size
    kinds: list[tuple[Algorithm, int, int]]
    if w == 1:
        kinds = [("direct", 1, 0)]
    else:
        layout, rows = HeapLayout(w, 1, 1), max(shape.tokens, tile.block_m)
        kinds = [("two_shot", w, 0), ("two_shot", 1, 0)]
        if shape.tokens > COMMUNICATE_FROM:
            kinds += [("two_shot", 1, comm_ctas) for comm_ctas in COMM_CTAS]
        kinds += [("one_shot", 1, 0)] * (rows <= layout.small_tokens)
        kinds += [("lamport", 1, 0)] * (rows <= layout.cell_tokens)
    for algorithm, split, comm_ctas in kinds:
        operand = shape.operand or shape.dtype
        try:
            variant = Variant(algorithm, shape.dtype, operand, w, tile, split)
        except ValueError:  # a tile that this algorithm cannot have
            continue
        yield Choice(variant, comm_ctas, per_sm)


def _unfused(shape: Shape) -> Iterator[Choice]:
    """Yield what only sums, where torch can multiply: every algorithm that serves the shape."""
    if shape.world_size == 1 or not shape.plain or not UNFUSED_FROM <= shape.tokens <= UNFUSED_TO:
        return
    rows = _fitting_rows(shape)
    tile = Tile(rows, 128, 128, 1, 8 if rows == TILE_ROWS else 4)
    for choice in _choices(shape, tile, 1):
        if not choice.comm_ctas:
            yield replace(choice, variant=replace(choice.variant, product=False))


def label(choice: Choice) -> str:
    """Return a choice's name, unlike those of all others."""
    return f"{choice.variant.name}, comm_ctas {choice.comm_ctas}, per SM {choice.ctas_per_sm}"
