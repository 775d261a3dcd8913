"""What a check of the doctor answers, and what all answers together mean. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from tdstack.errors import ExitCode

Severity = Literal["ok", "note", "warning", "failure", "missing", "unknown"]
"""`failure`: it is there and wrong. `missing`: this host lacks it. `unknown`: could not be read."""

SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    `check` is its name, such as `driver-floor`; `what` one sentence; `evidence` the facts that it
    rests on; `remedy` what to do, empty when nothing; `doc` a page and its anchor.
    `alone` marks a lack that makes every other failure a consequence: there is no driver.
    """

    check: str
    severity: Severity
    what: str
    evidence: str = ""
    remedy: str = ""
    doc: str = ""
    alone: bool = False

    def as_dict(self) -> dict[str, object]:
        """Return the finding as JSON-ready data."""
        return {key: held for key, held in asdict(self).items() if key != "alone"}


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return the exit code of all findings together.

    A broken thing (1) is told before a missing one (3), as what is missing may be on purpose;
    but where there is no driver at all the rest is only its consequence.
    """
    found = list(findings)
    if any(finding.alone and finding.severity == "missing" for finding in found):
        return ExitCode.HOST
    for severity, code in (("failure", ExitCode.CHECK_FAILED), ("missing", ExitCode.HOST)):
        if any(finding.severity == severity for finding in found):
            return code
    return ExitCode.DONE
