"""The list of checks: a name, the function, and the kinds of ranks that it can run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from smoke_tests.kinds import Kind
from smoke_tests.layers import LAYERS, Layer, layer_of

if TYPE_CHECKING:
    from smoke_tests.ranks import Ranks

Body = Callable[["Ranks"], Any]
GPU: tuple[Kind, ...] = ("virtual", "nvshmem", "symmetric")
PROCESSES: tuple[Kind, ...] = ("cpu", "nvshmem", "symmetric")
ALL: tuple[Kind, ...] = ("cpu", *GPU)


@dataclass(frozen=True)
class Check:
    """One check.

    ``ends_ranks``: it leaves ranks behind that cannot be used again. ``least_ranks``: with fewer
    there is nothing to see. ``needs_cubins``: it looks at kernels that were compiled ahead of time.
    ``own_gpu``: every rank must have a GPU of its own. ``needs``: a module, without which the check
    is skipped. ``interpreted_ranks``: on CPUs it runs with these numbers of ranks, and not with the
    tier's own.
    """

    name: str
    body: Body
    kinds: tuple[Kind, ...]
    ends_ranks: bool
    time_limit_s: float
    least_ranks: int
    needs_cubins: bool
    own_gpu: bool
    needs: str
    interpreted_ranks: tuple[int, ...]

    @property
    def layer(self) -> Layer:
        """What it is about; see layers.py."""
        return layer_of(self.name)


CHECKS: dict[str, Check] = {}
MODULES = (
    "devices",
    "collectives",
    "links",
    "triton_distributed",
    "results",
    "sequences",
    "shapes",
    "refusals",
    "faults",
    "memory",
    "models",
    "cubins",
)


def check(
    *kinds: Kind,
    ends_ranks: bool = False,
    time_limit_s: float = 120.0,
    least_ranks: int = 1,
    needs_cubins: bool = False,
    own_gpu: bool = False,
    needs: str = "",
    interpreted_ranks: tuple[int, ...] = (),
) -> Callable[[Body], Body]:
    """Register a check under its function's name."""

    def register(body: Body) -> Body:
        name = body.__name__
        assert name not in CHECKS, name
        CHECKS[name] = Check(
            name,
            body,
            kinds or ALL,
            ends_ranks,
            time_limit_s,
            least_ranks,
            needs_cubins,
            own_gpu,
            needs,
            interpreted_ranks,
        )
        return body

    return register


def load() -> dict[str, Check]:
    """Import every module of checks; return them by name."""
    for module in MODULES:
        import_module(f"smoke_tests.checks.{module}")

    # Ranks take long to start: those checks come last that need new ones after them. The others
    # run from the bottom up, so that the first failure is the one to look at.
    def order(item: tuple[str, Check]) -> tuple[bool, int]:
        return item[1].ends_ranks, LAYERS.index(item[1].layer)

    return dict(sorted(CHECKS.items(), key=order))
