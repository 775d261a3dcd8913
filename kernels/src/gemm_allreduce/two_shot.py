"""Two-shot: partials go to the owner of a unit; the owner sums it and sends it to every rank.

Two hops, and 2 (W - 1) / W times the bytes of y over the links: for many rows. Three phases:

1. compute a tile, send its units to their owners, publish;
2. for the units that this rank owns: wait for W partials, sum, send to all, publish;
3. wait for the units of a tile, copy it from the heap to y.

With ``gemm_ctas`` CTAs for phase 1 and the others for phase 2, communication overlaps with
computing; with ``gemm_ctas`` = all, every CTA does both. Phase 1 waits for nothing, phase 2 only
for phase 1, phase 3 only for phase 2.

MULTIMEM: the switch does the work of phase 2. A rank keeps its partials in its own heap, at the
place of the owner; the owner reads their sum, and sends the result, through multicast addresses
(multimem.py). Flags, waits and phase 3 are the same. One owner reads a sum, so all ranks have the
same bits, but the order of the sum and a rounding of it before bias and residual are the switch's:
not the bits of the other algorithms, and perhaps not those of another run. Compiled, never run.
"""

import triton
import triton.language as tl

from .arguments import INTEGERS
from .device import (
    arrive,
    enter,
    finish,
    in_heap,
    in_heaps,
    partial_tile,
    publish,
    report,
    this_rank,
    wait_flags,
)
from .layout import PARTIAL_LATE, RESULT_LATE
from .multimem import sum_and_send

_PARTIAL_LATE = tl.constexpr(PARTIAL_LATE)
_RESULT_LATE = tl.constexpr(RESULT_LATE)


