"""Lamport: one-shot without flags, for the fewest rows.

Every rank sends its partial of a tile to every rank, and every rank sums what has come: data say
by themselves that they are there, as in the "Lamport" all-reduce of TensorRT-LLM. One hop, and no
fence in it. A CTA sends a tile before it looks for the tile before that one, as in one_shot.py.
"""

import triton
import triton.language as tl

from .arguments import INTEGERS
from .cells import send_cells, take_cells
from .device import (
    arrive,
    enter,
    finish,
    let_next_start,
    operand,
    start_early,
    this_rank,
    tile_place,
    unsummed_tile,
)


@triton.jit(do_not_specialize=list(INTEGERS))
def gemm_allreduce_lamport(
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
    stride = slot_stride.to(tl.int64) * 128
    first_cell = (epoch & 1) * W * stride

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
                place = first_cell + rank * stride + tile * (BM * BN)
                send_cells(partial, heap_table, rank, cells, place, M - block_m * BM, W, BM, BN)

        tile -= ctas
        if tile >= 0:
            block_m, block_n = tile_place(tile, M, N, BM, BN)
            offs_m = block_m * BM + tl.arange(0, BM)
            offs_n = block_n * BN + tl.arange(0, BN)
            total, failed = take_cells(
                heap_table,
                status_ptr,
                rank,
                tile,
                epoch,
                cells,
                first_cell + tile * (BM * BN),
                stride,
                M - block_m * BM,
                spin_limit,
                failed,
                dtype,
                W,
                BM,
                BN,
            )
            total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
            total = tl.where(failed, float("nan"), total)
            y_ptrs = y_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
            mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
            tl.store(y_ptrs, total.to(dtype), mask=mask)

    arrive(heap_table, rank, epoch, cta, ctas, partial_flags, slots)
