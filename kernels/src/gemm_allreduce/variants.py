"""What is fixed when a kernel is compiled, as plain data. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from .layout import LARGE_TILE_AREA, SMALL_TILE_AREA, TILE_COLUMNS, TILE_ROWS

Algorithm = Literal["direct", "one_shot", "lamport", "two_shot"]
Dtype = Literal["bf16", "fp16"]
Operand = Literal["bf16", "fp16", "fp8e4m3", "int8"]

ALGORITHMS: Final = get_args(Algorithm)
DTYPES: Final = get_args(Dtype)
OPERANDS: Final = get_args(Operand)
WORLD_SIZES: Final = (1, 2, 4, 8)
"""Those that the dispatch table serves; the kernels take any power of two."""

ENABLE_FP_FUSION: Final = False
"""Pinned for JIT and ahead of time alike, since Triton's default differs between releases."""

ROW_BYTES: Final = 16
"""x, weight and y have rows of a multiple of this many bytes, so that accesses can be as wide."""

WARP: Final = 32
"""Threads of a warp."""

MULTIMEM_ELEMENTS: Final = 8
"""Elements that one multimem instruction moves: 16 bytes."""

CELL_ELEMENTS: Final = 4
"""Elements that Lamport sends with one instruction. With fewer for each thread several would send
the same ones, and look at the same ones: one may see what another does not."""

EARLY_STEP: Final = 16
"""Bytes that an early kernel asks for ahead come in multiples of this: the copy unit's."""

MOST_EARLY: Final = 1 << 16
"""More of a row would not stay in the L2 cache: 8192 rows are 512 MiB."""

SUM_AREA: Final = 4096
"""Elements of a unit that are summed at a time, of all W partials: more would spill."""

MULTIMEM_ROWS: Final = 64
"""Rows of a unit that are summed at a time with multimem: all 128 would spill."""


_LEAST_AREA: Final[dict[Algorithm, int]] = {
    "direct": 0,
    "one_shot": SMALL_TILE_AREA,
    "lamport": SMALL_TILE_AREA,
    "two_shot": LARGE_TILE_AREA,
}


@dataclass(frozen=True)
class Tile:
    """How one CTA computes its part of y.

    Attributes:
        block_m, block_n: tile of y that one CTA computes at a time, in elements.
        block_k: depth of one step of the K loop, in elements of 2 bytes.
        num_stages: depth of the software pipeline of the K loop.
        num_warps: warps per CTA.
        bulk: x and weight come by bulk copies of whole tiles (TMA), not by each thread's.

    Raises:
        ValueError: an attribute is outside what the kernels support.
    """

    block_m: int
    block_n: int
    block_k: int
    num_stages: int
    num_warps: int
    bulk: bool = False

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two, got {value}")
        for name, limit in (("block_m", TILE_ROWS), ("block_n", TILE_COLUMNS), ("block_k", 1024)):
            if not 16 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be from 16 to {limit}, got {getattr(self, name)}")
        if self.num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, got {self.num_stages}")

    @property
    def area(self) -> int:
        """Elements of y in one tile."""
        return self.block_m * self.block_n


