"""What users of a broken stack read at an import or at the start, why, and what mends it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Symptom:
    """One known failure: a row of docs/troubleshooting.md.

    `symptom`, `cause` and `fix` are Markdown. `pattern` is a regular expression that its message
    matches, empty where programs do not look for it. `checks` are the doctor's checks that look
    for the cause. `id` is empty where nothing refers to the row.
    """

    symptom: str
    cause: str
    fix: str
    id: str = ""
    pattern: str = ""
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Rows about one place; `asked` heads the column of what users see there."""

    title: str
    asked: str
    rows: tuple[Symptom, ...]


def load(path: Path) -> Section:
    """Read a file of rows; symptoms.toml says what is in one.

    Raises: OSError, tomllib.TOMLDecodeError, KeyError or TypeError for a file that is damaged.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    rows = (Symptom(**{**row, "checks": tuple(row.get("checks", ()))}) for row in data["row"])
    return Section(data["title"], data["asked"], tuple(rows))


IN_THE_IMAGE = load(Path(__file__).with_name("symptoms.toml"))
SYMPTOMS = tuple(row for row in IN_THE_IMAGE.rows if row.pattern)


def explain(text: str) -> Symptom | None:
    """Return the known failure that a message tells of, or None. Pure."""
    return next((s for s in SYMPTOMS if re.search(s.pattern, text)), None)


def known(name: str, rows: Iterable[Symptom] = IN_THE_IMAGE.rows) -> Symptom:
    """Return the row with an id. Pure. Raises: KeyError when there is none."""
    for row in rows:
        if row.id == name:
            return row
    raise KeyError(name)


def plain(markdown: str) -> str:
    """Return Markdown as a terminal shows it. Pure."""
    return markdown.replace("`", "")
