"""How much memory, and is it given back?"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from gemm_allreduce.transports.shared import MEMORY_NAME
from smoke_tests.checks.registry import check
from smoke_tests.ranks import Ranks

LIMIT_MIB = 275


@check("virtual", "nvshmem", "symmetric")
def a_large_model_fits_in_275_mib(ranks: Ranks) -> str:
    """The workspace of a Qwen2.5-72B-sized model, as the allocator sees it."""
    with ranks.workspace():  # contexts, and what NVSHMEM takes for itself
        pass
    before = _used(ranks)
    with ranks.workspace(max_tokens=8192, max_features=8192) as workspace:
        share = ranks.world_size if ranks.kind == "virtual" else _sharing(ranks)
        taken = (_used(ranks) - before) / share / 2**20
        formula = workspace.symmetric_bytes / 2**20
    assert taken >= formula * 0.999, (
        f"{taken:.1f} MiB a rank, less than the formula's {formula:.1f}"
    )
    assert taken <= LIMIT_MIB, f"{taken:.1f} MiB a rank, limit {LIMIT_MIB}"
    return f"{taken:.1f} MiB a rank of {ranks.world_size}"


@check()
def closing_gives_everything_back(ranks: Ranks) -> str:
    """Opened and closed many times: no file, no memory stays."""
    times = 3 if ranks.kind == "cpu" else 10
    with ranks.workspace():
        pass
    before = _used(ranks)
    for _ in range(times):
        with ranks.workspace():
            pass
    grown = _used(ranks) - before
    assert grown <= 32 * 2**20, f"{grown / 2**20:.0f} MiB stay after {times} workspaces"
    maps = Path("/proc/self/maps").read_text()
    left = [line for line in maps.splitlines() if f"memfd:{MEMORY_NAME}" in line]
    assert not left, left
    return f"{times} times"


def _used(ranks: Ranks) -> int:
    """Bytes in use on this process's device; 0 on CPUs, whose memory is counted as files."""
    gc.collect()
    if ranks.device.type != "cuda":
        ranks.gather(None)
        return 0
    ranks.synchronize()
    torch.cuda.empty_cache()
    ranks.gather(None)  # a GPU may be shared: nobody changes anything while somebody looks
    free, total = torch.cuda.mem_get_info(ranks.device)
    ranks.gather(None)
    return total - free


def _sharing(ranks: Ranks) -> int:
    """How many processes use this process's device."""
    return sum(device == str(ranks.device) for device in ranks.gather(str(ranks.device)))
