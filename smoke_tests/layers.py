"""What lies beneath the kernels, and what a set of failed checks says of it.

Standard library only: reports use it where there is no torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from smoke_tests.records import Check

Layer = Literal["hardware", "driver", "NCCL", "PyTorch", "NVSHMEM", "Triton-distributed", "kernels"]
LAYERS: Final[tuple[Layer, ...]] = get_args(Layer)
"""From the bottom up: checks run in this order."""

BENEATH: Final[Mapping[Layer, tuple[Layer, ...]]] = {
    "hardware": (),
    "driver": ("hardware",),
    "NCCL": ("driver",),
    "PyTorch": ("driver",),
    "NVSHMEM": ("driver",),
    "Triton-distributed": ("NVSHMEM",),
    "kernels": ("NVSHMEM", "PyTorch"),
}
"""What each stands on: it cannot be blamed while one of these fails."""

CHECKS: Final[Mapping[str, Layer]] = {
    "each_gpu_computes_and_copies_right": "hardware",
    "gpus_reach_each_other_in_one_process": "driver",
    "nccl_all_reduce_is_right": "NCCL",
    "symmetric_memory_reaches_every_pair": "PyTorch",
    "symmetric_memory_all_reduces_are_right": "PyTorch",
    "nvshmem_put_reaches_every_pair": "NVSHMEM",
    "nvshmem_get_reaches_every_pair": "NVSHMEM",
    "nvshmem_barrier_waits_for_puts": "NVSHMEM",
    "triton_distributed_gemm_all_reduce_is_right": "Triton-distributed",
}
"""The checks that are not of the kernels."""

REMEDY: Final[Mapping[Layer, str]] = {
    "hardware": "take this GPU out of service, and read `nvidia-smi -q` for ECC and Xid errors",
    "driver": "look at `nvidia-smi topo -p2p rw`, the fabric manager, ACS and the IOMMU",
    "NCCL": "run it again with NCCL_DEBUG=INFO",
    "PyTorch": "look at the version of torch, and at what the container may do (IPC, ptrace)",
    "NVSHMEM": "run it again with NVSHMEM_DEBUG=INFO; exactly one NVSHMEM must be installed",
    "Triton-distributed": "check its installation with tdstack-verify",
    "kernels": "report it with this file",
}

_PAIR = re.compile(r"rank (\d+) (?:->|<-) rank (\d+)")


@dataclass(frozen=True)
class Seen:
    """What became of one check; ``tier`` as in records.py."""

    name: str
    passed: bool
    detail: str = ""
    tier: str = ""

    @property
    def layer(self) -> Layer:
        """What the check is about."""
        return layer_of(self.name)


def seen_of(checks: Iterable[Check]) -> list[Seen]:
    """Return the checks of a record as `diagnose` takes them. Pure."""
    return [
        Seen(
            check.name,
            check.outcome == "passed",
            "\n".join([check.detail, *(rank.detail for rank in check.ranks)]),
            check.tier,
        )
        for check in checks
    ]


def layer_of(check: str) -> Layer:
    """Return the layer of a check, by its own name or as in records (``nvshmem-w2-...``)."""
    return CHECKS.get(check.rpartition("-")[2], "kernels")


def suspects(failed: Collection[Layer]) -> tuple[Layer, ...]:
    """Return the failed layers beneath which nothing fails, from the bottom up. Pure."""
    return tuple(
        layer for layer in LAYERS if layer in failed and not _all_beneath(layer) & set(failed)
    )


def _all_beneath(layer: Layer) -> set[Layer]:
    return {b for direct in BENEATH[layer] for b in (direct, *_all_beneath(direct))}


def diagnose(seen: Iterable[Seen]) -> str:
    """Return in one sentence which layer is to blame, and why; empty when all passed. Pure."""
    checks = list(seen)
    bad = [check for check in checks if not check.passed]
    if not bad:
        return ""
    broken = [check for check in bad if check.tier in ("import", "compile")]
    if broken:
        return (
            f"installation: {_names(broken)} failed, which needs no ranks and no link; "
            "check it with tdstack-verify"
        )
    if all(check.layer == "kernels" and check.tier == "cpu" for check in bad):
        return (
            f"kernels: {_names(bad)} failed on CPU ranks, where no GPU, driver or link is used: "
            f"suspect the kernels, Triton or torch as they are installed; {REMEDY['kernels']}"
        )
    blamed = suspects({check.layer for check in bad})
    where = _common_pairs([c for c in bad if c.layer in blamed])
    shared = {"NCCL", "PyTorch", "NVSHMEM"}
    if shared & {check.layer for check in checks} <= set(blamed) and len(shared & set(blamed)) > 1:
        return (
            f"driver or links: {_list(sorted(shared & set(blamed)))} fail alike{where}, and share "
            f"nothing but the driver and the links; {REMEDY['driver']}"
        )
    layer = blamed[0]
    mine = [check for check in bad if check.layer == layer]
    passed = [
        name
        for name in LAYERS
        if name in _all_beneath(layer) and any(c.layer == name and c.passed for c in checks)
    ]
    below = f"; {_list(passed)} beneath {'passes' if len(passed) == 1 else 'pass'}"
    unseen = [
        name
        for name in LAYERS
        if name in _all_beneath(layer) and not any(c.layer == name for c in checks)
    ]
    unknown = f"; {_list(unseen)} beneath {'was' if len(unseen) == 1 else 'were'} not checked"
    others = f"; also {_list(blamed[1:])}, on its own" if len(blamed) > 1 else ""
    return (
        f"{layer}: {_names(mine)} failed{where}{below if passed else ''}"
        f"{unknown if unseen else ''}{others}; {REMEDY[layer]}"
    )


def _common_pairs(bad: list[Seen]) -> str:
    """Return the pairs of ranks that every failure with a pair names."""
    named = [
        {tuple(sorted((int(a), int(b)))) for a, b in _PAIR.findall(check.detail)} for check in bad
    ]
    named = [pairs for pairs in named if pairs]
    common = set.intersection(*named) if named else set()
    texts = [f"rank {a} and rank {b}" for a, b in sorted(common)]
    return f" between {_list(texts)}" if texts else ""


def _names(checks: list[Seen]) -> str:
    names = list(dict.fromkeys(check.name for check in checks))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return _list(names[:3]) + more if not more else ", ".join(names[:3]) + more


def _list(names: Iterable[str]) -> str:
    *first, last = list(names) or [""]
    return f"{', '.join(first)} and {last}" if first else last
