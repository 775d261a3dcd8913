"""One rank in Triton's interpreter, whose peers are plain memory that a test fills in.

fp16 only: the interpreter's tl.dot on bf16 is wrong. It runs CTAs one after another, so that what
a rank waits for must be in its heap before the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gemm_allreduce.dispatch import Choice
from gemm_allreduce.jit import JitKernels
from gemm_allreduce.launch import Operands, Ranks, plan_grid
from gemm_allreduce.layout import (
    ARRIVALS_WORD,
    EMPTY,
    EPOCH_WORD,
    STATUS_FIELDS,
    STATUS_WORD,
    STATUS_WORDS,
    HeapLayout,
    ceil_div,
)
from gemm_allreduce.variants import Operand, Tile, Variant

HALF = torch.float16
FEATURES = 64
SPIN_LIMIT = 200
GUARD = 4096
"""Elements before and behind everything that kernels read or write."""

HEALTHY = dict.fromkeys(STATUS_FIELDS, 0)


def one_shot(world_size: int, operand: Operand = "fp16", *, bulk: bool = False) -> Variant:
    return Variant("one_shot", "fp16", operand, world_size, Tile(16, 64, 32, 1, 4, bulk))


def lamport(world_size: int, operand: Operand = "fp16", *, bulk: bool = False) -> Variant:
    return Variant("lamport", "fp16", operand, world_size, Tile(16, 64, 32, 1, 4, bulk))


def two_shot(
    world_size: int,
    *,
    split: bool,
    operand: Operand = "fp16",
    bulk: bool = False,
    block_n: int = 128,
) -> Variant:
    tile = Tile(32, block_n, 32, 1, 4, bulk)
    return Variant("two_shot", "fp16", operand, world_size, tile, world_size if split else 1)


def direct(operand: Operand = "fp16", *, bulk: bool = False, block_n: int = 64) -> Variant:
    return Variant("direct", "fp16", operand, 1, Tile(16, block_n, 32, 1, 4, bulk))


def guarded(values: torch.Tensor) -> torch.Tensor:
    """Copy into the middle of NaNs or of extremes: reading or writing beyond the end shows."""
    filler = float("nan") if values.dtype.is_floating_point else torch.iinfo(values.dtype).max
    buffer = torch.full((values.numel() + 2 * GUARD,), filler, dtype=values.dtype)
    view = buffer[GUARD : GUARD + values.numel()].view(values.shape)
    view.copy_(values)
    return view


def assert_guards_unchanged(view: torch.Tensor) -> None:
    """Check what lies around a tensor that `guarded` made."""
    start = view.storage_offset() - GUARD
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    for edge in (whole[start : start + GUARD], whole[start + GUARD + view.numel() :][:GUARD]):
        same = edge.isnan() if edge.dtype.is_floating_point else edge == torch.iinfo(edge.dtype).max
        assert same.all(), "something was written beyond the end"


def integers(seed: int, *shape: int, dtype: torch.dtype = HALF, largest: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return guarded(torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaNs too compare equal to themselves."""
    return tensor.contiguous().view(torch.int16)