@dataclass(frozen=True)
class Variant:
    """One compiled kernel.

    Attributes:
        algorithm: ``direct`` for one rank; ``one_shot``, ``lamport`` or ``two_shot`` for more.
        dtype: element type of partials and y.
        operand: element type of x and weight: ``dtype``, or an 8-bit type with scales.
        world_size: number of ranks W, a power of two.
        tile: see :class:`Tile`.
        split: two-shot: units per tile, 1 or W. With W every CTA sums a row block of each of its
            tiles; with 1 a rank sums every W-th tile.
        multimem: two-shot of several ranks: the switch sums and sends. `launch` refuses it.
        product: False: nothing is multiplied, x [M, N] is this rank's partial: an all-reduce.
        early: not 0: may be launched before the kernel before it on the stream has ended
            (programmatic dependent launch, sm_90 and later): it asks for so many bytes of each row
            of its first tile's weights, then waits for that kernel.

    Raises:
        ValueError: an attribute is outside what the kernels support.
    """

    algorithm: Algorithm
    dtype: Dtype
    operand: Operand
    world_size: int
    tile: Tile
    split: int = 1
    multimem: bool = False
    product: bool = True
    early: int = 0

    def __post_init__(self) -> None:
        for name, valid in (
            ("algorithm", ALGORITHMS),
            ("dtype", DTYPES),
            ("operand", OPERANDS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}"
                )
        if self.operand in DTYPES and self.operand != self.dtype:
            raise ValueError(f"operand {self.operand} needs dtype {self.operand}")
        if self.world_size < 1 or self.world_size & (self.world_size - 1):
            raise ValueError(f"world_size must be a power of two, got {self.world_size}")
        if self.algorithm == "direct" and self.world_size != 1:
            raise ValueError(f"direct is for one rank, got world_size {self.world_size}")
        if self.algorithm == "direct" and not self.product:
            raise ValueError("direct does nothing but a product, got product False")
        if self.early not in range(0, MOST_EARLY + 1, EARLY_STEP):
            raise ValueError(
                f"early must be a multiple of {EARLY_STEP} up to {MOST_EARLY}, got {self.early!r}"
            )
        if self.split not in ({1, self.world_size} if self.algorithm == "two_shot" else {1}):
            raise ValueError(f"split must be 1, or world_size for two_shot, got {self.split}")
        if self.tile.block_m % self.split:
            raise ValueError(f"block_m {self.tile.block_m} does not split into {self.split}")
        least = _LEAST_AREA[self.algorithm]
        if self.tile.area < least:
            raise ValueError(f"a tile of {self.algorithm} must have {least} elements or more")
        if self.algorithm == "lamport" and self.tile.area < CELL_ELEMENTS * self.threads:
            raise ValueError(
                f"lamport needs {CELL_ELEMENTS} elements of a tile for each thread: "
                f"{self.tile.area} elements, {self.tile.num_warps} warps"
            )
        if self.multimem and (self.algorithm != "two_shot" or self.world_size == 1):
            raise ValueError("multimem needs two_shot and 2 ranks or more")
        if self.multimem and not self.fits_multimem:
            raise ValueError(
                f"multimem needs {MULTIMEM_ELEMENTS} elements for each thread: "
                f"{self._multimem_area} elements, {self.tile.num_warps} warps"
            )

    @property
    def _multimem_area(self) -> int:
        return min(self.unit_rows, MULTIMEM_ROWS) * self.tile.block_n

    @property
    def fits_multimem(self) -> bool:
        """Whether there is a piece of a unit for each thread: with more threads than pieces
        several would read a sum, and not all the same bits.
        """
        return self._multimem_area >= MULTIMEM_ELEMENTS * self.threads

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return WARP * self.tile.num_warps

    @property
    def scaled(self) -> bool:
        """Whether x and weight are 8-bit, with scales."""
        return self.operand not in DTYPES

    @property
    def unit_rows(self) -> int:
        """Rows of a unit, of which each is summed by one rank."""
        return self.tile.block_m // self.split

    @property
    def operand_bytes(self) -> int:
        """Bytes of an element of x and weight."""
        return 1 if self.scaled else 2

    @property
    def block_k(self) -> int:
        """Depth of one step of the K loop, in elements of the operands."""
        return self.tile.block_k * 2 // self.operand_bytes

    @property
    def name(self) -> str:
        """Unique name, also the stem of the cubin's file name."""
        tile = self.tile
        types = self.dtype if self.operand == self.dtype else f"{self.operand}_{self.dtype}"
        split = "_split" if self.split > 1 else ""
        multimem = "_multimem" if self.multimem else ""
        sum_only = "" if self.product else "_given"
        return (
            f"{self.algorithm}_{types}_w{self.world_size}{split}{multimem}{sum_only}"
            f"_{tile.block_m}x{tile.block_n}x{self.block_k}"
            f"_stages{tile.num_stages}_warps{tile.num_warps}{'_bulk' if tile.bulk else ''}"
            f"{f'_early{self.early}' if self.early else ''}"
        )
