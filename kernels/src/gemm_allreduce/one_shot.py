"""One-shot GEMM + all-reduce: one Triton source for Triton >= 3.4 and for Triton-distributed.

Each CTA computes tiles of ``x @ weight.T``, rounds them to the element type, stores them into
every rank's slot, publishes flags, waits for the W flags of the same tile in its own heap and
sums the W partials in rank order. All ranks add the same numbers in the same order, so their
results are bit-identical.

Protocol (no barrier, no reset, no memset, no state on the host):

* The epoch e of a call is read from device memory, so CUDA graphs can replay the kernel. The last
  CTA of a rank to arrive stores it back for the next kernel on the stream.
* A flag (tile, source) holds the epoch of the last call in which that source has published that
  tile. It only ever grows, and is compared modulo 2**32, since a peer may be one call ahead.
* Partials of call e go to slot e & 1. See :mod:`gemm_allreduce.layout` for why two are enough.
* Waits are bounded. A rank that gives up writes a status record into its heap, fills the affected
  output with NaN, and from then on neither pushes nor waits: its unread slots and those of its
  peers could no longer be told apart by epoch parity, and the peers report in their turn.

Conditions: one stream per heap; all ranks make the same calls in the same order with the same
M, N; no programmatic dependent launch; all CTAs of a launch resident at once (cooperative launch).
"""

import triton
import triton.language as tl

from .layout import ARRIVALS_WORD, EPOCH_WORD, STATUS_TIMEOUT, STATUS_WORD

_EPOCH_WORD = tl.constexpr(EPOCH_WORD)
_ARRIVALS_WORD = tl.constexpr(ARRIVALS_WORD)
_STATUS_WORD = tl.constexpr(STATUS_WORD)
_STATUS_TIMEOUT = tl.constexpr(STATUS_TIMEOUT)


