"""One-shot: every rank sends its partial of a tile to every rank, and every rank sums.

One hop, and W - 1 times the bytes of y over the links: for few rows. Each CTA first computes,
sends and publishes all of its tiles, then sums them: no CTA waits before it has published.
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
from .layout import PARTIAL_LATE

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
    receive,
    receive_stride,
    result,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
):
    """y = sum over ranks of x @ weight.T, on every rank; the arguments: arguments.py."""
    dtype = y_ptr.dtype.element_ty
    # Sizes come in vectors of 16 bytes, so that the compiler knows how rows are aligned.
    N = n_vectors * 8
    K = k_vectors * (16 if SCALED else 8)
    rank, cta, ctas, first_row, first_column = this_rank(rank, M, N)

    epoch, broken = enter(heap_table, rank)
    tiles_m = tl.cdiv(M, BM)
    tiles = tiles_m * tl.cdiv(N, BN)
    parity = (epoch & 1) * W
    inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]

    # A rank that gave up sends nothing: its peers may not have read what it would overwrite.
    for tile in tl.range(tl.where(broken, tiles, cta), tiles, ctas, num_stages=1):
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
        row_mask = (offs_m < M)[:, None]
        place = (parity + rank).to(tl.int64) * slot_stride * 128 + tile * (BM * BN)
        for step in tl.static_range(W):
            peer = (rank + step) % W  # ranks start at different peers, to spread the links
            slot = in_heap(heap_table, peer, slots, dtype) + place
            tl.store(slot + inside, partial, mask=row_mask)
        flags = in_heaps(heap_table, tl.arange(0, W), partial_flags, tl.int32)
        publish(flags + (tile * W + rank), epoch, W)

    arrive(heap_table, rank, epoch, ctas, partial_flags, slots)

    failed = broken
    for tile in tl.range(cta, tiles, ctas, num_stages=1):
        flags = in_heap(heap_table, rank, partial_flags, tl.int32)
        failed, late, seen = wait_flags(flags + tile * W, epoch, spin_limit, failed, W)
        if late >= 0:
            report(heap_table, status_ptr, _PARTIAL_LATE, rank, tile, late, seen, epoch)
        offs_m = (tile % tiles_m) * BM + tl.arange(0, BM)
        offs_n = (tile // tiles_m) * BN + tl.arange(0, BN)
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
