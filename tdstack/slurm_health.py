"""What the doctor's report means for a node of Slurm: keep it, drain it, or it was not checked.

scripts/slurm/health.sh asks with `python -m tdstack.slurm_health --code CODE REPORT`, and reads one
line: `keep`, `drain REASON` or `broken WHY`. Only a report that is whole and agrees with its exit
code can drain a node; whatever else a doctor leaves behind is `broken`, which drains nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tdstack.errors import ExitCode

SCHEMA: Final = 1
BAD: Final = ("failure", "missing")
"""Severities of a finding that take a node away, the worse first."""
ANSWERS: Final = {int(ExitCode.DONE), int(ExitCode.CHECK_FAILED), int(ExitCode.HOST)}
"""Exit codes with which the doctor has looked at a host; with others it could not."""
REASON_BEGINS: Final = "tdstack doctor: "
"""By this people and other tools (Ansible: `tdstack:`) know whose drain it is."""
MOST: Final = 200
"""Characters of a reason: it stands in a column of `sinfo -R`, and in every log line."""


@dataclass(frozen=True)
class Judgement:
    """What to do with a node, and why; `why` is empty for `keep`."""

    verdict: Literal["keep", "drain", "broken"]
    why: str = ""

    def line(self) -> str:
        """Return it as one line of printable ASCII."""
        return f"{self.verdict} {plain(self.why)}".strip()


def judge(
    report: str, code: int, only: Collection[str] = (), ignore: Collection[str] = ()
) -> Judgement:
    """Judge a report and the exit code that came with it. Pure.

    `only` and `ignore` are names of checks: those that count (all, if it is empty) and those that
    do not. One in `only` without a finding, be it misspelt or not for this host, is `broken`
    unless another one drains: it was not checked.
    """
    try:
        document = json.loads(report)
    except ValueError:
        return Judgement("broken", f"the doctor ended with {code} and left no report")
    if not isinstance(document, dict):
        return Judgement("broken", f"the doctor ended with {code} and left no report")
    if code not in ANSWERS:
        said = document.get("what") or "no word"
        return Judgement("broken", f"the doctor ended with {code}: {said}")
    findings = document.get("findings")
    if document.get("schema") != SCHEMA or not _are_findings(findings):
        return Judgement("broken", "the doctor's report has another form than is known here")
    if document.get("exit_code") != code:
        said = f"the report says {document.get('exit_code')}"
        return Judgement("broken", f"the doctor ended with {code}, and {said}")
    assert isinstance(findings, list)
    bad = [
        finding
        for severity in BAD
        for finding in findings
        if finding["severity"] == severity
        and finding["check"] not in ignore
        and (not only or finding["check"] in only)
    ]
    if bad:
        return Judgement("drain", reason(bad))
    unknown = sorted({*only} - {finding["check"] for finding in findings})
    if unknown:
        return Judgement("broken", f"the doctor did not check {', '.join(unknown)}")
    return Judgement("keep")


def reason(bad: Sequence[Mapping[str, str]]) -> str:
    """Return the reason of a drain: the first finding in words, the others by name. Pure."""
    first, *others = bad
    names = sorted({finding["check"] for finding in others} - {first["check"]})
    tail = f" (and {plain(', '.join(names))})" if names else ""
    if len(tail) > MOST // 2:
        tail = f" (and {len(names)} more)"
    evidence = f" ({first['evidence']})" if first.get("evidence") else ""
    head = plain(f"{REASON_BEGINS}{first['check']}: {first['what']}{evidence}")
    room = MOST - len(tail)
    return (head if len(head) <= room else f"{head[: room - 3]}...") + tail


def plain(text: str) -> str:
    """Return text on one line, of characters that Slurm and its logs keep as they are. Pure."""
    shown = "".join(c if c.isascii() and c.isprintable() else " " for c in text)
    return " ".join(shown.translate(_PLAIN).split())


# Quotes and backslashes are Slurm's own, brackets end a reason in what scontrol prints.
_PLAIN: Final = str.maketrans({'"': " ", "'": " ", "\\": " ", "[": "(", "]": ")"})


def _are_findings(findings: object) -> bool:
    wanted = ("check", "severity", "what")
    return isinstance(findings, list) and all(
        isinstance(finding, dict)
        and all(isinstance(finding.get(key), str) for key in wanted)
        and isinstance(finding.get("evidence", ""), str)
        for finding in findings
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the judgement of a report; return 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tdstack.slurm_health", allow_abbrev=False)
    parser.add_argument("report", type=Path, help="what the doctor wrote to stdout")
    parser.add_argument("--code", type=int, required=True, help="the doctor's exit code")
    parser.add_argument("--only", default="", help="checks that count, with commas between them")
    parser.add_argument("--ignore", default="", help="checks that do not count")
    given = parser.parse_args(arguments)
    try:
        report = given.report.read_text(errors="replace")
    except OSError:
        report = ""
    found = judge(report, given.code, _names(given.only), _names(given.ignore))
    print(found.line())
    return 0


def _names(text: str) -> set[str]:
    return {name for name in text.split(",") if name}


if __name__ == "__main__":
    sys.exit(main())
