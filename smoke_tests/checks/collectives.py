"""All-reduces that others wrote: NCCL's, and those of PyTorch's symmetric memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from smoke_tests.checks.registry import check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import UNIT_ROUNDOFF, Source, require_bound, require_equal

TIME_LIMIT = timedelta(seconds=60)
SIZES = (8, 1000, 8192, 3 * 8192 + 8, 2**20, 2**23)
"""Elements; multiples of 8, as PyTorch's operators take 16 bytes at a time."""
NCCL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SYMMETRIC_DTYPES = (torch.bfloat16, torch.float32)
"""PyTorch's operators take no other."""
UNITS = UNIT_ROUNDOFF | {torch.float32: 2.0**-24}

AllReduce = Callable[[torch.Tensor], torch.Tensor]
"""Takes this rank's values, which it may overwrite; returns the sum."""


def sum_bound(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float64 sum of parts [W, n], and how far a correct sum may be from it.

    In any order, and with every one of the W - 1 additions rounded to the type of the parts: each
    adds its unit of what has come together so far, which is at most the sum of magnitudes.
    """
    unit = UNITS[parts.dtype]
    additions = max(1, len(parts) - 1)
    magnitudes = parts.double().abs().sum(0)
    growth = (1 + unit) ** additions
    return parts.double().sum(0), additions * unit * growth * magnitudes + 1e-30


def require_sums(
    ranks: Ranks, all_reduce: AllReduce, name: str, dtypes: tuple[torch.dtype, ...]
) -> str:
    """Check an all-reduce on integers, bit for bit, and on normal values within the bound."""
    worst = 0.0
    source = Source(ranks.device, 210)
    for dtype in dtypes:
        for size in SIZES:
            what = f"{name}, {size} of {dtype}"
            parts = source.integers(dtype, ranks.world_size, size)
            y = _waited(ranks, what, all_reduce, parts)
            require_equal(y, parts.float().sum(0).to(dtype), f"{what}, rank {ranks.rank}")
            parts = source.normal(dtype, ranks.world_size, size)
            y = _waited(ranks, what, all_reduce, parts)
            worst = max(worst, require_bound(y, *sum_bound(parts), what))
    return f"at most {worst:.2f} of the bound"


def _waited(ranks: Ranks, what: str, all_reduce: AllReduce, parts: torch.Tensor) -> torch.Tensor:
    with ranks.step(what):
        y = all_reduce(parts[ranks.rank].clone())
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
    return y


@check("symmetric", least_ranks=2, own_gpu=True)
def nccl_all_reduce_is_right(ranks: Ranks) -> str:
    """NCCL's sums are exact on integers, and within a bound on normal values."""
    group = dist.new_group(backend="nccl", timeout=TIME_LIMIT)

    def all_reduce(values: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(values, group=group)
        return values

    said = require_sums(ranks, all_reduce, "NCCL", NCCL_DTYPES)
    ranks.synchronize()
    dist.destroy_process_group(group)
    return said


@check("symmetric", least_ranks=2, own_gpu=True)
def symmetric_memory_all_reduces_are_right(ranks: Ranks) -> str:
    """PyTorch's one-shot and two-shot operators, which load from peers; not the multicast one."""
    import torch.distributed._symmetric_memory as symmetric_memory

    assert ranks.group is not None
    name = ranks.group.group_name
    operators: Any = torch.ops.symm_mem
    said = []
    buffers = {}
    for dtype in SYMMETRIC_DTYPES:
        buffers[dtype] = symmetric_memory.empty(max(SIZES), dtype=dtype, device=ranks.device)
        symmetric_memory.rendezvous(buffers[dtype], ranks.group)
    for what, operator in (
        ("one-shot", operators.one_shot_all_reduce),
        ("two-shot", operators.two_shot_all_reduce_),
    ):

        def all_reduce(values: torch.Tensor, operator: Any = operator) -> torch.Tensor:
            place = buffers[values.dtype][: values.numel()]
            place.copy_(values)
            reduced: torch.Tensor = operator(place, "sum", name)
            return reduced.clone()  # two-shot's is the buffer, which the next call overwrites

        said.append(f"{what} {require_sums(ranks, all_reduce, what, SYMMETRIC_DTYPES)}")
    ranks.synchronize()
    ranks.gather(None)
    return "; ".join(said)
