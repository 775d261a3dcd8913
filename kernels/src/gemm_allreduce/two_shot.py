"""Two-shot: partials go to the owner of a unit; the owner sums it and sends it to every rank.

Two hops, and 2 (W - 1) / W times the bytes of y over the links: for many rows. Three steps:

1. compute a tile, send its units to their owners, publish;
2. for the units that this rank owns: wait for W partials, sum, send to all, publish;
3. wait for the units of a tile, copy it from the heap to y.

With SPLIT every CTA does all three for its tiles, one step behind the other: 2 for the tile before
that of 1, 3 for the one before that. Otherwise ``gemm_ctas`` CTAs do step 1 and the others step 2,
or, if ``gemm_ctas`` is all, every CTA does one after the other. Step 1 waits for nothing but what
its CTA has published, step 2 only for step 1, step 3 only for step 2, and no tile for a later one.

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
    let_next_start,
    operand,
    publish,
    report,
    start_early,
    this_rank,
    tile_place,
    unsummed_tile,
    wait_flags,
)
from .layout import PARTIAL_LATE, RESULT_LATE
from .multimem import sum_and_send
from .variants import SUM_AREA

_PARTIAL_LATE = tl.constexpr(PARTIAL_LATE)
_RESULT_LATE = tl.constexpr(RESULT_LATE)
_SUM_AREA = tl.constexpr(SUM_AREA)


@triton.jit
def _send(
    partial,
    heap_table,
    rank,
    epoch,
    M,
    tile,
    block_m,
    partial_flags,
    receive,
    receive_stride,
    dtype: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
    MULTIMEM: tl.constexpr,
):
    """Send the units of a tile to their owners, and publish."""
    UNIT_ROWS: tl.constexpr = BM // SPLIT
    UNIT: tl.constexpr = UNIT_ROWS * BN
    row_mask = (block_m * BM + tl.arange(0, BM) < M)[:, None]
    source = rank.to(tl.int64) * receive_stride * 128
    if SPLIT == 1:
        owner = tile % W
        if MULTIMEM:
            part = owner.to(tl.int64) * receive_stride * 128
            place = in_heap(heap_table, rank, receive, dtype) + part + (tile // W) * UNIT
        else:
            place = in_heap(heap_table, owner, receive, dtype) + source + (tile // W) * UNIT
        places = place + tl.arange(0, BM)[:, None] * BN
        flags = in_heaps(heap_table, owner + tl.arange(0, 1), partial_flags, tl.int32)
        flags += (tile // W) * W + rank
    else:
        owners = tl.arange(0, BM) // UNIT_ROWS
        inside = (tl.arange(0, BM) % UNIT_ROWS) * BN
        if MULTIMEM:
            parts = owners.to(tl.int64) * receive_stride * 128
            place = in_heap(heap_table, rank, receive, dtype) + parts + tile * UNIT
        else:
            place = in_heaps(heap_table, owners, receive, dtype) + source + tile * UNIT
        places = tl.multiple_of(place + inside, 16)[:, None]
        flags = in_heaps(heap_table, tl.arange(0, W), partial_flags, tl.int32) + (tile * W + rank)
    if BN > 128:  # in halves: the whole would take shared memory that the pipeline needs
        HALF: tl.constexpr = BN // 2
        left, right = tl.split(tl.permute(tl.reshape(partial, (BM, 2, HALF)), (0, 2, 1)))
        columns = tl.arange(0, HALF)[None, :]
        tl.store(places + columns, left, mask=row_mask)
        tl.store(places + (HALF + columns), right, mask=row_mask)
    else:
        tl.store(places + tl.arange(0, BN)[None, :], partial, mask=row_mask)
    publish(flags, epoch, 1 if SPLIT == 1 else W)


@triton.jit
def _reduce(
    heap_table,
    status_ptr,
    bias_ptr,
    residual_ptr,
    extras,
    spin_limit,
    failed,
    rank,
    epoch,
    M,
    N,
    index,
    partial_flags,
    result_flags,
    receive,
    receive_stride,
    result,
    dtype: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
    MULTIMEM: tl.constexpr,
):
    """Sum this rank's unit number `index` and send it to all; return whether a wait has failed."""
    UNIT_ROWS: tl.constexpr = BM // SPLIT
    UNIT: tl.constexpr = UNIT_ROWS * BN
    unit = index * W + rank
    tile = unit // SPLIT
    flags = in_heap(heap_table, rank, partial_flags, tl.int32)
    failed, late, seen = wait_flags(flags + index * W, epoch, spin_limit, failed, W)
    if late >= 0:
        report(heap_table, status_ptr, _PARTIAL_LATE, rank, tile, late, seen, epoch)
    if failed == 0:
        block_m, block_n = tile_place(tile, M, N, BM, BN)
        first_m = block_m * BM + (unit % SPLIT) * UNIT_ROWS
        first_n = block_n * BN
        if MULTIMEM:
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
            # A few rows at a time: W partials of a whole unit would not fit into registers.
            ROWS: tl.constexpr = UNIT_ROWS if UNIT <= _SUM_AREA else _SUM_AREA // BN
            own = in_heap(heap_table, rank, receive, dtype) + index * UNIT
            for part in tl.range(0, UNIT_ROWS, ROWS, num_stages=1):
                offs_m = first_m + part + tl.arange(0, ROWS)
                offs_n = first_n + tl.arange(0, BN)
                row_mask = (offs_m < M)[:, None]
                inside = part * BN + tl.arange(0, ROWS)[:, None] * BN + tl.arange(0, BN)[None, :]
                total = tl.zeros((ROWS, BN), dtype=tl.float32)
                for source in tl.static_range(W):
                    stride = receive_stride.to(tl.int64) * (128 * source)
                    total += tl.load(own + stride + inside, mask=row_mask, other=0.0).to(tl.float32)
                total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
                summed = total.to(dtype)
                for peers in tl.static_range(W):
                    peer = (rank + peers) % W
                    place = in_heap(heap_table, peer, result, dtype)
                    place += tl.cast(unit, tl.int64) * UNIT
                    tl.store(place + inside, summed, mask=row_mask)
        result_ptrs = in_heaps(heap_table, tl.arange(0, W), result_flags, tl.int32)
        publish(result_ptrs + unit, epoch, W)
    return failed


