"""Facts to JSON-ready data and back; loading takes anything and never fails. Pure."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from tdstack.doctor.facts import SCHEMA, Facts
from tdstack.doctor.kinds import Between, Lengths

_UNKNOWN = object()
_MOST_NOTES = 100
_LONGEST_KEY = 256


def dump(value: Any) -> Any:
    """Return facts as JSON-ready data. What is not known is left out."""
    if is_dataclass(value):
        pairs = [(entry.name, getattr(value, entry.name)) for entry in fields(value)]
        made = {name: (held, dump(held)) for name, held in pairs if held is not None}
        return {name: out for name, (held, out) in made.items() if out or not is_dataclass(held)}
    if isinstance(value, Mapping):
        return {key: dump(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [dump(held) for held in value]
    return value


def load(data: object) -> Facts:
    """Return the facts that data from JSON holds.

    Keys that this version does not know are ignored, missing ones are "not known", and so are
    values that cannot be true; `Facts.notes` says which.
    """
    notes: list[str] = []
    facts: Facts = _record(Facts, data, "", notes)
    if len(notes) > _MOST_NOTES:
        notes[_MOST_NOTES:] = [f"and {len(notes) - _MOST_NOTES} more"]
    return replace(facts, notes=(*facts.notes, *notes)[: 2 * _MOST_NOTES])


def major(data: object) -> int | None:
    """Return the major version of the schema that data from JSON claims; None if it has none."""
    claimed = data.get("schema") if isinstance(data, Mapping) else None
    head = claimed.partition(".")[0] if isinstance(claimed, str) else ""
    return int(head) if head.isascii() and head.isdigit() and len(head) < 9 else None


def readable(data: object) -> bool:
    """Return whether data from JSON claims a schema that this version can read."""
    return major(data) == SCHEMA[0]


@cache
def _hints(record: Any) -> dict[str, Any]:
    return get_type_hints(record, include_extras=True)


def _record(record: Any, data: object, path: str, notes: list[str]) -> Any:
    if not isinstance(data, Mapping):
        notes.append(f"{path or 'the record'}: an object was expected, not {_shown(data)}")
        return record()
    held = {}
    for name, kind in _hints(record).items():
        if name not in data or data[name] is None:
            continue
        value = _value(kind, data[name], f"{path}.{name}" if path else name, notes)
        if value is not _UNKNOWN:
            held[name] = value
    return record(**held)


def _value(kind: Any, data: object, path: str, notes: list[str]) -> Any:
    bounds: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        bounds = tuple(rest)
    if get_origin(kind) in (types.UnionType, Union):
        (kind,) = [one for one in get_args(kind) if one is not type(None)]
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, data, path, notes)
    value = _plain(kind, data, path, notes)
    if value is _UNKNOWN:
        notes.append(f"{path}: {_shown(data)} is of another kind than this fact")
    elif not all(_fits(value, bound) for bound in bounds):
        notes.append(f"{path}: {_shown(data)} cannot be true")
        return _UNKNOWN
    return value


def _plain(kind: Any, data: object, path: str, notes: list[str]) -> Any:
    origin = get_origin(kind)
    if origin is tuple:
        (inner, _) = get_args(kind)
        if not isinstance(data, list | tuple):
            return _UNKNOWN
        found = [_value(inner, one, f"{path}[{at}]", notes) for at, one in enumerate(data)]
        return tuple(one for one in found if one is not _UNKNOWN)
    if origin is not None:
        (_, inner) = get_args(kind)
        if not isinstance(data, Mapping):
            return _UNKNOWN
        pairs = {str(key)[:_LONGEST_KEY]: held for key, held in data.items()}
        read = {key: _value(inner, held, f"{path}.{key}", notes) for key, held in pairs.items()}
        return {key: held for key, held in read.items() if held is not _UNKNOWN}
    if kind is float:
        return _real(data)
    if kind is int and isinstance(data, float) and data.is_integer():
        return int(data)  # JSON of other tools writes 1.0
    return data if type(data) is kind else _UNKNOWN


def _real(data: object) -> Any:
    if type(data) is int and abs(data) < 2**63:
        return float(data)
    return data if isinstance(data, float) and math.isfinite(data) else _UNKNOWN


def _fits(value: Any, bound: object) -> bool:
    if isinstance(bound, Between):
        return bool(bound.low <= value <= bound.high)
    return len(value) <= bound.most if isinstance(bound, Lengths) else True


def _shown(data: object) -> str:
    if isinstance(data, dict | list):
        return f"{type(data).__name__} of {len(data)}"
    try:
        text = repr(data)
    except ValueError:  # an int of more digits than Python prints
        text = "a number too long to print"
    return text if len(text) <= 40 else text[:37] + "..."
