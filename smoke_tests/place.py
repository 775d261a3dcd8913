"""Which rank of a launch this process is, as torchrun says it, and where the ranks' store is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class PlaceError(ValueError):
    """The process was not started by torchrun."""


@dataclass(frozen=True)
class Place:
    """A rank's place.

    Attributes:
        rank, world_size: among the ranks of all nodes.
        local_rank, local_size: among those of its node.
        address, port: of the store, which torchrun's agent on node 0 keeps.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """Read torchrun's variables. Raises: PlaceError."""
        try:
            if environment["TORCHELASTIC_USE_AGENT_STORE"] != "True":
                raise PlaceError("torchrun's agent must keep the store: it outlives the ranks")
            place = cls(
                int(environment["RANK"]),
                int(environment["WORLD_SIZE"]),
                int(environment["LOCAL_RANK"]),
                int(environment["LOCAL_WORLD_SIZE"]),
                environment["MASTER_ADDR"],
                int(environment["MASTER_PORT"]),
            )
        except KeyError as error:
            raise PlaceError(
                f"{error.args[0]} is not set: start it with torchrun, or with "
                "python -m smoke_tests.launch"
            ) from error
        if place.world_size % place.local_size:
            raise PlaceError(f"{place.world_size} ranks cannot be {place.local_size} on each node")
        return place

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.world_size // self.local_size

    @property
    def node(self) -> int:
        """Which node this is: torchrun numbers ranks node by node."""
        return self.rank // self.local_size

    @property
    def node_ranks(self) -> range:
        """The ranks of this node."""
        first = self.node * self.local_size
        return range(first, first + self.local_size)