@triton.jit
def _copy(
    heap_table,
    status_ptr,
    y_ptr,
    spin_limit,
    failed,
    rank,
    epoch,
    M,
    N,
    first_row,
    tile,
    result_flags,
    result,
    dtype: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Copy a tile's results to y, which outlives the heap's part; return as `_reduce`."""
    flags = in_heap(heap_table, rank, result_flags, tl.int32)
    failed, late, seen = wait_flags(flags + tile * SPLIT, epoch, spin_limit, failed, SPLIT)
    if late >= 0:
        owner = (tile * SPLIT + late) % W
        report(heap_table, status_ptr, _RESULT_LATE, rank, tile, owner, seen, epoch)
    block_m, block_n = tile_place(tile, M, N, BM, BN)
    offs_m = block_m * BM + tl.arange(0, BM)
    offs_n = block_n * BN + tl.arange(0, BN)
    row_mask = (offs_m < M)[:, None]
    inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    own = in_heap(heap_table, rank, result, dtype) + tl.cast(tile, tl.int64) * (BM * BN)
    summed = tl.load(own + inside, mask=row_mask, other=0.0)
    summed = tl.where(failed, float("nan"), summed)
    y_ptrs = y_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, summed.to(dtype), mask=row_mask & (offs_n < N)[None, :])
    return failed


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
    cells,
    receive,
    receive_stride,
    result,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    BULK: tl.constexpr,
    EARLY: tl.constexpr,
    PRODUCT: tl.constexpr,
    MULTIMEM: tl.constexpr,
):
    """y = sum over ranks of x @ weight.T, on every rank; the arguments: arguments.py."""
    dtype = y_ptr.dtype.element_ty
    # Sizes come in vectors of 16 bytes, so that the compiler knows how rows are aligned.
    N = n_vectors * 8
    K = k_vectors * (16 if SCALED else 8)
    rank, cta, ctas, first_row, first_column = this_rank(rank, M, N)
    if EARLY:
        start_early(weight_ptr, M, N, K, first_column, cta, BM, BN, PRODUCT, EARLY)
    x = operand(x_ptr, M, K, BM, BK, BULK)
    weight = operand(weight_ptr, N, K, BN, BK, BULK)

    epoch, broken = enter(heap_table, rank)
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    failed = broken
    if SPLIT > 1:
        for step in tl.range(0, tl.cdiv(tiles - cta, ctas) + 2, num_stages=1):
            tile = cta + step * ctas
            if tile < tiles:
                block_m, block_n = tile_place(tile, M, N, BM, BN)
                acc = unsummed_tile(
                    x,
                    weight,
                    x_ptr,
                    x_scale_ptr,
                    weight_scale_ptr,
                    M,
                    N,
                    K,
                    first_row,
                    first_column,
                    block_m,
                    block_n,
                    BM,
                    BN,
                    BK,
                    SCALED,
                    BULK,
                    PRODUCT,
                )
                # Outside of the branch: for sm_100 Triton 3.6 fails at a product that two branches hold.
                partial = acc.to(dtype)
                if EARLY:  # after this CTA's last product: it only communicates from here on
                    let_next_start(tile + ctas >= tiles)
                # A rank that gave up sends nothing: its peers may not have read what it would
                # overwrite. Asked only here, the answer has come while the tile was computed.
                if broken == 0:
                    _send(
                        partial,
                        heap_table,
                        rank,
                        epoch,
                        M,
                        tile,
                        block_m,
                        partial_flags,
                        receive,
                        receive_stride,
                        dtype,
                        W,
                        BM,
                        BN,
                        SPLIT,
                        MULTIMEM,
                    )
            tile -= ctas
            if (tile >= 0) & (tile < tiles):
                failed = _reduce(
                    heap_table,
                    status_ptr,
                    bias_ptr,
                    residual_ptr,
                    extras,
                    spin_limit,
                    failed,
                    rank,
                    epoch,
                    M,
                    N,
                    tile,
                    partial_flags,
                    result_flags,
                    receive,
                    receive_stride,
                    result,
                    dtype,
                    W,
                    BM,
                    BN,
                    SPLIT,
                    MULTIMEM,
                )
            tile -= ctas
            if tile >= 0:
                failed = _copy(
                    heap_table,
                    status_ptr,
                    y_ptr,
                    spin_limit,
                    failed,
                    rank,
                    epoch,
                    M,
                    N,
                    first_row,
                    tile,
                    result_flags,
                    result,
                    dtype,
                    W,
                    BM,
                    BN,
                    SPLIT,
                )

    else:
        first = tl.where(broken | (cta >= gemm_ctas), tiles, cta)
        for tile in tl.range(first, tiles, gemm_ctas, num_stages=1):
            block_m, block_n = tile_place(tile, M, N, BM, BN)
            acc = unsummed_tile(
                x,
                weight,
                x_ptr,
                x_scale_ptr,
                weight_scale_ptr,
                M,
                N,
                K,
                first_row,
                first_column,
                block_m,
                block_n,
                BM,
                BN,
                BK,
                SCALED,
                BULK,
                PRODUCT,
            )
            _send(
                acc.to(dtype),
                heap_table,
                rank,
                epoch,
                M,
                tile,
                block_m,
                partial_flags,
                receive,
                receive_stride,
                dtype,
                W,
                BM,
                BN,
                SPLIT,
                MULTIMEM,
            )

        if EARLY:
            let_next_start(True)
        # The units that this rank owns: rank, rank + W, rank + 2 W, ...
        comm_ctas = ctas - gemm_ctas
        workers = tl.where(comm_ctas > 0, comm_ctas, ctas)
        worker = tl.where(comm_ctas > 0, cta - gemm_ctas, cta)
        owned = tl.cdiv(tiles - rank, W)
        for index in tl.range(tl.where(worker < 0, owned, worker), owned, workers, num_stages=1):
            failed = _reduce(
                heap_table,
                status_ptr,
                bias_ptr,
                residual_ptr,
                extras,
                spin_limit,
                failed,
                rank,
                epoch,
                M,
                N,
                index,
                partial_flags,
                result_flags,
                receive,
                receive_stride,
                result,
                dtype,
                W,
                BM,
                BN,
                SPLIT,
                MULTIMEM,
            )
        copiers = ctas - copy_first
        first = tl.where(cta < copy_first, tiles, cta - copy_first)
        for tile in tl.range(first, tiles, copiers, num_stages=1):
            failed = _copy(
                heap_table,
                status_ptr,
                y_ptr,
                spin_limit,
                failed,
                rank,
                epoch,
                M,
                N,
                first_row,
                tile,
                result_flags,
                result,
                dtype,
                W,
                BM,
                BN,
                SPLIT,
            )

    arrive(heap_table, rank, epoch, cta, ctas, partial_flags, slots)