@triton.jit(do_not_specialize=list(INTEGERS))
def gemm_allreduce_two_shot(
    x_ptr,
    weight_ptr,
    y_ptr,
    bias_ptr,
    residual_ptr,
    x_scale_ptr,
    weight_scale_ptr,
    heap_table,
    status_ptr,
    M,
    n_vectors,
    k_vectors,
    rank,
    gemm_ctas,
    copy_first,
    extras,
    spin_limit,
    partial_flags,
    result_flags,
    slots,
    slot_stride,
    receive,
    receive_stride,
    result,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    MULTIMEM: tl.constexpr,
):
    """y = sum over ranks of x @ weight.T, on every rank; the arguments: arguments.py."""
    dtype = y_ptr.dtype.element_ty
    # Sizes come in vectors of 16 bytes, so that the compiler knows how rows are aligned.
    N = n_vectors * 8
    K = k_vectors * (16 if SCALED else 8)
    rank, cta, ctas, first_row, first_column = this_rank(rank, M, N)

    UNIT_ROWS: tl.constexpr = BM // SPLIT
    UNIT: tl.constexpr = UNIT_ROWS * BN
    epoch, broken = enter(heap_table, rank)
    tiles_m = tl.cdiv(M, BM)
    tiles = tiles_m * tl.cdiv(N, BN)

    # ---- 1: compute and send. A rank that gave up sends nothing: its peers may not have read
    # what it would overwrite.
    first = tl.where(broken | (cta >= gemm_ctas), tiles, cta)
    for tile in tl.range(first, tiles, gemm_ctas, num_stages=1):
        offs_m = (tile % tiles_m) * BM + tl.arange(0, BM)
        offs_n = (tile // tiles_m) * BN + tl.arange(0, BN)
        acc = partial_tile(
            x_ptr,
            weight_ptr,
            x_scale_ptr,
            weight_scale_ptr,
            M,
            N,
            K,
            first_row,
            first_column,
            offs_m,
            offs_n,
            BM,
            BN,
            BK,
            SCALED,
        )
        partial = acc.to(dtype)
        source = rank.to(tl.int64) * receive_stride * 128
        if SPLIT == 1:
            owner = tile % W
            if MULTIMEM:
                part = owner.to(tl.int64) * receive_stride * 128
                place = in_heap(heap_table, rank, receive, dtype) + part + (tile // W) * UNIT
            else:
                place = in_heap(heap_table, owner, receive, dtype) + source + (tile // W) * UNIT
            inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
            tl.store(place + inside, partial, mask=(offs_m < M)[:, None])
            flag = in_heaps(heap_table, owner + tl.arange(0, 1), partial_flags, tl.int32)
            publish(flag + ((tile // W) * W + rank), epoch, 1)
        else:
            owners = tl.arange(0, BM) // UNIT_ROWS
            inside = (tl.arange(0, BM) % UNIT_ROWS) * BN
            if MULTIMEM:
                parts = owners.to(tl.int64) * receive_stride * 128
                place = in_heap(heap_table, rank, receive, dtype) + parts + tile * UNIT
            else:
                place = in_heaps(heap_table, owners, receive, dtype) + source + tile * UNIT
            place = tl.multiple_of(place + inside, 16)
            row_mask = (offs_m < M)[:, None]
            tl.store(place[:, None] + tl.arange(0, BN)[None, :], partial, mask=row_mask)
            flags = in_heaps(heap_table, tl.arange(0, W), partial_flags, tl.int32)
            publish(flags + (tile * W + rank), epoch, W)

    arrive(heap_table, rank, epoch, ctas, partial_flags, slots)

    # ---- 2: sum the units that this rank owns: rank, rank + W, rank + 2 W, ...
    failed = broken
    flags = in_heap(heap_table, rank, partial_flags, tl.int32)
    comm_ctas = ctas - gemm_ctas
    workers = tl.where(comm_ctas > 0, comm_ctas, ctas)
    worker = tl.where(comm_ctas > 0, cta - gemm_ctas, cta)
    owned = tl.cdiv(tiles * SPLIT - rank, W)
    for index in tl.range(tl.where(worker < 0, owned, worker), owned, workers, num_stages=1):
        unit = index * W + rank
        failed, late, seen = wait_flags(flags + index * W, epoch, spin_limit, failed, W)
        if late >= 0:
            tile = unit // SPLIT
            report(heap_table, status_ptr, _PARTIAL_LATE, rank, tile, late, seen, epoch)
        if failed == 0:
            tile = unit // SPLIT
            if MULTIMEM:
                first_m = (tile % tiles_m) * BM + (unit % SPLIT) * UNIT_ROWS
                first_n = (tile // tiles_m) * BN
                part = rank.to(tl.int64) * receive_stride * 128
                partials = in_heap(heap_table, W, receive, dtype) + part + index * UNIT
                results = in_heap(heap_table, W, result, dtype) + tl.cast(unit, tl.int64) * UNIT
                sum_and_send(
                    partials,
                    results,
                    bias_ptr,
                    residual_ptr,
                    extras,
                    M,
                    N,
                    first_m,
                    first_n,
                    UNIT_ROWS,
                    BN,
                )
            else:
                rows = (unit % SPLIT) * UNIT_ROWS + tl.arange(0, UNIT_ROWS)
                offs_m = (tile % tiles_m) * BM + rows
                offs_n = (tile // tiles_m) * BN + tl.arange(0, BN)
                row_mask = (offs_m < M)[:, None]
                inside = tl.arange(0, UNIT_ROWS)[:, None] * BN + tl.arange(0, BN)[None, :]
                own = in_heap(heap_table, rank, receive, dtype) + index * UNIT
                total = tl.zeros((UNIT_ROWS, BN), dtype=tl.float32)
                for source in tl.static_range(W):
                    stride = receive_stride.to(tl.int64) * (128 * source)
                    total += tl.load(own + stride + inside, mask=row_mask, other=0.0).to(tl.float32)
                total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
                summed = total.to(dtype)
                for step in tl.static_range(W):
                    peer = (rank + step) % W
                    place = in_heap(heap_table, peer, result, dtype)
                    place += tl.cast(unit, tl.int64) * UNIT
                    tl.store(place + inside, summed, mask=row_mask)
            result_ptrs = in_heaps(heap_table, tl.arange(0, W), result_flags, tl.int32)
            publish(result_ptrs + unit, epoch, W)

    # ---- 3: copy to y, which outlives the heap's part
    flags = in_heap(heap_table, rank, result_flags, tl.int32)
    own = in_heap(heap_table, rank, result, dtype)
    copiers = ctas - copy_first
    for tile in tl.range(
        tl.where(cta < copy_first, tiles, cta - copy_first), tiles, copiers, num_stages=1
    ):
        failed, late, seen = wait_flags(flags + tile * SPLIT, epoch, spin_limit, failed, SPLIT)
        if late >= 0:
            owner = (tile * SPLIT + late) % W
            report(heap_table, status_ptr, _RESULT_LATE, rank, tile, owner, seen, epoch)
        offs_m = (tile % tiles_m) * BM + tl.arange(0, BM)
        offs_n = (tile // tiles_m) * BN + tl.arange(0, BN)
        row_mask = (offs_m < M)[:, None]
        inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
        summed = tl.load(
            own + tl.cast(tile, tl.int64) * (BM * BN) + inside, mask=row_mask, other=0.0
        )
        summed = tl.where(failed, float("nan"), summed)
        y_ptrs = y_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(y_ptrs, summed.to(dtype), mask=row_mask & (offs_n < N)[None, :])
