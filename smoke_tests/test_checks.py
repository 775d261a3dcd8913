"""Every check on every set of ranks of the tiers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smoke_tests.checks.registry import Check
from smoke_tests.evidence import topology
from smoke_tests.outcome import text_of
from smoke_tests.pool import Pool
from smoke_tests.recording import Found
from smoke_tests.tiers import Setting


def test(setting: Setting, check: Check, pool_of: Callable[[Setting], Pool], found: Found) -> None:
    """All ranks must pass; where the check ends ranks, those that are left."""
    pool = pool_of(setting)
    found.environment = pool.environment
    if not pool.usable:
        found.outcomes = pool.started
        pytest.fail(text_of("the ranks did not start", pool.started), pytrace=False)
    outcomes = found.outcomes = pool.run(check.name, check.time_limit_s)
    if check.ends_ranks:
        pool.close()
    found.detail = outcomes[0].detail
    bad = [o for o in outcomes if o.state != "passed"]
    if check.ends_ranks and len(bad) == 1 and bad[0].state == "died":
        return  # the one that the check killed
    if any(o.traces for o in bad):
        found.topology = topology(gpus=setting.kind != "cpu")
    if bad:
        pool.close()
        text = text_of(f"{len(bad)} of {len(outcomes)} processes", bad)
        pytest.fail(text, pytrace=False)
