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
    PAGE,
    REFRESH_CALLS,
    STATUS_FIELDS,
    STATUS_WORD,
    STATUS_WORDS,
)

_EPOCH_WORD = tl.constexpr(EPOCH_WORD)
_ARRIVALS_WORD = tl.constexpr(ARRIVALS_WORD)
_STATUS_WORD = tl.constexpr(STATUS_WORD)
_STATUS_WORDS = tl.constexpr(STATUS_WORDS)
_PAGE = tl.constexpr(PAGE)
_REFRESH_CALLS = tl.constexpr(REFRESH_CALLS)
_OLD = tl.constexpr(1 << 30)
assert STATUS_FIELDS[1:] == ("rank", "tile", "source", "seen", "expected")  # as in `report`

_EXTRA_BIAS = tl.constexpr(EXTRA_BIAS)
_EXTRA_RESIDUAL = tl.constexpr(EXTRA_RESIDUAL)


@triton.jit
def in_heap(heap_table, peer, page, dtype: tl.constexpr):
    """Pointer to page `page` of a rank's heap, as this process sees it."""
    address = tl.load(heap_table + peer) + page.to(tl.int64) * _PAGE
    # Without the alignment hint every access through the table is 2 bytes wide.
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


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
def control_words(heap_table, rank):
    """Pointer to the first page of a rank's heap."""
    address = tl.load(heap_table + rank)
    return tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)


@triton.jit
def partial_tile(
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
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SCALED: tl.constexpr,
):
    """This rank's `x @ weight.T` for a tile, float32 [BM, BN]; rows and columns beyond are junk."""
    offs_k = tl.arange(0, BK)
    # Row 0 in place of rows that don't exist: no mask, and nothing is read beyond the end.
    rows = first_row + tl.where(offs_m < M, offs_m, 0)
    columns = first_column + tl.where(offs_n < N, offs_n, 0)
    # 64 bits: weight may hold more than 2**31 elements.
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * K + offs_k[None, :]
    weight_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * K + offs_k[:, None]
    if x_ptr.dtype.element_ty == tl.int8:
        acc = tl.zeros((BM, BN), dtype=tl.int32)
    else:
        acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        k_mask = offs_k < K - k
        x_tile = tl.load(x_ptrs + k, mask=k_mask[None, :], other=0.0)
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
def finish(total, bias_ptr, residual_ptr, extras, M, N, offs_m, offs_n):
    """Add bias [N] and residual [M, N] to the sum over ranks, where they were given."""
    column_mask = offs_n < N
    bias = tl.load(bias_ptr + offs_n, mask=column_mask & ((extras & _EXTRA_BIAS) != 0), other=0.0)
    offsets = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (column_mask & ((extras & _EXTRA_RESIDUAL) != 0))[None, :]
    residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0)
    return total + bias.to(tl.float32)[None, :] + residual.to(tl.float32)


@triton.jit
def enter(heap_table, rank):
    """Return this call's epoch, and whether an earlier call of this rank gave up."""
    control = control_words(heap_table, rank)
    epoch = tl.load(control + _EPOCH_WORD) + 1
    # An atomic, not a load: another CTA may write the word meanwhile, and all threads must agree.
    broken = tl.atomic_add(control + _STATUS_WORD, 0, sem="relaxed", scope="gpu") != 0
    return epoch, broken


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
def arrive(heap_table, rank, epoch, ctas, first_flag, flags_end):
    """Count this CTA in; the last one stores the epoch for the next kernel on the stream."""
    control = control_words(heap_table, rank)
    # All warps must have read the epoch before the last CTA to arrive replaces it.
    tl.debug_barrier()
    arrived = tl.atomic_add(control + _ARRIVALS_WORD, 1, sem="acq_rel", scope="gpu")
    if arrived == ctas - 1:
        tl.store(control + _ARRIVALS_WORD, 0)
        tl.store(control + _EPOCH_WORD, epoch)
        if epoch % _REFRESH_CALLS == 0:
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
def _wait_flag(flag_ptr, epoch, spin_limit):
    seen = tl.atomic_add(flag_ptr, 0, sem="relaxed", scope="sys")
    spins = 0
    while ((seen - epoch) < 0) & (spins < spin_limit):
        seen = tl.atomic_add(flag_ptr, 0, sem="relaxed", scope="sys")
        spins += 1
    # One acquire once the flag is there; polling with it would flush L1 on every spin. Its result
    # is returned and used: Triton 3.4 to 3.7 delete an atomic whose result is not.
    return tl.atomic_add(flag_ptr, 0, sem="acquire", scope="sys")


@triton.jit
def wait_flags(flags, epoch, spin_limit, failed, COUNT: tl.constexpr):
    """Wait until COUNT flags have reached the epoch.

    Returns whether any wait of this CTA has failed so far, the first late flag's index (-1: none
    of these), and what it held. Loads that follow see what was stored before the flags were set.
    """
    late_index = -1
    late_seen = epoch
    for index in tl.static_range(COUNT):
        # After a failure look once and go on: one time limit per CTA, not one per flag.
        limit = tl.where(failed, 0, spin_limit)
        seen = _wait_flag(flags + index, epoch, limit)
        late = (seen - epoch) < 0  # modulo 2**32; a peer may be one call ahead
        late_index = tl.where(late & (late_index < 0), index, late_index)
        late_seen = tl.where(late & (late_index == index), seen, late_seen)
        failed = failed | late
    # Keeps the loads that follow behind the acquire, for all warps.
    tl.debug_barrier()
    return failed, late_index, late_seen


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
        tl.store(copy + 1, rank)
        tl.store(copy + 2, tile)
        tl.store(copy + 3, source)
        tl.store(copy + 4, seen)
        tl.store(copy + 5, expected)
        tl.store(copy, code)
