"""What the kernels share: the tile product, the heap's words, publishing and waiting.

One Triton source for Triton >= 3.4, for Triton-distributed, and for the interpreter. The
protocol and its proof: docs/kernels.md.
"""

import triton
import triton.language as tl

from .arguments import EXTRA_BIAS, EXTRA_RESIDUAL
from .layout import (
    ARRIVALS_WORD,
    EPOCH_WORD,
    GAVE_UP_WORD,
    PAGE,
    REFRESH_CALLS,
    STATUS_FIELDS,
    STATUS_WORD,
    STATUS_WORDS,
)

_ARRIVALS_WORD = tl.constexpr(ARRIVALS_WORD)
_GAVE_UP_WORD = tl.constexpr(GAVE_UP_WORD)
_STATUS_WORD = tl.constexpr(STATUS_WORD)
_STATUS_WORDS = tl.constexpr(STATUS_WORDS)
_PAGE = tl.constexpr(PAGE)
_REFRESH_CALLS = tl.constexpr(REFRESH_CALLS)
_OLD = tl.constexpr(1 << 30)
_GROUP = tl.constexpr(8)
"""Blocks of rows that tiles go through before they come to the next block of columns."""
_POLLERS = tl.constexpr(256)
"""Lanes that poll: with as many as threads of a CTA or more, each warp has some."""
assert (ARRIVALS_WORD, EPOCH_WORD) == (0, 1)  # halves of one 64-bit word, the epoch the upper
assert STATUS_FIELDS[1:] == ("rank", "tile", "source", "seen", "expected")  # as in `report`

_EXTRA_BIAS = tl.constexpr(EXTRA_BIAS)
_EXTRA_RESIDUAL = tl.constexpr(EXTRA_RESIDUAL)


@triton.jit
def in_heap(heap_table, peer, page, dtype: tl.constexpr):
    """Pointer to page `page` of a rank's heap, as this process sees it."""
    address = tl.load(heap_table + peer) + page.to(tl.int64) * _PAGE
    # Without the alignment hint every access through the table is 2 bytes wide.
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


# The interpreter has no inline assembly.
COMPILED = tl.constexpr(isinstance(in_heap, triton.JITFunction))


@triton.jit
def in_heaps(heap_table, peers, page, dtype: tl.constexpr):
    """The same for a vector of ranks."""
    addresses = tl.load(heap_table + peers) + page.to(tl.int64) * _PAGE
    return tl.multiple_of(addresses.to(tl.pointer_type(dtype)), 16)


@triton.jit
def this_rank(rank, M, N):
    """Return this CTA's rank, its number in the rank, how many CTAs the rank has, and the first
    rows of the rank in x and y, and in weight.
    """
    offset = tl.program_id(0)
    # Rows, not pointers: those would take registers from beginning to end, and make ptxas spill.
    return rank + offset, tl.program_id(1), tl.num_programs(1), offset * M, offset * N


@triton.jit
def start_early(
    weight_ptr,
    M,
    N,
    K,
    first_column,
    cta,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRODUCT: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Ask for EARLY bytes of each row of the first tile's weights, then wait for the kernel before.

    Before that wait nothing is read or written, not even what the kernel before can't have
    changed. Weights come into the L2 cache, where they are the same for all: were they written
    meanwhile, the new ones would be read.
    """
    if COMPILED:
        if PRODUCT:
            tiles = tl.cdiv(M, BM) * tl.cdiv(N, BN)
            _, block_n = tile_place(tl.minimum(cta, tiles - 1), M, N, BM, BN)
            columns = block_n * BN + tl.arange(0, BN)
            columns = first_column + tl.where(columns < N, columns, 0)
            rows = (weight_ptr + columns.to(tl.int64) * K).to(tl.int64)
            size = tl.minimum(K * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8), EARLY)
            tl.inline_asm_elementwise(
                "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
                "=r,l,r",
                [rows, tl.zeros((BN,), dtype=tl.int32) + size],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        # In assembly, as in `let_next_start`: Triton 3.4's own functions for these don't compile.
        tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def let_next_start(now):
    """Let the kernel behind start, if it is an early one, once every CTA has come here with `now`.

    Not before `start_early`: kernels behind would start while two are still running.
    """
    if COMPILED:  # noqa: SIM102 - known when compiling, unlike the other
        if now:
            tl.inline_asm_elementwise(
                "griddepcontrol.launch_dependents; mov.u32 $0, 0;",
                "=r",
                [],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def control_words(heap_table, rank):
    """Pointer to the first page of a rank's heap."""
    address = tl.load(heap_table + rank)
    return tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)


