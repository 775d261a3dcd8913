"""Cells: places in a heap whose own content says whether something has come.

A cell holds a rank's partial of a tile. Elements that have not come are EMPTY. The reader looks at
the elements themselves until none is, and empties them again. No flag is needed, so no sender
waits until its stores have arrived, to say so. The protocol and its proof: docs/kernels.md.
"""

import triton
import triton.language as tl

from .device import COMPILED, in_heap, report
from .layout import CELL_LATE, EMPTY

_EMPTY = tl.constexpr(EMPTY)
_CELL_LATE = tl.constexpr(CELL_LATE)


@triton.jit
def _words(bits, BM: tl.constexpr, BN: tl.constexpr):
    """Four neighbours of a row as two words: int16 [BM, BN] -> twice int32 [BM, BN / 4]."""
    even, odd = tl.split(tl.reshape(bits, (BM, BN // 4, 2, 2)))
    return tl.split((even.to(tl.int32) & 0xFFFF) | (odd.to(tl.int32) << 16))


@triton.jit
def _store(places, low, high, mask):
    """Store two words each at system scope: somebody may be looking at them meanwhile."""
    tl.inline_asm_elementwise(
        """
        {
            .reg .pred there;
            setp.ne.b32 there, $4, 0;
            @there st.relaxed.sys.global.v2.b32 [$1], {$2, $3};
            mov.u32 $0, 0;
        }
        """,
        "=r,l,r,r,r",
        [places.to(tl.int64), low, high, mask.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def send_cells(
    partial,
    heap_table,
    rank,
    cells,
    place,
    rows,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Send the first `rows` rows of a partial [BM, BN] to every rank, to element `place` of its
    cells. -0.0 is sent as 0.0, which adds as much: it is EMPTY.
    """
    bits = partial.to(tl.int16, bitcast=True)
    bits = tl.where(bits == _EMPTY, 0, bits)
    offs_m = tl.arange(0, BM)[:, None]
    if COMPILED:
        low, high = _words(bits, BM, BN)
        inside = offs_m * BN + (tl.arange(0, BN // 4) * 4)[None, :]
        mask = (offs_m < rows) & (inside >= 0)
    else:
        inside = offs_m * BN + tl.arange(0, BN)[None, :]
    for peers in tl.static_range(W):
        peer = (rank + peers) % W  # ranks start at different peers, to spread the links
        cell = in_heap(heap_table, peer, cells, tl.int16) + place
        if COMPILED:
            _store(cell + inside, low, high, mask)
        else:
            tl.store(cell + inside, bits, mask=offs_m < rows)


@triton.jit
def empty_cells(
    heap_table,
    rank,
    page,
    place,
    stride,
    mask,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Empty what this CTA has read of W partials, `stride` elements apart, from `place` behind a
    page of the own heap on.
    """
    tl.debug_barrier()  # no warp may still be reading
    own = in_heap(heap_table, rank, page, tl.int16) + place
    inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]
    for source in tl.static_range(W):
        nothing = tl.full((BM, BN), _EMPTY, dtype=tl.int16)
        tl.store(own + source * stride + inside, nothing, mask=mask)


@triton.jit
def take_cells(
    heap_table,
    status_ptr,
    rank,
    tile,
    epoch,
    cells,
    place,
    stride,
    rows,
    spin_limit,
    failed,
    dtype: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Wait until `rows` rows of W partials are there, `stride` elements apart, and empty them.

    Returns their sum in rank order, float32 [BM, BN], and whether any wait of this CTA has failed.
    """
    own = in_heap(heap_table, rank, cells, tl.int16) + place
    offs_m = tl.arange(0, BM)[:, None]
    inside = offs_m * BN + tl.arange(0, BN)[None, :]
    mask = offs_m < rows
    # After a failure look once and go on: one time limit per CTA, not one per tile.
    limit = tl.where(failed, 0, spin_limit)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    late = True
    spins = 0
    while late & (spins <= limit):
        total = tl.zeros((BM, BN), dtype=tl.float32)
        empty = tl.zeros((BM, BN), dtype=tl.int32)
        for source in tl.static_range(W):
            # Volatile: relaxed at system scope, and anew each time.
            bits = tl.load(own + source * stride + inside, mask=mask, other=0, volatile=True)
            empty |= (bits == _EMPTY).to(tl.int32)
            total += bits.to(dtype, bitcast=True).to(tl.float32)
        # Over all warps: one answer for all threads.
        late = tl.max(tl.max(empty, 1), 0) != 0
        spins += 1
    if late:
        _report_late(heap_table, status_ptr, rank, tile, epoch, own, stride, rows, W, BM, BN)
    else:
        empty_cells(heap_table, rank, cells, place, stride, mask, W, BM, BN)
    return total, failed | late


@triton.jit
def _report_late(
    heap_table,
    status_ptr,
    rank,
    tile,
    epoch,
    own,
    stride,
    rows,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Record the first source of which elements have not come, and how many."""
    offs_m = tl.arange(0, BM)[:, None]
    inside = offs_m * BN + tl.arange(0, BN)[None, :]
    late_source = -1
    lacking = 0
    for source in tl.range(0, W):
        bits = tl.load(own + source * stride + inside, mask=offs_m < rows, other=0, volatile=True)
        count = tl.sum(tl.sum((bits == _EMPTY).to(tl.int32), 1), 0)
        if (count > 0) & (late_source < 0):
            late_source = source
            lacking = count
    # Since the last look all may have come: late it was.
    late_source = tl.maximum(late_source, 0)
    report(heap_table, status_ptr, _CELL_LATE, rank, tile, late_source, lacking, epoch)
