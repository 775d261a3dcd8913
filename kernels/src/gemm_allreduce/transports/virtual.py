"""All ranks in one launch on one GPU: the correctness test bed of the kernels.

The ranks' heaps are slices of one tensor, and rank r takes every W-th CTA. The kernels run the
same instructions as on W GPUs; what this leaves untested is the links. It is no way to serve.

Under Triton's interpreter only one rank works, since it runs the CTAs one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import Heap, numbered

if TYPE_CHECKING:
    import torch


class VirtualTransport:
    """W ranks in this process. ``device`` is where their heaps and operands live."""

    virtual = True
    rank = 0

    def __init__(self, world_size: int, device: torch.device | str) -> None:
        self.world_size = world_size
        self.device = numbered(device)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of the one process."""
        return [value]

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed memory of every rank."""
        import torch

        own = torch.zeros((self.world_size, nbytes), dtype=torch.uint8, device=self.device)
        return Heap(own, tuple(heap.data_ptr() for heap in own))

    def close(self) -> None:
        """Nothing to do: the tensors own their memory."""