@triton.jit
def tile_place(tile, M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Return the row block and the column block of a tile.

    Blocks of rows go in groups, so that CTAs that run at once share rows of x and of weight, and
    find them in the L2 cache.
    """
    blocks_m = tl.cdiv(M, BM)
    in_group = _GROUP * tl.cdiv(N, BN)
    first = tile // in_group * _GROUP
    rows = tl.minimum(blocks_m - first, _GROUP)
    inside = tile % in_group
    return first + inside % rows, inside // rows


@triton.jit
def partial_tile(
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SCALED: tl.constexpr,
    BULK: tl.constexpr,
):
    """This rank's `x @ weight.T` for a tile, float32 [BM, BN]; rows and columns beyond are junk.

    x and weight are pointers; with BULK descriptors of [ranks M, K] and [ranks N, K].
    """
    offs_m = block_m * BM + tl.arange(0, BM)
    offs_n = block_n * BN + tl.arange(0, BN)
    # Row 0 in place of rows that don't exist: nothing is read beyond the end.
    rows = first_row + tl.where(offs_m < M, offs_m, 0)
    columns = first_column + tl.where(offs_n < N, offs_n, 0)
    if BULK:
        acc = tl.zeros((BM, BN), dtype=tl.int32 if x.dtype == tl.int8 else tl.float32)
        for k in range(0, K, BK):
            x_tile = x.load([first_row + block_m * BM, k])
            weight_tile = weight.load([first_column + block_n * BN, k])
            acc = tl.dot(x_tile, weight_tile.T, acc, out_dtype=acc.dtype)
    else:
        offs_k = tl.arange(0, BK)
        # 64 bits: weight may hold more than 2**31 elements.
        x_ptrs = x + rows.to(tl.int64)[:, None] * K + offs_k[None, :]
        weight_ptrs = weight + columns.to(tl.int64)[None, :] * K + offs_k[:, None]
        acc = tl.zeros((BM, BN), dtype=tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
        # Rows that don't exist are not read: that many reads of one row would queue up for it.
        row_mask = (offs_m < M)[:, None]
        for k in range(0, K, BK):
            k_mask = offs_k < K - k
            x_tile = tl.load(x_ptrs + k, mask=row_mask & k_mask[None, :], other=0.0)
            weight_tile = tl.load(
                weight_ptrs + k, mask=k_mask[:, None], other=0.0, eviction_policy="evict_first"
            )
            acc = tl.dot(x_tile, weight_tile, acc, out_dtype=acc.dtype)
    total = acc.to(tl.float32)
    if SCALED:
        total = total * tl.load(x_scale_ptr + rows)[:, None]
        total = total * tl.load(weight_scale_ptr + columns)[None, :]
    return total


@triton.jit
def operand(ptr, rows, K, ROWS: tl.constexpr, BK: tl.constexpr, BULK: tl.constexpr):
    """x or weight as `partial_tile` takes it, from its pointer and the rows that a rank has."""
    if BULK:
        all_rows = tl.num_programs(0) * rows
        place = tl.make_tensor_descriptor(ptr, [all_rows, K], [K, 1], [ROWS, BK])
    else:
        place = ptr
    return place


@triton.jit
def given_tile(x_ptr, M, N, first_row, block_m, block_n, BM: tl.constexpr, BN: tl.constexpr):
    """A tile of partials that were computed before: x [ranks M, N], float32 [BM, BN]."""
    offs_m = block_m * BM + tl.arange(0, BM)
    offs_n = block_n * BN + tl.arange(0, BN)
    places = x_ptr + (first_row + offs_m).to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def unsummed_tile(
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SCALED: tl.constexpr,
    BULK: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """This rank's part of a tile, float32 [BM, BN]: its product, or what x holds of it."""
    if PRODUCT:
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
    else:
        acc = given_tile(x_ptr, M, N, first_row, block_m, block_n, BM, BN)
    return acc


@triton.jit
def finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n):
    """Add bias [N] and residual [M, N] to the sum over ranks, where they were given."""
    if extras != 0:
        column_mask = offs_n < N
        bias_mask = column_mask & ((extras & _EXTRA_BIAS) != 0)
        bias = tl.load(bias_ptr + offs_n, mask=bias_mask, other=0.0)
        offsets = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        mask = (offs_m < M)[:, None] & (column_mask & ((extras & _EXTRA_RESIDUAL) != 0))[None, :]
        residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
        total = total + bias.to(tl.float32)[None, :] + residual.to(tl.float32)
    return total


