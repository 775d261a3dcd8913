"""Where heaps come from, and how ranks agree: one small interface, several kinds of ranks.

| module | ranks |
|---|---|
| `nvshmem` | processes, one or several per GPU, over NVSHMEM |
| `symmetric` | processes, one per GPU, over PyTorch's symmetric memory |
| `shared` | processes on CPUs, over POSIX shared memory, for Triton's interpreter |
| `virtual` | all ranks in one process and one launch, for tests |
"""

from .base import Heap, Transport

__all__ = ["Heap", "Transport"]
