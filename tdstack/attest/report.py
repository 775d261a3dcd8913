"""What `invoke verify REF` found, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from tdstack.console import emit_json, table, warn
from tdstack.errors import CheckFailed, IntegrityError, TdstackError

State = Literal["ok", "FAIL", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The answer of one check; `code` is the exit code that it asks for."""

    check: str
    state: State
    detail: str
    remedy: str = ""
    code: int = 0


@dataclass
class ImageReport:
    """All findings about one image.

    `signed_by` is the fingerprint of the key that vouches, `signed_as` the identity.
    """

    ref: str
    digest: str
    platform: str
    signed_by: str = ""
    signed_as: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def code(self) -> int:
        """Return the highest exit code that a finding asks for."""
        return max((f.code for f in self.findings), default=0)

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data (docs/verify.md)."""
        return {"schema": 1, **asdict(self), "exit_code": self.code}

    def passed(self, check: str, detail: str) -> None:
        """Note a check that passed."""
        self.findings.append(Finding(check, "ok", detail))

    def skipped(self, check: str, why: str) -> None:
        """Note a check that nothing was decided by."""
        self.findings.append(Finding(check, "not checked", why))

    def failed(self, check: str, error: TdstackError) -> None:
        """Note a check that failed: 4 when bytes are not what they should be, otherwise 1."""
        told = [error.what]
        told += [f"expected {error.expected}"] if error.expected else []
        told += [f"got {error.got}"] if error.got else []
        code = 4 if isinstance(error, IntegrityError) else 1
        self.findings.append(Finding(check, "FAIL", "; ".join(told), error.remedy, code))


def judged(report: ImageReport, *, as_json: bool) -> ImageReport:
    """Print a report; return it when nothing failed.

    Raises: CheckFailed or IntegrityError with the first of the worst findings.
    """
    rows = [[f.state, f.check, f.detail] for f in report.findings]
    table(f"{report.ref} ({report.digest[:19]})", ["", "check", "finding"], rows)
    refused = any(f.check == "signature" and f.code for f in report.findings)
    if not (report.signed_by or report.signed_as or refused):
        warn("nobody vouches for this image: name the publisher's public key with --key")
    if report.code:
        bad = [f for f in report.findings if f.code]
        worst = next(f for f in bad if f.code == report.code)
        kind = IntegrityError if report.code == 4 else CheckFailed
        raise kind(
            worst.detail,
            where=f"{report.ref}: {worst.check}",
            got="; ".join(f"{f.check}: {f.detail}" for f in bad if f is not worst),
            remedy=worst.remedy,
            details=report.as_dict(),
        )
    if as_json:
        emit_json(report.as_dict())
    return report
