"""Ranks as processes on CPUs over POSIX shared memory: for Triton's interpreter, without a GPU."""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from .base import GroupRanks, Heap

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_FOLDER = Path("/dev/shm")


class SharedMemoryTransport(GroupRanks):
    """One heap per process of the group, in memory that all of them map. Linux only."""

    def __init__(self, group: ProcessGroup) -> None:
        import torch

        super().__init__(group)
        self.device = torch.device("cpu")
        self._mapped: list[mmap.mmap] = []

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed symmetric memory.

        Raises: RuntimeError when the shared memory of this host is too small.
        """
        import torch

        size = nbytes * self.world_size
        path = _FOLDER / self.gather(f"gemm_allreduce_{secrets.token_hex(8)}")[0]
        try:
            self.gather_problems(_create(path, size) if self.rank == 0 else "")
            mapped, problem = _map(path, size)
            self.gather_problems(problem)
        finally:
            if self.rank == 0:  # all have mapped it, or gave up: no file is left
                path.unlink(missing_ok=True)
        assert mapped is not None
        self._mapped.append(mapped)
        heaps = torch.frombuffer(mapped, dtype=torch.uint8).view(self.world_size, nbytes)
        return Heap(heaps[self.rank], tuple(heap.data_ptr() for heap in heaps))

    def close(self) -> None:
        """Let go of the memory once no rank can use it any more."""
        self.leave()
        # Not mmap.close(): tensors may still look at it; it goes with the last of them.
        self._mapped.clear()


def _create(path: Path, size: int) -> str:
    """Create the file; return what went wrong, or nothing."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return (
            f"{size} bytes of shared memory cannot be had in {_FOLDER}: {error}; "
            "raise its size (docker run --shm-size)"
        )
    return ""


def _map(path: Path, size: int) -> tuple[mmap.mmap | None, str]:
    """Map the file; return the mapping, or what went wrong."""
    try:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), size), ""
    except OSError as error:
        return None, f"{path} cannot be mapped: {error}; all ranks need one {_FOLDER}"