def exact_partial(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rounded partial of integer inputs; exact in fp64, hence in fp32 in any order."""
    return (x.double() @ weight.double().T).to(HALF)


def sum_in_rank_order(
    partials: list[torch.Tensor],
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    total = torch.zeros_like(partials[0], dtype=torch.float32)
    for partial in partials:
        total = total + partial.float()
    for extra in (bias, residual):
        if extra is not None:
            total = total + extra.float()
    return total.to(HALF)


class OneRank:
    """A real rank of a group whose heaps are memory of this process.

    The parts of any rank's heap come as views.
    """

    def __init__(
        self,
        variant: Variant,
        rank: int = 0,
        *,
        max_tokens: int = 64,
        max_features: int = FEATURES,
        first_epoch: int = 0,
    ) -> None:
        self.variant = variant
        self.world_size = variant.world_size
        self.layout = HeapLayout(variant.world_size, max_tokens, max_features)
        self.rank = rank
        # Full of NaNs, so that what was not sent, and reads of the wrong place, show.
        shape = (variant.world_size, self.layout.total_bytes // 2)
        self.heaps = guarded(torch.full(shape, float("nan"), dtype=HALF))
        for peer in range(variant.world_size):
            self.words(peer)[: self.layout.slots // 4] = 0
            self.words(peer)[EPOCH_WORD] = first_epoch
            self.all_flags(peer)[:] = first_epoch
            self.cells(peer)[:] = EMPTY
        table = torch.tensor([heap.data_ptr() for heap in self.heaps], dtype=torch.int64)
        status = torch.zeros(variant.world_size, STATUS_WORDS, dtype=torch.int32)
        scratch = self.words(rank)[self.layout.scratch // 4 : self.layout.partial_flags // 4]
        self.ranks = Ranks(self.layout, table, status, scratch, rank, virtual=False)

    # ---- parts of a heap

    def words(self, rank: int) -> torch.Tensor:
        return self.heaps[rank].view(torch.int32)

    def _part(self, rank: int, start: int, *shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return self.heaps[rank][start // 2 : start // 2 + count].view(shape)

    def all_flags(self, rank: int) -> torch.Tensor:
        """[word], partial flags and result flags."""
        return self.words(rank)[self.layout.partial_flags // 4 : self.layout.slots // 4]

    def partial_flags(self, rank: int) -> torch.Tensor:
        """[max_tiles, source]."""
        shape = (self.layout.max_tiles, self.world_size)
        return self._part(rank, self.layout.partial_flags, shape[0], shape[1] * 2).view(torch.int32)

    def result_flags(self, rank: int) -> torch.Tensor:
        """[unit]."""
        count = self.layout.max_tiles * self.world_size
        return self._part(rank, self.layout.result_flags, count * 2).view(torch.int32)

    def slots(self, rank: int) -> torch.Tensor:
        """[slot, source, elements]."""
        return self._part(rank, self.layout.slots, 2, self.world_size, self.layout.small_area)

    def cells(self, rank: int) -> torch.Tensor:
        """[slot, source, elements], as int16: the ends of slots."""
        return self.slots(rank).view(torch.int16)[..., -self.layout.cell_area :]

    def free_slots(self, rank: int) -> torch.Tensor:
        """[slot, source, elements], without the cells."""
        return self.slots(rank)[..., : -self.layout.cell_area]

    def receive(self, rank: int) -> torch.Tensor:
        """[source, elements]."""
        return self._part(rank, self.layout.receive, self.world_size, self.layout.owned_area)

    def result(self, rank: int) -> torch.Tensor:
        """[elements]."""
        return self._part(rank, self.layout.result, self.layout.large_area)

    def status(self, rank: int) -> dict[str, int]:
        """The record in a rank's heap."""
        record = self.words(rank)[STATUS_WORD : STATUS_WORD + len(STATUS_FIELDS)].tolist()
        return dict(zip(STATUS_FIELDS, record, strict=True))

    def host_status(self, rank: int) -> dict[str, int]:
        """The record in the host's copy."""
        record = self.ranks.status[rank, : len(STATUS_FIELDS)].tolist()
        return dict(zip(STATUS_FIELDS, record, strict=True))

    @property
    def epoch(self) -> int:
        return int(self.words(self.rank)[EPOCH_WORD])

    @property
    def arrivals(self) -> int:
        return int(self.words(self.rank)[ARRIVALS_WORD])

    # ---- units

    def tiles(self, tokens: int, features: int) -> int:
        tile = self.variant.tile
        return ceil_div(tokens, tile.block_m) * ceil_div(features, tile.block_n)

    def places(self, tokens: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Block of rows and block of columns of each tile: 8 blocks of rows at a time."""
        tile = self.variant.tile
        rows, columns = ceil_div(tokens, tile.block_m), ceil_div(features, tile.block_n)
        places = [
            (row, column)
            for first in range(0, rows, 8)
            for column in range(columns)
            for row in range(first, min(first + 8, rows))
        ]
        in_rows, in_columns = torch.tensor(places).unbind(1)
        return in_rows, in_columns

    def to_units(self, matrix: torch.Tensor) -> torch.Tensor:
        """[M, N] -> [unit, rows, columns] in the kernels' order, NaN beyond M and N."""
        tile, split = self.variant.tile, self.variant.split
        rows, columns = self.places(*matrix.shape)
        height, width = (int(rows.max()) + 1, int(columns.max()) + 1)
        padded = matrix.new_full((height * tile.block_m, width * tile.block_n), float("nan"))
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
        blocks = padded.view(height, tile.block_m, width, tile.block_n)[rows, :, columns]
        return blocks.reshape(len(rows) * split, tile.block_m // split, tile.block_n)

    def from_units(self, units: torch.Tensor, tokens: int, features: int) -> torch.Tensor:
        """The inverse of `to_units`, from as many elements as there are."""
        tile = self.variant.tile
        rows, columns = self.places(tokens, features)
        height, width = (int(rows.max()) + 1, int(columns.max()) + 1)
        blocks = units.new_empty(height, tile.block_m, width, tile.block_n)
        given = units.reshape(-1)[: len(rows) * tile.area].view(-1, tile.block_m, tile.block_n)
        blocks[rows, :, columns] = given
        return blocks.view(height * tile.block_m, width * tile.block_n)[:tokens, :features]

    def deliver_partial(self, source: int, to: int, partial: torch.Tensor, epoch: int) -> None:
        """Do to a heap what `source` does in the first phase of the call `epoch`."""
        units = self.to_units(partial)
        if self.variant.algorithm == "two_shot":
            units = units[to :: self.world_size]
            self.receive(to)[source, : units.numel()] = units.reshape(-1)
        else:
            columns = ceil_div(partial.shape[1], units.shape[2]) * units.shape[2]
            sent = ~self.to_units(partial.new_zeros(len(partial), columns)).isnan()
            if self.variant.algorithm == "lamport":
                place = self.cells(to)[epoch & 1, source, : units.numel()].view(units.shape)
                place[sent] = bits(units[sent] + 0.0)  # -0.0 becomes 0.0
                return
            place = self.slots(to)[epoch & 1, source, : units.numel()].view(units.shape)
            place[sent] = units[sent]
        self.partial_flags(to)[: len(units), source] = epoch

    def deliver_results(self, owner: int, to: int, y: torch.Tensor, epoch: int) -> None:
        """Do to a heap what `owner` does in the second phase of a two-shot call."""
        if self.variant.algorithm != "two_shot":
            return
        units = self.to_units(y)
        place = self.result(to)[: units.numel()].view(units.shape)
        place[owner :: self.world_size] = units[owner :: self.world_size]
        self.result_flags(to)[owner : len(units) : self.world_size] = epoch

    def deliver_peers(self, partials: list[torch.Tensor], y: torch.Tensor, epoch: int) -> None:
        """Do to this rank's heap what all its peers do in a call whose result is y."""
        for peer in range(self.world_size):
            if peer != self.rank:
                self.deliver_partial(peer, self.rank, partials[peer], epoch)
                self.deliver_results(peer, self.rank, y, epoch)

    # ---- calls

    def launch(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        *,
        ctas: int = 3,
        comm_ctas: int = 0,
        spin_limit: int = SPIN_LIMIT,
        **extras: torch.Tensor,
    ) -> None:
        """Make one call, with up to that many CTAs."""
        choice = Choice(self.variant, comm_ctas)
        grid = plan_grid(choice, x.shape[0], weight.shape[0], ctas, in_order=True)
        operands = Operands(x, weight, out, **extras)
        JitKernels().launch(self.variant, self.ranks, operands, grid, spin_limit)

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Launch; return y. Checks that nothing was written beyond y or any heap, and that the
        launch counts as one epoch, however many CTAs it has.
        """
        epoch = self.epoch
        if out is None:
            out = guarded(torch.full((x.shape[0], weight.shape[0]), float("nan"), dtype=HALF))
        self.launch(x, weight, out, **options)
        assert_guards_unchanged(out)
        assert_guards_unchanged(self.heaps)
        assert self.arrivals == 0, "the arrival counter is not back at 0"
        assert (self.epoch - epoch) % 2**32 == 1, "not one epoch for one launch"
        return out


@dataclass(frozen=True)
class Kind:
    """A kind of kernel, and how many CTAs only communicate."""

    variant: Variant
    comm_ctas: int = 0

    def __str__(self) -> str:
        return f"{self.variant.name}, {self.comm_ctas} CTAs that only communicate"


def kinds_of(world_size: int, operand: Operand = "fp16", *, every: bool = False) -> list[Kind]:
    """Every kind of kernel that W ranks have. ``every``: also those that differ in the product,
    or in how tiles are stored, not in the protocol: bulk copies, tiles in two halves.
    """
    kinds = [Kind(one_shot(world_size, operand)), Kind(lamport(world_size, operand))]
    for split in {False, world_size > 1}:
        variant = two_shot(world_size, split=split, operand=operand)
        kinds += [Kind(variant), Kind(variant, 1)]
        if every:
            wide = two_shot(world_size, split=split, operand=operand, bulk=True, block_n=256)
            kinds += [Kind(wide), Kind(wide, 1)]
    if every:
        kinds += [Kind(make(world_size, operand, bulk=True)) for make in (one_shot, lamport)]
    if every and world_size == 1:
        kinds += [Kind(direct(operand, bulk=bulk)) for bulk in (False, True)]
        kinds += [Kind(direct(operand, bulk=bulk, block_n=256)) for bulk in (False, True)]
    return kinds
