"""The second half of the serial way on virtual ranks: one kernel sums, and writes every y."""

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit  # type: ignore[untyped-decorator]
def _sum_to_all(parts, out, count, W: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for source in tl.static_range(W):
        total += tl.load(parts + source * count + offsets, mask=inside, other=0.0).to(tl.float32)
    y = total.to(out.dtype.element_ty)
    for rank in tl.static_range(W):
        tl.store(out + rank * count + offsets, y, mask=inside)


def sum_to_all(parts: torch.Tensor, out: torch.Tensor) -> None:
    """Write the sum of parts [W, M, N] into every out[r] [M, N]; float32 sum, rounded once."""
    launch: Any = _sum_to_all
    count = parts[0].numel()
    launch[(triton.cdiv(count, BLOCK),)](parts, out, count, W=parts.shape[0], BLOCK=BLOCK)
