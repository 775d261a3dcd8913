"""Which ranks a tier runs on."""

from __future__ import annotations

from typing import Final

from smoke_tests.kinds import Kind

TIERS: Final = ("cpu", "gpu", "multi-gpu")


def settings(tier: str, ranks: int) -> list[tuple[Kind, int]]:
    """Return (kind, world size) of every set of ranks of a tier; `ranks` 0 takes its defaults.

    cpu: 2, then 4 processes in Triton's interpreter. gpu: virtual ranks, and processes over
    NVSHMEM that share one GPU. multi-gpu: a process per GPU over NVSHMEM and over PyTorch's
    symmetric memory.
    """
    if tier == "cpu":
        return [("cpu", w) for w in ([ranks] if ranks else [2, 4])]
    if tier == "gpu":
        virtual: list[tuple[Kind, int]] = [
            ("virtual", w) for w in ([ranks] if ranks else [1, 2, 4, 8])
        ]
        shared: list[tuple[Kind, int]] = [("nvshmem", w) for w in ([ranks] if ranks else [2, 4])]
        return virtual + shared
    import torch

    count = ranks or max(w for w in (1, 2, 4, 8) if w <= max(1, torch.cuda.device_count()))
    return [("nvshmem", count), ("symmetric", count)]
