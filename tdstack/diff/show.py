"""A difference as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tdstack.console import megabytes, say, table
from tdstack.diff.compare import Change, Difference, by_folder, file_changes
from tdstack.diff.model import FileFact, LayerFact

T = TypeVar("T")
SHOWN = 40
SIGN = {"added": "+", "removed": "-", "changed": "~"}


def show(found: Difference, *, all_files: bool) -> None:
    """Print what differs; files by folder, or each one with `all_files`."""
    silent = found.not_compared or {}
    for sides in sorted(set(silent.values())):
        subjects = ", ".join(sorted(s for s, silent_ones in silent.items() if silent_ones == sides))
        say(f"not compared, as {sides} cannot tell: {subjects}")
    if found.equal:
        say(f"equal: {found.a} and {found.b}")
        return
    say(f"from {found.a} to {found.b}")
    _show_words("packages", found.packages)
    _show_words("settings", found.settings)
    _show_layers(found.layers)
    _show_words("cubins", [_short(c) for c in found.cubins])
    _show_words("altered: not as the package recorded", found.altered)
    _show_words("environment", found.env)
    _show_words("labels", found.labels)
    if all_files:
        _show_files(found.files)
    elif found.files:
        rows = [
            [r.layer, r.folder, str(r.added), str(r.removed), str(r.changed), _signed(r.bytes)]
            for r in by_folder(found.files)
        ]
        columns = ["layer", "folder", "added", "removed", "changed", "bytes"]
        _table(f"files: {len(found.files)} (--files lists them)", columns, rows)


def _show_words(title: str, found: Sequence[Change[T]]) -> None:
    rows = [[SIGN[c.what], c.name, _text(c.before), _text(c.after)] for c in found]
    _table(f"{title}: {len(found)}", ["", "name", "before", "after"], rows)


def _show_layers(found: Sequence[Change[LayerFact]]) -> None:
    rows = [
        [
            SIGN[c.what],
            c.name,
            megabytes(c.before.size if c.before else None),
            megabytes(c.after.size if c.after else None),
            _signed((c.after.size if c.after else 0) - (c.before.size if c.before else 0)),
            " -> ".join(side.diff_id[:12] for side in (c.before, c.after) if side),
        ]
        for c in found
    ]
    columns = ["", "layer", "before", "after", "bytes", "diff id"]
    _table(f"layers: {len(found)}", columns, rows)


def _show_files(found: Sequence[Change[FileFact]]) -> None:
    rows = []
    for change in found:
        fact = change.after or change.before
        assert fact is not None
        words: str = fact.kind
        if change.before and change.after:
            words = "; ".join(file_changes(change.before, change.after))
        rows.append([SIGN[change.what], fact.layer, change.name, words, str(fact.size)])
    table(f"files: {len(found)}", ["", "layer", "path", "what", "size"], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    if not rows:
        return
    table(title, columns, rows[:SHOWN])
    if len(rows) > SHOWN:
        say(f"... and {len(rows) - SHOWN} more (--json has all)")


def _short(change: Change[str]) -> Change[str]:
    before, after = (x[:12] if x else x for x in (change.before, change.after))
    return Change(change.name, before, after)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _signed(number: int) -> str:
    return f"{number:+,}"
