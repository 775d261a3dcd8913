"""Pages of docs/ that are made from data, wholly or in places, and the plots on them.

`python -m tdstack.pages` writes what is not as the data make it, `--check` only says so; `invoke
lint --fix` and `invoke lint` do the same.
"""

from __future__ import annotations

from pathlib import Path

from smoke_tests.records import read
from tdstack.pages import doctor, figures, performance, troubleshooting
from tdstack.pages.places import fill


def stale(root: Path) -> dict[str, str]:
    """Return the files below ``root`` that are not as the data make them, with what they should be.

    Raises: ValueError for a page without a place for what is made.
    """
    runs = {name: read(root / name) for name in performance.RUNS}
    made = {troubleshooting.PAGE: troubleshooting.troubleshooting(), **figures.drawn(runs)}
    for page, tables in (
        (doctor.PAGE, doctor.tables()),
        (performance.PAGE, performance.tables(runs)),
    ):
        made[page] = fill(held(root / page), page, tables)
    return {name: text for name, text in made.items() if text != held(root / name)}


def held(path: Path) -> str:
    """Return the text of a file, nothing when it is not there."""
    return path.read_text(encoding="utf-8") if path.exists() else ""
