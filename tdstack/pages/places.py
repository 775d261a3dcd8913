"""Places in a page that are filled from data: between two comments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BEGIN: Final = "<!-- {}: made from data, see CONTRIBUTING.md -->"
END: Final = "<!-- end -->"


def fill(page: str, where: str, made: Mapping[str, str]) -> str:
    """Return the text of a page with what is made, by the names of the places.

    Raises: ValueError for a page, named by ``where``, that lacks a place.
    """
    for name, text in made.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not found or not end:
            raise ValueError(f"{where} has no place for the table: {begin} ... {END}")
        page = f"{before}{begin}\n{text}\n{END}{after}"
    return page


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
