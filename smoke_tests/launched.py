"""What a rank of a launch can use: every rank, those of its node, and a place for numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from smoke_tests.place import Place
from smoke_tests.records import Measure, Tier

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from smoke_tests.kinds import Kind
    from smoke_tests.ranks import Ranks


@dataclass
class Launched:
    """One rank of a launch.

    Attributes:
        facts: of every rank, by rank: what each said of itself at the start.
        everyone, node: groups over gloo, of all ranks and of those of this node.
        nccl: makes a group of all ranks over NCCL; None where ranks share a GPU or have none.
        step: to be entered around each collective: ``with ranks.step("add up"):``. The watch
            knows by it who is missing.
    """

    place: Place
    tier: Tier
    facts: list[Mapping[str, Any]]
    device: torch.device
    everyone: ProcessGroup
    node: ProcessGroup
    nccl: Callable[[], ProcessGroup] | None
    ranks: Callable[[Kind], Ranks]
    step: Callable[[str], AbstractContextManager[None]]
    measures: list[Measure] = field(default_factory=list)
