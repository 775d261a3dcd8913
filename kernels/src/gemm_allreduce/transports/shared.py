"""Ranks as processes on CPUs over shared memory: for Triton's interpreter, without a GPU."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from .base import GroupRanks, Heap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MEMORY_NAME = "gemm_allreduce"
"""Of the memory, as /proc/PID/maps shows it."""


class SharedMemoryTransport(GroupRanks):
    """One heap per process of the group, in memory that all of them map. Linux only."""

    def __init__(self, group: ProcessGroup) -> None:
        import torch

        super().__init__(group)
        self.device = torch.device("cpu")
        self._mapped: list[mmap.mmap] = []

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed symmetric memory.

        Raises: RuntimeError when this host has too little memory.
        """
        import torch

        size = nbytes * self.world_size
        descriptor, problem = _create(size) if self.rank == 0 else (-1, "")
        try:
            path = self.gather(f"/proc/{os.getpid()}/fd/{descriptor}")[0]
            self.gather_problems(problem)
            mapped, problem = _map(path, size)
            self.gather_problems(problem)
        finally:
            if descriptor >= 0:  # all have mapped it, or gave up
                os.close(descriptor)
        assert mapped is not None
        self._mapped.append(mapped)
        heaps = torch.frombuffer(mapped, dtype=torch.uint8).view(self.world_size, nbytes)
        return Heap(heaps[self.rank], tuple(heap.data_ptr() for heap in heaps))

    def close(self) -> None:
        """Let go of the memory once no rank can use it any more."""
        self.leave()
        # Not mmap.close(): tensors may still look at it; it goes with the last of them.
        self._mapped.clear()


def _create(size: int) -> tuple[int, str]:
    """Return memory that is in no folder, by descriptor, or -1 and what went wrong.

    Nothing that is in no folder can be left behind, however the ranks end.
    """
    descriptor = -1
    try:
        descriptor = os.memfd_create(MEMORY_NAME)
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        return -1, f"{size} bytes of shared memory cannot be had: {error}"
    return descriptor, ""


def _map(path: str, size: int) -> tuple[mmap.mmap | None, str]:
    """Map the memory; return the mapping, or what went wrong."""
    try:
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), size), ""
    except OSError as error:
        return None, f"{path} cannot be mapped: {error}; all ranks need one user and one /proc"
