"""Tensors of a seed, the same on every rank, and what empties the L2 cache."""

from __future__ import annotations

import torch

DTYPE = torch.bfloat16


def normal(
    device: torch.device, seed: int, *shape: int, dtype: torch.dtype = DTYPE
) -> torch.Tensor:
    """Return standard normal values [*shape]: zeros or ones would draw less power."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def l2_bytes(device: torch.device) -> int:
    """Return the size of the device's L2 cache; 0 on CPUs."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def free_bytes(device: torch.device) -> int:
    """Return the device memory that can still be had; on CPUs, which time nothing, 1 GiB."""
    if device.type != "cuda":
        return 2**30
    torch.cuda.empty_cache()  # what torch keeps of a case before counts as free
    return torch.cuda.mem_get_info(device)[0]


class Flusher:
    """Called, it writes twice the L2 cache's size."""

    def __init__(self, device: torch.device) -> None:
        size = max(1, 2 * l2_bytes(device))
        self._scratch = torch.empty(size, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        """Queue it."""
        self._scratch.zero_()
