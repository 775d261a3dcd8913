"""Checks over all nodes: are the versions the same, and do sums over all ranks come right?

The fused kernels work within a node; what joins nodes is gloo and NCCL, so these are checked here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from smoke_tests.launched import Launched
from smoke_tests.records import Label, Measure

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

SIZES: Final = (8, 1 << 20, 16 << 20)
"""Of the timed all-reduces, in bytes: latency, and rates."""
SAME: Final = ("python", "torch", "triton", "nvshmem", "gemm_allreduce")


def every_rank_has_the_same_versions(ranks: Launched) -> str:
    """Mixed nodes fail in ways that look like faults of kernels."""
    if different := differences(ranks.facts):
        raise AssertionError("; ".join(different))
    return ", ".join(f"{name} {ranks.facts[0].get(name)}" for name in SAME)


def differences(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for every version that is not the same everywhere, who has which. Pure."""
    found = []
    for name in SAME:
        holders: dict[str, list[int]] = {}
        for rank, own in enumerate(facts):
            holders.setdefault(str(own.get(name)), []).append(rank)
        if len(holders) > 1:
            texts = [f"{version} on ranks {_short(who)}" for version, who in holders.items()]
            found.append(f"{name}: {', '.join(texts)}")
    return found


def _short(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")


def integers_add_up_over_gloo(ranks: Launched) -> str:
    """Every rank adds 2**rank: a missing or doubled rank shows as its bit."""
    import torch

    return _adds_up(ranks, ranks.everyone, torch.device("cpu"), "gloo")


def integers_add_up_over_nccl(ranks: Launched) -> str:
    """The same on GPUs: the network that training and serving across nodes would use."""
    assert ranks.nccl is not None
    return _adds_up(ranks, ranks.nccl(), ranks.device, "nccl")


def _adds_up(ranks: Launched, group: ProcessGroup, device: torch.device, name: str) -> str:
    import torch
    import torch.distributed as dist

    place = ranks.place
    # A bit of an int64 for each rank; with more ranks, in the word that rank // 62 selects.
    words = (place.world_size + 61) // 62
    bits = torch.zeros(words, dtype=torch.int64, device=device)
    bits[place.rank // 62] = 1 << (place.rank % 62)
    with ranks.step(f"add up over {name}"):
        dist.all_reduce(bits, group=group)
        total = bits.tolist()
    wanted = [(1 << min(62, place.world_size - 62 * w)) - 1 for w in range(words)]
    assert total == wanted, f"the sum is {total}, expected {wanted}: {_missing(total, wanted)}"
    said = []
    for size in SIZES:
        seconds = _all_reduce_s(ranks, group, device, size)
        # Each byte crosses a ring 2 (W - 1) / W times: the rate of one link.
        rate = size * 2 * (place.world_size - 1) / place.world_size / seconds / 1e9
        labels: dict[str, Label] = {"over": name, "bytes": size}
        labels |= {"w": place.world_size, "nodes": place.nodes}
        if size == SIZES[0]:
            made = Measure(ranks.tier, "all-reduce latency", seconds * 1e6, "us", labels)
        else:
            made = Measure(ranks.tier, "all-reduce bus bandwidth", rate, "GB/s", labels)
        ranks.measures.append(made)
        said.append(f"{size} bytes {seconds * 1e6:.0f} us")
    return ", ".join(said)


def _missing(total: list[int], wanted: list[int]) -> str:
    """Name ranks whose bit is not there: exact unless one was added twice."""
    found = [
        f"rank {62 * word + bit} is missing"
        for word, (got, want) in enumerate(zip(total, wanted, strict=True))
        for bit in range(62)
        if (want >> bit) & 1 and not (got >> bit) & 1
    ]
    return ", ".join(found[:8]) or "one was added twice"


def _all_reduce_s(ranks: Launched, group: ProcessGroup, device: torch.device, size: int) -> float:
    """Return the median time of an all-reduce of so many bytes, on the slowest rank."""
    import torch
    import torch.distributed as dist

    ones = torch.ones(size // 4, dtype=torch.float32, device=device)
    times = []
    for _ in range(7):
        with ranks.step(f"all-reduce {size} bytes"):
            dist.barrier(group=ranks.everyone)
            begin = time.perf_counter()
            dist.all_reduce(ones, group=group)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
        ones.fill_(1)
    median = torch.tensor([sorted(times)[len(times) // 2]], dtype=torch.float64)
    with ranks.step("compare times"):
        dist.all_reduce(median, op=dist.ReduceOp.MAX, group=ranks.everyone)
    return float(median)


CHECKS: Final[dict[str, Callable[[Launched], str]]] = {
    check.__name__: check
    for check in (
        every_rank_has_the_same_versions,
        integers_add_up_over_gloo,
        integers_add_up_over_nccl,
    )
}
