"""One-shot: every rank sends its partial of a tile to every rank, and every rank sums.

One hop, and W - 1 times the bytes of y over the links: for few rows. A CTA computes, sends and
publishes a tile before it waits for the tile before that one: links and memory work at once, and
no tile waits for a later one.
"""

import triton
import triton.language as tl

from .arguments import INTEGERS
from .cells import empty_cells
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
from .layout import PAGE, PARTIAL_LATE

_PAGE = tl.constexpr(PAGE)
_PARTIAL_LATE = tl.constexpr(PARTIAL_LATE)


@triton.jit(do_not_specialize=list(INTEGERS))
def gemm_allreduce_one_shot(
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
    parity = (epoch & 1) * W
    inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]

    failed = broken
    for step in tl.range(0, tl.cdiv(tiles - cta, ctas) + 1, num_stages=1):
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
                row_mask = (block_m * BM + tl.arange(0, BM) < M)[:, None]
                place = (parity + rank).to(tl.int64) * slot_stride * 128 + tile * (BM * BN)
                for peers in tl.static_range(W):
                    peer = (rank + peers) % W  # ranks start at different peers, to spread the links
                    slot = in_heap(heap_table, peer, slots, dtype) + place
                    tl.store(slot + inside, partial, mask=row_mask)
                flags = in_heaps(heap_table, tl.arange(0, W), partial_flags, tl.int32)
                publish(flags + (tile * W + rank), epoch, W)

        tile -= ctas
        if tile >= 0:
            flags = in_heap(heap_table, rank, partial_flags, tl.int32)
            failed, late, seen = wait_flags(flags + tile * W, epoch, spin_limit, failed, W)
            if late >= 0:
                report(heap_table, status_ptr, _PARTIAL_LATE, rank, tile, late, seen, epoch)
            block_m, block_n = tile_place(tile, M, N, BM, BN)
            offs_m = block_m * BM + tl.arange(0, BM)
            offs_n = block_n * BN + tl.arange(0, BN)
            row_mask = (offs_m < M)[:, None]
            stride = slot_stride.to(tl.int64) * 128
            own = in_heap(heap_table, rank, slots, dtype) + parity * stride + tile * (BM * BN)
            total = tl.zeros((BM, BN), dtype=tl.float32)
            for source in tl.static_range(W):
                slot = own + source * stride
                total += tl.load(slot + inside, mask=row_mask, other=0.0).to(tl.float32)
            total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
            total = tl.where(failed, float("nan"), total)
            y_ptrs = y_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
            tl.store(y_ptrs, total.to(dtype), mask=row_mask & (offs_n < N)[None, :])
            # Of the largest calls the last tiles lie where cells are, which must be empty again.
            if (tile + 1) * (BM * BN) > (cells - slots) * (_PAGE // 2):
                first = parity * stride + tile * (BM * BN)
                empty_cells(heap_table, rank, slots, first, stride, row_mask, W, BM, BN)

    arrive(heap_table, rank, epoch, cta, ctas, partial_flags, slots)
