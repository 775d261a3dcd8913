"""What a check answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

DOCS = "docs/troubleshooting.md"


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    `code` is the exit code that it asks for: 0 passed, 1 a check failed, 4 bytes differ.
    `symptom` is the message that users of such an environment meet, as docs/troubleshooting.md
    lists it.
    """

    check: str
    ok: bool
    detail: str
    remedy: str = ""
    code: int = 0
    symptom: str = ""


def passed(check: str, detail: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(check, True, detail)


def failed(check: str, detail: str, remedy: str, code: int = 1, symptom: str = "") -> Finding:
    """Return the finding of a check that failed."""
    return Finding(check, False, detail, remedy, code, symptom)


def canonical(name: str) -> str:
    """Return a distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()
