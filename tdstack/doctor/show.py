"""What the doctor found, for people and for machines. Pure but for `show`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdstack.doctor.check import SEVERITIES, Finding, exit_code
from tdstack.doctor.facts import Facts

# The worst first: a table of forty rows is read from its top.
ORDER = {name: at for at, name in enumerate(("missing", "failure", "warning", "unknown", "note"))}
# Beside the first two columns this fits into terminals of 130 columns; narrower ones fold it.
WIDTH = 96
SHOWN = {"failure": "FAIL", "missing": "MISSING"}


@dataclass(frozen=True)
class Diagnosis:
    """The facts of a host, what the checks say, and which CUDA lines it can run."""

    facts: Facts
    findings: Sequence[Finding]
    lines: Mapping[str, Mapping[str, Any]]

    @property
    def code(self) -> int:
        """Return the exit code (docs/exit-codes.md)."""
        return int(exit_code(self.findings))

    def as_dict(self) -> dict[str, object]:
        """Return the diagnosis as JSON-ready data (docs/doctor.md)."""
        return {
            "schema": 1,
            "host": self.facts.label or "",
            "lines": {line: dict(verdict) for line, verdict in self.lines.items()},
            "findings": [finding.as_dict() for finding in self.findings],
            "exit_code": self.code,
        }


def rows_of(findings: Sequence[Finding]) -> list[list[str]]:
    """Return the rows of a table: what is wrong first, in the order of the checks. Pure."""
    ordered = sorted(findings, key=lambda finding: ORDER.get(finding.severity, len(ORDER)))
    return [[SHOWN.get(f.severity, f.severity), f.check, told(f)] for f in ordered]


def told(finding: Finding, width: int = WIDTH) -> str:
    """Return what was found and its evidence, and under it what to do and where to read. Pure."""
    what = f"{finding.what} ({finding.evidence})" if finding.evidence else finding.what
    lines = textwrap.wrap(what, width)
    if finding.remedy:
        see = f" ({finding.doc})" if finding.doc else ""
        lines += textwrap.wrap(
            f"remedy: {finding.remedy}{see}", width, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(lines)


def summary(diagnosis: Diagnosis) -> str:
    """Return one line that counts the findings by severity. Pure."""
    counts = dict.fromkeys(SEVERITIES, 0)
    for finding in diagnosis.findings:
        counts[finding.severity] += 1
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    return f"{len(diagnosis.findings)} checks: {', '.join(parts) or 'none'}"


def line_rows(lines: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of CUDA lines. Pure."""
    words: dict[object, str] = {True: "yes", False: "no"}
    return [
        [line, words.get(verdict.get("runs"), "not known"), str(verdict.get("why", ""))]
        for line, verdict in lines.items()
    ]


def show(diagnosis: Diagnosis) -> None:
    """Print the tables on stderr; without rich as plain lines."""
    title = f"host {diagnosis.facts.label or 'without a name'}"
    rows, lines = rows_of(diagnosis.findings), line_rows(diagnosis.lines)
    try:
        from tdstack.console import say, table
    except ImportError:
        for row in [*rows, *lines]:
            print("  ".join(filter(None, row)), file=sys.stderr)
        print(summary(diagnosis), file=sys.stderr)
        return
    table(title, ["", "check", "finding"], rows)
    table("CUDA lines", ["line", "runs here", "why"], lines)
    say(summary(diagnosis))
