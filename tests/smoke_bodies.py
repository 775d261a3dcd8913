"""What ranks run in tests of the pool: small, with every kind of step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smoke_tests.ranks import Ranks

STEPS = (
    "import torch and the kernels",
    "meet the other ranks",
    "load the checks",
    "connect",
    "create the workspace",
    "call M 1, N 64, K 16",
    "compare",
    "gather",
    "check the workspace",
    "close the workspace",
)


def every_step(ranks: Ranks) -> str:
    """One call, compared; return the names of all steps so far."""
    from smoke_tests.reference import Source, expected

    with ranks.workspace(max_tokens=16, max_features=64) as workspace:
        source = Source(ranks.device, 7)
        x = source.integers(workspace.dtype, ranks.world_size, 1, 16)
        weight = source.integers(workspace.dtype, ranks.world_size, 64, 16)
        y = ranks.call(workspace, x, weight)
        ranks.require_equal(y, expected(x, weight, workspace.dtype), "y")
        ranks.gather(None)
    return "|".join(ranks.steps.names)


def sleep_in_a_step(ranks: Ranks) -> None:
    """Rank 1 does not come; rank 0 waits for it."""
    import time

    if ranks.rank == 1:
        with ranks.step("sleep"):
            time.sleep(600)
    for _ in range(2):
        with ranks.step("work"):
            pass
    ranks.gather(None)


def sleep_between_calls(ranks: Ranks) -> None:
    """Rank 1 makes no call, so that rank 0 gives up by itself."""
    import time

    from smoke_tests.reference import Source

    with ranks.workspace(max_tokens=16, max_features=64, time_limit_s=1.0) as workspace:
        if ranks.rank == 1:
            time.sleep(600)
        source = Source(ranks.device, 7)
        x = source.integers(workspace.dtype, ranks.world_size, 1, 16)
        weight = source.integers(workspace.dtype, ranks.world_size, 64, 16)
        ranks.call(workspace, x, weight)


def refuse_then_go_on(ranks: Ranks) -> None:
    """An error that is caught ends its step."""
    import time

    try:
        with ranks.step("refused"):
            raise ValueError("refused")
    except ValueError:
        pass
    time.sleep(1.5)


def measure(ranks: Ranks) -> str:
    """Two numbers, one of them outside of its band."""
    ranks.measure("speed", 2.0, "ratio", (1.0, None), m=16)
    ranks.measure("time", 3.0, "us", (None, 1.0))
    return "measured"
