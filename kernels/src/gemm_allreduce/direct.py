"""Direct: one rank, so nothing to reduce, and no peer to wait for.

Takes the same arguments as the others. Of the heap only the counter of launches is used.
"""

import triton
import triton.language as tl

from .arguments import INTEGERS
from .device import (
    control_words,
    count_in,
    finish,
    let_next_start,
    operand,
    partial_tile,
    start_early,
    this_rank,
    tile_place,
)


@triton.jit
def _store(
    acc, y_ptr, bias_ptr, residual_ptr, extras, M, N, first_row, offs_m, first_n, BN: tl.constexpr
):
    dtype = y_ptr.dtype.element_ty
    offs_n = first_n + tl.arange(0, BN)
    # Rounded as a partial, so that one rank has the bits that more ranks would have.
    total = acc.to(dtype).to(tl.float32)
    total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
    y_ptrs = y_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(y_ptrs, total.to(dtype), mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])


@triton.jit(do_not_specialize=list(INTEGERS))
def gemm_allreduce_direct(
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
):
    """y = x @ weight.T; the arguments: arguments.py."""
    N = n_vectors * 8
    K = k_vectors * (16 if SCALED else 8)
    rank, cta, ctas, first_row, first_column = this_rank(rank, M, N)
    if EARLY:
        start_early(weight_ptr, M, N, K, first_column, cta, BM, BN, True, EARLY)
        let_next_start(True)  # nothing here waits for a peer, so it need not be late
    x = operand(x_ptr, M, K, BM, BK, BULK)
    weight = operand(weight_ptr, N, K, BN, BK, BULK)

    control = control_words(heap_table, rank)  # here, so that nothing waits for it at the end
    tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
    # One loop with the K loop inside: the next tile's operands are on their way while this one is
    # stored.
    for tile in tl.range(cta, tiles, ctas, flatten=BULK):
        block_m, block_n = tile_place(tile, M, N, BM, BN)
        acc = partial_tile(
            x,
            weight,
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
        )
        offs_m = block_m * BM + tl.arange(0, BM)
        first_n = block_n * BN
        if BN > 128:  # in halves: the whole would take shared memory that the pipeline needs
            HALF: tl.constexpr = BN // 2
            left, right = tl.split(tl.permute(tl.reshape(acc, (BM, 2, HALF)), (0, 2, 1)))
            _store(
                left, y_ptr, bias_ptr, residual_ptr, extras, M, N, first_row, offs_m, first_n, HALF
            )
            first_n += HALF
            _store(
                right, y_ptr, bias_ptr, residual_ptr, extras, M, N, first_row, offs_m, first_n, HALF
            )
        else:
            _store(acc, y_ptr, bias_ptr, residual_ptr, extras, M, N, first_row, offs_m, first_n, BN)

    count_in(control, cta, ctas)
