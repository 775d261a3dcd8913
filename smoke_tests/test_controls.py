"""A checker that finds no planted fault proves nothing: each one must be caught.

Not here: the barrier before a release, the scope of a release, and an acquire whose result is
unused. Their races don't show on demand; kernels/tests/test_kernel_ptx.py reads them off the
compiled code.
"""

from __future__ import annotations

from pathlib import Path

from smoke_tests.checks.registry import load
from smoke_tests.controls import Control, altered_sources
from smoke_tests.pool import Pool
from smoke_tests.tiers import Setting

LIMIT_S = 2.0


def test_control(setting: Setting, control: Control, tmp_path: Path) -> None:
    """The check fails on a fault, and passes on a stall."""
    sources = altered_sources(control, tmp_path)
    pool = Pool(
        setting.kind,
        setting.world_size,
        sources,
        time_limit_s=LIMIT_S,
        one_gpu=setting.one_gpu,
        grace_s=2 * LIMIT_S,
    )
    try:
        assert pool.usable, pool.started
        assert all(o.detail.startswith(str(tmp_path)) for o in pool.started), "not the altered one"
        outcomes = pool.run(control.check, load()[control.check].time_limit_s)
    finally:
        pool.close()
    states = {outcome.state for outcome in outcomes}
    if control.fails:
        assert "failed" in states, f"{control.name} was not caught by {control.check}"
        reasons = [o.detail for o in outcomes if o.state == "failed"]
        wanted = ("AssertionError", "PeerTimeoutError")
        assert any(word in text for text in reasons for word in wanted), reasons
        assert all(any(words in text for text in reasons) for words in control.says), reasons
    else:
        assert states == {"passed"}, outcomes
