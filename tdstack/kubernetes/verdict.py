"""From what the checks of a node say to one verdict. Pure; standard library only.

`tdstack-verify --json` judges the image, `python -m tdstack.doctor --json` the host.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

State = Literal["ready", "unfit", "unknown"]
BAD: Final = ("failure", "missing")
"""Severities of the doctor's findings that make a node unfit."""
CONSEQUENCE: Final = "line"
MAX_VALUE: Final = 63
"""Characters of a label's or a taint's value (Kubernetes, `validation.IsValidLabelValue`)."""
MAX_TEXT: Final = 1500
"""Characters of a verdict's text: it goes into an annotation that people read."""


@dataclass(frozen=True)
class Ended:
    """How a check's command ended. `code` is None where it ran past its limit, in seconds."""

    name: str
    code: int | None
    out: str
    limit_s: float


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a node.

    Attributes:
        state: `unknown` where a check itself broke, which says nothing about the node.
        reason: a label's value: which check, empty for a node that is ready.
        text: for people: what was found and what to do.
    """

    state: State
    reason: str = ""
    text: str = ""


def judge(ended: Sequence[Ended], tolerated: Collection[str] = ()) -> Verdict:
    """Return the verdict over all checks: the worst, and of equals the first.

    Findings whose check is `tolerated` do not count.
    """
    verdicts = [_judge_one(one, tolerated) for one in ended]
    for state in ("unfit", "unknown"):
        of_state = [verdict for verdict in verdicts if verdict.state == state]
        if of_state:
            text = "; ".join(verdict.text for verdict in of_state)
            return Verdict(of_state[0].state, of_state[0].reason, text[:MAX_TEXT])
    return Verdict("ready")


def label_value(text: str) -> str:
    """Return `text` as a label's value: letters, digits, `-`, `_`, `.`, at most 63 of them."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MAX_VALUE].strip("._-")
    return kept or "unnamed"


def _judge_one(ended: Ended, tolerated: Collection[str]) -> Verdict:
    if ended.code is None:
        # A driver that hangs makes every query of it hang.
        text = f"{ended.name} did not end within {ended.limit_s:g} s"
        return Verdict("unfit", label_value(f"{ended.name}-hangs"), text)
    try:
        report = json.loads(ended.out)
        bad = list(_bad_findings(report["findings"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = f"{ended.name} ended with {ended.code} and no report; see the log of this pod"
        return Verdict("unknown", label_value(f"{ended.name}-broke"), text)
    counting = [(check, text) for check, text in bad if check not in tolerated]
    if counting:
        # That no line runs follows from another finding, which says more in one word.
        counting.sort(key=lambda finding: finding[0] == CONSEQUENCE)
        texts = "; ".join(f"{check}: {text}" for check, text in counting)
        return Verdict("unfit", label_value(counting[0][0]), texts)
    if ended.code == 0 or bad:
        return Verdict("ready")
    text = f"{ended.name} ended with {ended.code}, and names no finding"
    return Verdict("unknown", label_value(f"{ended.name}-{ended.code}"), text)


def _bad_findings(findings: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for finding in findings:
        if "severity" in finding:
            if finding["severity"] in BAD:
                texts = [str(finding.get(key) or "") for key in ("what", "evidence", "remedy")]
                yield str(finding["check"]), ", ".join(text for text in texts if text)
        elif not finding["ok"]:
            texts = [str(finding.get(key) or "") for key in ("detail", "remedy")]
            yield str(finding["check"]), ", ".join(text for text in texts if text)
