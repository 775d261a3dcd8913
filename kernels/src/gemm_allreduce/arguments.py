"""The run-time arguments of every kernel, as plain data: what they mean, and their order.

One list for all kernels, so that just-in-time and ahead-of-time launches of any algorithm agree.
"""

from __future__ import annotations

from typing import Final

ARGUMENTS: Final[dict[str, str]] = {
    "x_ptr": "operand [M, K], contiguous; if virtual [W, M, K]",
    "weight_ptr": "operand [N, K], contiguous; if virtual [W, N, K]",
    "y_ptr": "dtype [M, N], contiguous, written; if virtual [W, M, N]",
    "bias_ptr": "dtype [N]; any pointer where extras lacks it",
    "residual_ptr": "dtype [M, N], contiguous; any pointer where extras lacks it",
    "x_scale_ptr": "float32 [M]; if virtual [W, M]; unused unless SCALED",
    "weight_scale_ptr": "float32 [N]; if virtual [W, N]; unused unless SCALED",
    "heap_table": "int64 [W]: address of each rank's heap in this process; with MULTIMEM "
    "[W + 1], the last one the multicast address of all heaps",
    "status_ptr": "int32 [W, STATUS_WORDS]: the host's copy of the status records",
    "M": "rows",
    "n_vectors": "N / 8",
    "k_vectors": "K / 8, or K / 16 for 8-bit operands",
    "rank": "this rank; 0 if virtual",
    "gemm_ctas": "CTAs of a rank that compute",
    "copy_first": "first CTA of a rank that copies results to y",
    "extras": "bits: 1 bias, 2 residual",
    "spin_limit": "polls of one flag before a wait gives up",
    "partial_flags": "offset in the heap, pages",
    "result_flags": "offset in the heap, pages",
    "slots": "offset in the heap, pages",
    "slot_stride": "elements / 128 between the slots of two sources",
    "cells": "offset of the first one in the heap, pages; they are as far apart as slots",
    "receive": "offset in the heap, pages",
    "receive_stride": "elements / 128 between the receive parts of two sources",
    "result": "offset in the heap, pages",
}
"""The run-time arguments of every kernel, in order. Pointers are multiples of 16 bytes,
integers are 32 bits and not specialised on, so that one binary serves every shape and rank.
The grid is (1, CTAs of a rank), or (W, CTAs of a rank) for virtual ranks, which are in one launch
and are told apart by their place in it: so they test the very binary that processes run."""

POINTERS: Final = tuple(n for n in ARGUMENTS if n.endswith("_ptr") or n == "heap_table")
"""Those that are addresses, multiples of 16 bytes: kernels are specialised on that."""

INTEGERS: Final = tuple(name for name in ARGUMENTS if name not in POINTERS)
"""Those that are numbers: kernels are not specialised on them."""

EXTRA_BIAS: Final = 1
EXTRA_RESIDUAL: Final = 2
"""The bits of ``extras``."""