@triton.jit
def _heap_pointer(heap_table, peer, byte_offset, dtype: tl.constexpr):
    address = tl.load(heap_table + peer) + byte_offset
    # Without the alignment hint every access through the table is 2 bytes wide.
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def _partial_tile(
    x_ptr, weight_ptr, M, K, pid_m, pid_n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    offs_m = pid_m * BM + tl.arange(0, BM)
    offs_n = pid_n * BN + tl.arange(0, BN)
    offs_k = tl.arange(0, BK)
    row_mask = (offs_m < M)[:, None]
    # 64 bits: weight may hold more than 2**31 elements.
    x_ptrs = x_ptr + offs_m.to(tl.int64)[:, None] * K + offs_k[None, :]
    weight_ptrs = weight_ptr + offs_n.to(tl.int64)[None, :] * K + offs_k[:, None]
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        k_mask = offs_k < K - k
        x_tile = tl.load(x_ptrs + k, mask=row_mask & k_mask[None, :], other=0.0)
        weight_tile = tl.load(
            weight_ptrs + k, mask=k_mask[:, None], other=0.0, eviction_policy="evict_first"
        )
        acc = tl.dot(x_tile, weight_tile, acc)
    return acc


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


@triton.jit(do_not_specialize=["M", "rank", "spin_limit"])
def gemm_allreduce_one_shot(
    x_ptr,
    weight_ptr,
    y_ptr,
    heap_table,
    M,
    N,
    K,
    rank,
    flags_offset,
    slots_offset,
    source_stride,
    row_stride,
    spin_limit,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    VIRTUAL: tl.constexpr,
):
    """y = sum over ranks of x @ weight.T, on every rank. Grid: 1-D, at most the resident CTAs.

    Args:
        x_ptr: [M, K], contiguous; with VIRTUAL [W, M, K].
        weight_ptr: [N, K], contiguous; with VIRTUAL [W, N, K].
        y_ptr: [M, N], contiguous, the element type of x; with VIRTUAL [W, M, N].
        heap_table: int64 [W], address of each rank's heap in this process (HeapLayout).
        M, N, K: sizes in elements. N must be a multiple of BN; M <= max_tokens and
            N <= max_features of the heap; M and K are arbitrary.
        rank: this rank; ignored with VIRTUAL.
        flags_offset, slots_offset: bytes, of HeapLayout.
        source_stride, row_stride: elements, of HeapLayout.
        spin_limit: polls of one flag before a wait gives up.
        W: number of ranks, a power of two.
        VIRTUAL: all W ranks in one launch, rank = pid % W; the grid is W times the CTAs per rank.
    """
    dtype = y_ptr.dtype.element_ty
    cta = tl.program_id(0)
    ctas = tl.num_programs(0)
    if VIRTUAL:
        rank = cta % W
        cta = cta // W
        ctas = ctas // W
        x_ptr += rank.to(tl.int64) * M * K
        weight_ptr += rank.to(tl.int64) * N * K
        y_ptr += rank.to(tl.int64) * M * N

    control = _heap_pointer(heap_table, rank, 0, tl.int32)
    flags = _heap_pointer(heap_table, rank, flags_offset, tl.int32)
    epoch = tl.load(control + _EPOCH_WORD) + 1
    # An atomic, not a load: another CTA may write the word meanwhile, and all threads must agree.
    broken = tl.atomic_add(control + _STATUS_WORD, 0, sem="relaxed", scope="gpu") != 0

    tiles_m = tl.cdiv(M, BM)
    tiles = tiles_m * (N // BN)
    slot = (epoch & 1) * W

    # Publish all tiles before waiting for any: producers never wait.
    first_push = tl.where(broken, tiles, cta)
    for tile in tl.range(first_push, tiles, ctas, num_stages=1):
        pid_m = tile % tiles_m
        pid_n = tile // tiles_m
        partial = _partial_tile(x_ptr, weight_ptr, M, K, pid_m, pid_n, BM, BN, BK).to(dtype)
        offs_m = pid_m * BM + tl.arange(0, BM)
        offs_n = pid_n * BN + tl.arange(0, BN)
        offsets = offs_m[:, None] * row_stride + offs_n[None, :]
        row_mask = (offs_m < M)[:, None]
        base = (slot + rank).to(tl.int64) * source_stride
        for step in tl.static_range(W):
            peer = (rank + step) % W  # ranks start at different peers, to spread the links
            slots = _heap_pointer(heap_table, peer, slots_offset, dtype)
            tl.store(slots + base + offsets, partial, mask=row_mask)
        # Triton up to 3.8 emits no barrier before a release: without this one the flag can
        # overtake the stores of the CTA's other warps.
        tl.debug_barrier()
        flag_addresses = tl.load(heap_table + tl.arange(0, W)) + flags_offset
        flag_ptrs = flag_addresses.to(tl.pointer_type(tl.int32)) + tile * W + rank
        # One atomic for all W flags: one system fence instead of W.
        tl.atomic_xchg(
            flag_ptrs, tl.zeros((W,), dtype=tl.int32) + epoch, sem="release", scope="sys"
        )

    # All warps must have read the epoch before the last CTA to arrive replaces it.
    tl.debug_barrier()
    arrived = tl.atomic_add(control + _ARRIVALS_WORD, 1, sem="acq_rel", scope="gpu")
    if arrived == ctas - 1:
        tl.store(control + _ARRIVALS_WORD, 0)
        tl.store(control + _EPOCH_WORD, epoch)

    failed = broken
    for tile in tl.range(cta, tiles, ctas, num_stages=1):
        late_source = -1
        late_seen = epoch
        for source in tl.static_range(W):
            # After a failure look once and go on: one time limit per CTA, not one per flag.
            limit = tl.where(failed, 0, spin_limit)
            seen = _wait_flag(flags + tile * W + source, epoch, limit)
            late = (seen - epoch) < 0  # modulo 2**32; a peer may be one call ahead
            late_source = tl.where(late & (late_source < 0), source, late_source)
            late_seen = tl.where(late & (late_source == source), seen, late_seen)
            failed = failed | late
        if late_source >= 0:
            status = control + _STATUS_WORD
            first = tl.atomic_cas(status, 0, _STATUS_TIMEOUT, sem="relaxed", scope="gpu")
            if first == 0:
                tl.store(status + 1, rank)
                tl.store(status + 2, tile)
                tl.store(status + 3, late_source)
                tl.store(status + 4, late_seen)
                tl.store(status + 5, epoch)
        # Keeps the loads below behind the acquire, for all warps.
        tl.debug_barrier()

        pid_m = tile % tiles_m
        pid_n = tile // tiles_m
        offs_m = pid_m * BM + tl.arange(0, BM)
        offs_n = pid_n * BN + tl.arange(0, BN)
        row_mask = (offs_m < M)[:, None]
        slots = _heap_pointer(heap_table, rank, slots_offset, dtype)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for source in tl.static_range(W):
            base = (slot + source).to(tl.int64) * source_stride
            part_ptrs = slots + base + offs_m[:, None] * row_stride + offs_n[None, :]
            total += tl.load(part_ptrs, mask=row_mask, other=0.0).to(tl.float32)
        total = tl.where(failed, float("nan"), total)
        y_ptrs = y_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(y_ptrs, total.to(dtype), mask=row_mask)
