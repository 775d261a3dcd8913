"""Ranks as processes with a GPU each, over PyTorch's symmetric memory (NVLink or PCIe P2P).

For where NVSHMEM is not at hand. PyTorch >= 2.8; its multicast is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import GroupRanks, Heap, numbered

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


class SymmetricMemoryTransport(GroupRanks):
    """One heap per process of the group. ``device`` is this process's GPU."""

    def __init__(self, group: ProcessGroup, device: torch.device | str | None = None) -> None:
        super().__init__(group)
        self.device = numbered(device)

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed symmetric memory.

        Raises: RuntimeError when a peer's memory cannot be mapped.
        """
        import torch
        import torch.distributed._symmetric_memory as symmetric_memory

        problem = ""
        try:
            own = symmetric_memory.empty(nbytes, dtype=torch.uint8, device=self.device)
            own.zero_()
        except RuntimeError as error:
            problem = str(error)
        self.gather_problems(problem)
        assert self.group is not None  # gather would have raised
        handle = symmetric_memory.rendezvous(own, self.group)
        if handle is None:
            raise RuntimeError("PyTorch's symmetric memory gave no handle for this group")
        torch.cuda.synchronize(self.device)
        self.gather(None)  # nobody may write before everybody has zeroed
        return Heap(own, tuple(handle.buffer_ptrs))

    def close(self) -> None:
        """Wait for all ranks; the tensors own their memory."""
        self.leave()
