"""What people meet, why, and what mends it: the rows of docs/troubleshooting.md.

Each row stands in one place. Those that an image's tdstack-verify needs too are in
tdstack/verify/symptoms.toml, which is copied into images; the others are here, so that a word
about a verb does not change the content key of every image. Fixes in host.toml may hold {names},
which the doctor fills with what it found; the page shows them in capitals.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tdstack.verify.symptoms import IN_THE_IMAGE, Section, Symptom, known, load

HERE = Path(__file__).parent


@cache
def sections() -> tuple[Section, ...]:
    """Return all rows, in the order of the page."""
    verbs, host, sglang = (load(HERE / f"{name}.toml") for name in ("verbs", "host", "sglang"))
    return (verbs, IN_THE_IMAGE, host, sglang)


@cache
def row(name: str) -> Symptom:
    """Return the row with an id. Raises: KeyError when there is none."""
    return known(name, [one for section in sections() for one in section.rows])
