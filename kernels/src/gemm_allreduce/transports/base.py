"""The interface of a transport, and what process groups give to most of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Heap:
    """One allocation of symmetric memory.

    Attributes:
        own: uint8 [nbytes], this rank's memory, zeroed; [W, nbytes] with virtual ranks.
        addresses: of each rank's memory, in this process.
    """

    own: torch.Tensor
    addresses: tuple[int, ...]


class Transport(Protocol):
    """Symmetric memory for a fixed set of ranks. `gather`, `allocate` and `close` are collective.

    Attributes:
        rank, world_size: this process among the ranks; rank is 0 where ``virtual``.
        device: where heaps and operands live.
        virtual: all ranks are in this process, and in one launch.
    """

    @property
    def rank(self) -> int:
        """This process's number among the ranks."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def device(self) -> torch.device:
        """Where heaps and operands live."""

    @property
    def virtual(self) -> bool:
        """Whether all ranks are in this process."""

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank; also a barrier."""

    def allocate(self, nbytes: int) -> Heap:
        """Return zeroed symmetric memory of the same size on every rank.

        Raises: RuntimeError, on every rank, when memory or a mapping of a peer's cannot be had.
        """

    def close(self) -> None:
        """Free what was allocated, after all ranks have come here. Once."""


def numbered(device: torch.device | str | None) -> torch.device:
    """Return a device with its number, as tensors name theirs; None is the current GPU."""
    import torch

    wanted = torch.device("cuda" if device is None else device)
    if wanted.type == "cuda" and wanted.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return wanted


class GroupRanks:
    """Rank, world size and `gather` from a torch.distributed group (gloo is enough)."""

    virtual = False

    def __init__(self, group: ProcessGroup) -> None:
        import torch.distributed as dist

        self.group: ProcessGroup | None = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group")

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank; also a barrier."""
        import torch.distributed as dist

        if self.group is None:
            raise RuntimeError("the transport is closed")
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_problems(self, problem: str) -> None:
        """Raise RuntimeError on every rank when any rank has a problem."""
        problems = self.gather(problem)
        if any(problems):
            raise RuntimeError(
                "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)
            )

    def leave(self) -> None:
        """Wait for all ranks and let go of the group: one that is held past its end aborts."""
        self.gather(None)
        self.group = None
