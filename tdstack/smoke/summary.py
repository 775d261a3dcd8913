"""One run in a few words: its state, its tiers, what failed. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from smoke_tests.records import TIERS, Check, Measure, Result, Tier

State: TypeAlias = Literal["passed", "failed", "cut off"]
TierState: TypeAlias = Literal["passed", "failed", "skipped", "unfinished"]
MARKS: Final = {
    "passed": "✓",
    "failed": "✗",
    "hung": "!",
    "died": "†",
    "left": "…",
    "cut off": "!",
    "skipped": "–",
    "unfinished": "!",
    "unjudged": "·",
    "unreadable": "?",
    "lacks a tier": "–",
}
"""A sign beside each word, for those who do not see its colour."""


@dataclass(frozen=True)
class TierSummary:
    """What became of a tier; ``reason`` is why it, or a check of it, was left out."""

    tier: Tier
    state: TierState
    passed: int
    failed: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Summary:
    """What became of a run. ``headline`` says it in a sentence."""

    state: State
    headline: str
    tiers: tuple[TierSummary, ...]
    failed: tuple[Check, ...]
    outside: tuple[Measure, ...]


def summarize(result: Result) -> Summary:
    """Return the summary of a run.

    A run passes only if its verdict says so, and no record says otherwise, and something ran.
    """
    failed = tuple(check for check in result.checks if check.outcome != "passed")
    outside = tuple(measure for measure in result.measures if measure.outcome == "failed")
    tiers = tuple(row for tier in TIERS if (row := _tier(result, tier)))
    state: State = "failed"
    if not result.verdict:
        state = "cut off"
    elif result.verdict.ok and not failed and not outside and (result.checks or result.measures):
        state = "passed"
    return Summary(state, _headline(result, state, failed, outside), tiers, failed, outside)


def _headline(
    result: Result, state: State, failed: tuple[Check, ...], outside: tuple[Measure, ...]
) -> str:
    parts = []
    if not result.verdict:
        last = f"after {result.checks[-1].name}" if result.checks else "before the first check"
        parts.append(f"no verdict: the run was cut off {last}")
    if failed:
        parts.append(f"{len(failed)} of {_count(len(result.checks), 'check')} did not pass")
    else:
        parts.append(f"{_count(len(result.checks), 'check')} passed")
    judged = sum(measure.outcome != "unjudged" for measure in result.measures)
    if result.measures:
        within = f", {judged - len(outside)} of {judged} judged within their bands"
        parts.append(_count(len(result.measures), "measure") + (within if judged else ", unjudged"))
    if result.skips:
        parts.append(f"{_count(len(result.skips), 'tier')} skipped")
    if result.left_out:
        parts.append(f"{_count(len(result.left_out), 'check')} left out")
    if result.verdict and state == "failed":
        parts.append(f"exit code {result.verdict.exit_code}")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _tier(result: Result, tier: Tier) -> TierSummary | None:
    checks = [check for check in result.checks if check.tier == tier]
    measures = [measure for measure in result.measures if measure.tier == tier]
    bad = sum(c.outcome != "passed" for c in checks) + sum(m.outcome == "failed" for m in measures)
    reasons = [skip.reason for skip in result.skips if skip.tier == tier]
    stated = result.verdict.tiers.get(tier) if result.verdict else None
    state: TierState
    if bad or stated == "failed":
        state = "failed"
    elif reasons or stated == "skipped":
        state = "skipped"
    elif checks or measures or stated:
        state = stated or "unfinished"
    else:
        return None
    passed = sum(c.outcome == "passed" for c in checks)
    seconds = sum(c.seconds for c in checks)
    reasons += [f"left out: {c.check}: {c.reason}" for c in result.left_out if c.tier == tier]
    return TierSummary(tier, state, passed, bad, seconds, "; ".join(reasons))