@triton.jit
def enter(heap_table, rank):
    """Return this call's epoch, and whether an earlier call of this rank gave up."""
    control = control_words(heap_table, rank)
    calls = tl.load(control.to(tl.pointer_type(tl.int64)) + _ARRIVALS_WORD // 2, volatile=True)
    epoch = (calls >> 32).to(tl.int32) + 1
    # Another CTA may write the mark meanwhile, but then it is of this call: all threads agree.
    mark = tl.load(control + _GAVE_UP_WORD, volatile=True)
    return epoch, (mark != 0) & (mark != ((epoch << 1) | 1))


@triton.jit
def _refresh_flag(heap_table, rank, epoch, first_flag, flags_end):
    """Lift one flag word of this rank to the last epoch if it is older than 2**30 calls.

    Flags that only large calls use may rest for long; compared modulo 2**32 they would look set.
    The last epoch ends no wait; where a peer writes at the same time, its value stays.
    """
    words = (flags_end - first_flag) * (_PAGE // 4)
    word = ((epoch >> 1) & 0x3FFFFFFF) // (_REFRESH_CALLS // 2) % words
    flag = in_heap(heap_table, rank, first_flag, tl.int32) + word
    seen = tl.atomic_add(flag, 0, sem="relaxed", scope="sys")
    if (epoch - seen) > _OLD:
        tl.atomic_cas(flag, seen, epoch - 1, sem="relaxed", scope="sys")


@triton.jit
def count_in(control, cta, ctas):
    """Add this CTA's share of the 2**32 that a launch adds to the counter."""
    share = tl.where(cta == 0, (1 << 32) + 1 - ctas.to(tl.int64), 1)
    # One element, not a scalar: a scalar's result would be waited for, to hand it to all threads.
    counter = control.to(tl.pointer_type(tl.int64)) + (_ARRIVALS_WORD // 2 + tl.arange(0, 1))
    tl.atomic_add(counter, tl.zeros((1,), dtype=tl.int64) + share, sem="relaxed", scope="gpu")


@triton.jit
def arrive(heap_table, rank, epoch, cta, ctas, first_flag, flags_end):
    """Count this CTA in: all CTAs of a launch together add 2**32, which is one epoch.

    Nothing waits for it. The epoch changes when the last CTA has arrived, and each has read the
    counter before it arrives.
    """
    # All warps must have read the epoch before this CTA may complete it.
    tl.debug_barrier()
    count_in(control_words(heap_table, rank), cta, ctas)
    if (cta == 0) & (epoch % _REFRESH_CALLS == 0):
        _refresh_flag(heap_table, rank, epoch, first_flag, flags_end)


@triton.jit
def publish(flag_ptrs, epoch, COUNT: tl.constexpr):
    """Release what all threads of this CTA have stored, then set COUNT flags to the epoch."""
    # Triton up to 3.8 emits no barrier before a release: without this one the flag can overtake
    # the stores of the CTA's other warps.
    tl.debug_barrier()
    # One atomic for all flags: one system fence instead of COUNT.
    tl.atomic_xchg(
        flag_ptrs, tl.zeros((COUNT,), dtype=tl.int32) + epoch, sem="release", scope="sys"
    )


@triton.jit
def _poll(flags):
    """Read flags, each with acquire at system scope."""
    if COMPILED:
        seen = tl.inline_asm_elementwise(
            "ld.acquire.sys.global.b32 $0, [$1];",
            "=r,l",
            [flags.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        seen = tl.load(flags, volatile=True)
    return seen


@triton.jit
def wait_flags(flags, epoch, spin_limit, failed, COUNT: tl.constexpr):
    """Wait until COUNT flags, a power of two, have reached the epoch. All are polled at once.

    Returns whether any wait of this CTA has failed so far, the first late flag's index (-1: none
    of these), and what it held. Loads that follow see what was stored before the flags were set.
    """
    # So many that the minimum crosses warps: then all threads get the same answer, and a wait
    # ends for all of them at once.
    which = tl.arange(0, _POLLERS) % COUNT
    # After a failure look once and go on: one time limit per CTA, not one per flag.
    limit = tl.where(failed, 0, spin_limit)
    seen = _poll(flags + which)
    late = tl.min(seen - epoch) < 0  # modulo 2**32; a peer may be one call ahead
    spins = 0
    while late & (spins < limit):
        seen = _poll(flags + which)
        late = tl.min(seen - epoch) < 0
        spins += 1
    late_index = -1
    late_seen = epoch
    if late:
        late_index = tl.min(tl.where((seen - epoch) < 0, which, COUNT))
        late_seen = tl.min(tl.where(which == late_index, seen, 0x7FFFFFFF))
    # Keeps the loads that follow behind the acquire, for all warps.
    tl.debug_barrier()
    return failed | late, late_index, late_seen


@triton.jit
def report(heap_table, status_ptr, code, rank, tile, source, seen, expected):
    """Write the first failure of this rank into its heap and into the host's copy."""
    word = control_words(heap_table, rank) + _STATUS_WORD
    if tl.atomic_cas(word, 0, code, sem="relaxed", scope="gpu") == 0:
        copy = status_ptr + rank * _STATUS_WORDS
        tl.store(word + 1, rank)
        tl.store(word + 2, tile)
        tl.store(word + 3, source)
        tl.store(word + 4, seen)
        tl.store(word + 5, expected)
        # Strong, as what other CTAs of this launch read at the same time must be.
        mark = control_words(heap_table, rank) + _GAVE_UP_WORD
        tl.atomic_xchg(mark, (expected << 1) | 1, sem="relaxed", scope="gpu")
        tl.store(copy + 1, rank)
        tl.store(copy + 2, tile)
        tl.store(copy + 3, source)
        tl.store(copy + 4, seen)
        tl.store(copy + 5, expected)
        tl.store(copy, code)
