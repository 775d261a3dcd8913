"""Sums and sends through the switch: multimem instructions on multicast memory (NVLink SHARP).

Only compiled, never run: no transport of this package has a multicast address to give, and
`launch` refuses these kernels. For sm_90 and later; PTX ISA, "multimem.ld_reduce, multimem.st,
multimem.red" and "Proxies".

A *piece* is 16 bytes, 8 elements: what one thread moves at once.
"""

import triton
import triton.language as tl

from .device import finish
from .variants import MULTIMEM_ROWS

_ROWS = tl.constexpr(MULTIMEM_ROWS)

_SUM_BF16 = tl.constexpr("""{
.reg .pred keep;
setp.ne.b32 keep, $5, 0;
mov.b32 $0, 0;
mov.b32 $1, 0;
mov.b32 $2, 0;
mov.b32 $3, 0;
@keep multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.bf16x2 {$0, $1, $2, $3}, [$4];
}""")
_SUM_FP16 = tl.constexpr(_SUM_BF16.value.replace("bf16x2", "f16x2"))
_SEND_BF16 = tl.constexpr("""{
.reg .pred keep;
setp.ne.b32 keep, $6, 0;
@keep multimem.st.relaxed.sys.global.v4.bf16x2 [$1], {$2, $3, $4, $5};
mov.b32 $0, 0;
}""")
_SEND_FP16 = tl.constexpr(_SEND_BF16.value.replace("bf16x2", "f16x2"))
# Every output is written before the last input is read: "&" keeps their registers apart.
_SUM_REGISTERS = tl.constexpr("=&r,=&r,=&r,=&r,l,r")
_SEND_REGISTERS = tl.constexpr("=r,l,r,r,r,r,r")


@triton.jit
def order_proxies():
    """Order this thread's accesses to plain addresses and to multicast addresses.

    Both name the same memory, which the memory model takes for two proxies: neither a release
    nor an acquire orders one against the other.
    """
    tl.inline_asm_elementwise(
        "fence.proxy.alias;\nmov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _element(words, HIGH: tl.constexpr, dtype: tl.constexpr):
    if HIGH:
        words = words >> 16
    return words.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _word(low, high):
    low = low.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (high.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def sum_over_ranks(place, row_mask, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Read the sum over all ranks of a unit, float32 [ROWS, COLUMNS] of rounded elements.

    The switch adds up in float32, in an order that the PTX ISA leaves open, and rounds the sum to
    the element type: two reads may differ in the last bit, so that only one rank may read.

    Args:
        place: multicast address of the unit's first element.
        row_mask: [ROWS, 1]; other rows are 0.
    """
    dtype: tl.constexpr = place.dtype.element_ty
    PIECES: tl.constexpr = COLUMNS // 8
    pieces = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, PIECES)[None, :] * 8
    addresses = (place + pieces).to(tl.int64)
    keep = row_mask.to(tl.int32) + tl.zeros((ROWS, PIECES), dtype=tl.int32)
    w0, w1, w2, w3 = tl.inline_asm_elementwise(
        _SUM_BF16 if dtype == tl.bfloat16 else _SUM_FP16,
        _SUM_REGISTERS,
        [addresses, keep],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=False,
        pack=1,
    )
    # The last join is the innermost dimension: word 2 i + j is at [.., i, j], its halves innermost.
    low = tl.join(
        tl.join(_element(w0, False, dtype), _element(w2, False, dtype)),
        tl.join(_element(w1, False, dtype), _element(w3, False, dtype)),
    )
    high = tl.join(
        tl.join(_element(w0, True, dtype), _element(w2, True, dtype)),
        tl.join(_element(w1, True, dtype), _element(w3, True, dtype)),
    )
    return tl.reshape(tl.join(low, high), (ROWS, COLUMNS))


@triton.jit
def send_to_all(place, values, row_mask, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a unit [ROWS, COLUMNS] into the heaps of all ranks with one store a piece.

    Args:
        place: multicast address of the unit's first element.
        values: of the element type of `place`.
        row_mask: [ROWS, 1]; other rows are not sent.
    """
    dtype: tl.constexpr = place.dtype.element_ty
    PIECES: tl.constexpr = COLUMNS // 8
    pieces = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, PIECES)[None, :] * 8
    addresses = (place + pieces).to(tl.int64)
    keep = row_mask.to(tl.int32) + tl.zeros((ROWS, PIECES), dtype=tl.int32)
    low, high = tl.split(tl.reshape(values, (ROWS, PIECES, 2, 2, 2)))
    low_even, low_odd = tl.split(low)  # of words 0 and 2, 1 and 3
    high_even, high_odd = tl.split(high)
    low0, low2 = tl.split(low_even)
    low1, low3 = tl.split(low_odd)
    high0, high2 = tl.split(high_even)
    high1, high3 = tl.split(high_odd)
    tl.inline_asm_elementwise(
        _SEND_BF16 if dtype == tl.bfloat16 else _SEND_FP16,
        _SEND_REGISTERS,
        [
            addresses,
            _word(low0, high0),
            _word(low1, high1),
            _word(low2, high2),
            _word(low3, high3),
            keep,
        ],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def sum_and_send(
    partials,
    results,
    bias_ptr,
    residual_ptr,
    extras,
    M,
    N,
    first_m,
    first_n,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum a unit over ranks, add bias and residual, round, and store it into all heaps.

    Args:
        partials, results: multicast addresses of the unit's partials and of its result.
        first_m, first_n: the unit's place in y.
    """
    STEP: tl.constexpr = ROWS if ROWS < _ROWS else _ROWS
    offs_n = first_n + tl.arange(0, COLUMNS)
    order_proxies()
    for row in tl.static_range(0, ROWS, STEP):
        offs_m = first_m + row + tl.arange(0, STEP)
        row_mask = (offs_m < M)[:, None]
        total = sum_over_ranks(partials + row * COLUMNS, row_mask, STEP, COLUMNS)
        total = finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n)
        summed = total.to(results.dtype.element_ty)
        send_to_all(results + row * COLUMNS, summed, row_mask, STEP, COLUMNS)
    order_proxies()
