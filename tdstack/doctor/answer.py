"""What a check's function answers, and how that becomes a finding. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tdstack.doctor.check import Finding, Severity
from tdstack.doctor.host import Host
from tdstack.troubleshooting import row
from tdstack.verify.symptoms import plain

CHECKS_PAGE = "docs/doctor.md"
TROUBLES_PAGE = "docs/troubleshooting.md"
# A remedy is pasted into a root shell, and a record may come from anybody.
_UNSAFE = re.compile(r"[^\w .,:/+=@-]")


@dataclass(frozen=True)
class Answer:
    """A check's answer. `trouble` is the id of the row that says cause and fix; `remedy` its fix.

    `alone` is the finding's: it makes every other failure a consequence.
    """

    severity: Severity
    what: str
    evidence: str = ""
    trouble: str = ""
    remedy: str = ""
    alone: bool = False


def ok(what: str, evidence: str = "") -> Answer:
    """Return that all is well."""
    return Answer("ok", what, evidence)


def unknown(host: Host, path: str, what: str) -> Answer:
    """Return that the fact at `path` is not known, and why."""
    reason = host.facts.reason(path) or "the record does not say"
    remedy = "" if host.facts.os.root else "as root on the host: invoke doctor"
    return Answer("unknown", what, f"{path}: {reason}", remedy=remedy)


def trouble(
    severity: Severity,
    name: str,
    what: str,
    evidence: str = "",
    *,
    alone: bool = False,
    **values: object,
) -> Answer:
    """Return what is wrong, with the fix of the row `name` and `values` for its {names}.

    Raises: KeyError for a row or a value that does not exist, which the tests rule out.
    """
    shown = {key: _UNSAFE.sub("?", str(value)) for key, value in values.items()}
    remedy = plain(row(name).fix.format(**shown))
    return Answer(severity, what, evidence, name, remedy, alone)


@dataclass(frozen=True)
class Check:
    """One question about a host.

    `asks` says in one line what must hold, for docs/doctor.md. `judge` answers from facts alone;
    None where the question does not arise, as for NVLink on a host without GPUs.
    """

    id: str
    asks: str
    judge: Callable[[Host], Answer | None]

    def run(self, host: Host) -> Finding | None:
        """Return the finding of this check on a host."""
        answer = self.judge(host)
        if answer is None:
            return None
        page = f"{TROUBLES_PAGE}#{answer.trouble}" if answer.trouble else None
        return Finding(
            self.id,
            answer.severity,
            answer.what,
            answer.evidence,
            answer.remedy,
            page or f"{CHECKS_PAGE}#{self.id}",
            answer.alone,
        )
