"""Every check on every set of ranks of the tier."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smoke_tests.checks.registry import Check
from smoke_tests.kinds import Kind
from smoke_tests.pool import Pool


def test(
    ranks: tuple[Kind, int],
    check: Check,
    pool_of: Callable[[Kind, int], Pool],
    hung: list[str],
    request: pytest.FixtureRequest,
) -> None:
    """All ranks must pass; where the check ends ranks, those that are left."""
    pool = pool_of(*ranks)
    if not pool.usable:
        pytest.fail(_text("the ranks did not start", pool.started), pytrace=False)
    outcomes = pool.run(check.name, check.time_limit_s)
    if check.ends_ranks:
        pool.close()
    request.node.user_properties.append(("detail", outcomes[0].detail))
    bad = [o for o in outcomes if o.state != "passed"]
    if check.ends_ranks and len(bad) == 1 and bad[0].state == "died":
        return  # the one that the check killed
    if any(o.state == "hung" for o in outcomes):
        hung.append(check.name)
    if bad:
        pool.close()
        pytest.fail(_text(f"{len(bad)} of {len(outcomes)} processes", bad), pytrace=False)


def _text(what: str, outcomes: list) -> str:  # type: ignore[type-arg]
    return "\n".join([what, *(f"rank {o.rank} {o.state}: {o.detail}" for o in outcomes)])
