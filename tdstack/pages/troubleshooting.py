"""docs/troubleshooting.md: the rows of tdstack/troubleshooting/ and of `tdstack-verify`."""

from __future__ import annotations

import re
from typing import Final

from tdstack.pages.places import table
from tdstack.troubleshooting import sections
from tdstack.verify.symptoms import Section, Symptom

PAGE: Final = "docs/troubleshooting.md"
_HEAD: Final = """\
# Troubleshooting

<!-- Made from data by tdstack/pages/troubleshooting.py; see CONTRIBUTING.md. -->

Every error of a verb names its remedy; this page adds the reasons. What codes mean:
[exit-codes.md](exit-codes.md).
`tdstack-verify` and [invoke doctor](doctor.md) find what has a check here, and say the same fix.
"""


def troubleshooting() -> str:
    """Return docs/troubleshooting.md. Pure."""
    return "\n".join([_HEAD, *map(_section, sections())])


def _section(section: Section) -> str:
    rows = table([section.asked, "cause", "fix"], [_row(row) for row in section.rows])
    return f"## {section.title}\n\n{rows}\n"


def _row(row: Symptom) -> list[str]:
    anchor = f'<a id="{row.id}"></a>' if row.id else ""
    checks = ", ".join(f"[{name}](doctor.md#{name})" for name in row.checks)
    cause = f"{row.cause} (doctor: {checks})" if checks else row.cause
    fix = re.sub(r"\{(\w+)\}", lambda found: found.group(1).upper(), row.fix)
    return [anchor + _cell(row.symptom), _cell(cause), _cell(fix)]


def _cell(text: str) -> str:
    # A bar ends a cell even in code; outside of code, <x> would be a tag.
    return text.replace("|", "\\|")
