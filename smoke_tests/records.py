"""What a run of the checks writes: JSON lines, schema 2 (docs/smoke-report.md).

Standard library only: this module also runs inside images.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, get_args

SCHEMA: Final = 2

Tier: TypeAlias = Literal["import", "compile", "cpu", "gpu", "multi-gpu", "multi-node"]
CheckOutcome: TypeAlias = Literal["passed", "failed", "hung", "died"]
MeasureOutcome: TypeAlias = Literal["passed", "failed", "unjudged"]
TierOutcome: TypeAlias = Literal["passed", "failed", "skipped"]
Label: TypeAlias = str | int | float | bool
Band: TypeAlias = tuple[float | None, float | None]
"""Lowest and highest value that passes, both included; None where there is no limit."""

TIERS: Final[tuple[Tier, ...]] = get_args(Tier)


class RecordError(ValueError):
    """A line that is no record, or a file whose records cannot be of one run."""

    def __init__(self, what: str, line: int = 0, source: str = "") -> None:
        super().__init__(what, line, source)
        self.what, self.line, self.source = what, line, source

    def __str__(self) -> str:
        place = ", ".join(
            [self.source] * bool(self.source) + [f"line {self.line}"] * (self.line > 0)
        )
        return f"{place}: {self.what}" if place else self.what


@dataclass(frozen=True)
class Run:
    """The first line: what ran, where and when.

    ``started`` is UTC, ISO 8601; ``place`` is ``host`` or ``image REF``; ``synthetic`` marks data
    that were made up; ``machine`` holds devices (list of names), driver, cores and versions, null
    where unknown.
    """

    KIND: ClassVar = "run"
    host: str
    place: str
    machine: Mapping[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    synthetic: bool = False

    def __post_init__(self) -> None:
        if datetime.fromisoformat(self.started).tzinfo is None:
            raise ValueError(f"started {self.started!r} names no time zone")


@dataclass(frozen=True)
class Skip:
    """A tier that did not run, and why."""

    KIND: ClassVar = "skip"
    tier: Tier
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """A check of a tier that runs, which did not run: why, and what to do about it."""

    KIND: ClassVar = "left_out"
    tier: Tier
    check: str
    reason: str


@dataclass(frozen=True)
class RankState:
    """What became of a rank that did not pass; ``left``: it waited for one that had failed."""

    rank: int
    state: Literal["failed", "hung", "died", "left"]
    step: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """What became of one check; ``ranks`` are those that did not pass."""

    KIND: ClassVar = "check"
    tier: Tier
    name: str
    outcome: CheckOutcome
    seconds: float
    detail: str = ""
    ranks: tuple[RankState, ...] = ()

    def __post_init__(self) -> None:
        if self.outcome == "passed" and self.ranks:
            raise ValueError(f"{self.name} passed, and yet ranks did not")


@dataclass(frozen=True)
class Measure:
    """A number, what it is a number of (``labels``), and the band that it must lie in, if any."""

    KIND: ClassVar = "measure"
    tier: Tier
    name: str
    value: float
    unit: str
    labels: Mapping[str, Label] = field(default_factory=dict)
    band: Band | None = None

    def __post_init__(self) -> None:
        low, high = self.band or (None, None)
        if not all(math.isfinite(x) for x in (self.value, low, high) if x is not None):
            raise ValueError(f"{self.name}: {self.value}, band {self.band}: not a finite number")
        if low is not None and high is not None and low > high:
            raise ValueError(f"{self.name}: the band {low} to {high} holds no number")

    @property
    def outcome(self) -> MeasureOutcome:
        """Whether the value lies in its band; ``unjudged`` without one."""
        if self.band is None:
            return "unjudged"
        low, high = self.band
        below = low is not None and self.value < low
        above = high is not None and self.value > high
        return "failed" if below or above else "passed"


@dataclass(frozen=True)
class Evidence:
    """What a rank left when a check failed: stacks, the workspace's status words, surroundings."""

    KIND: ClassVar = "evidence"
    check: str
    rank: int
    stacks: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    topology: str = ""


@dataclass(frozen=True)
class Verdict:
    """The last line. A file without one is of a run that was cut off."""

    KIND: ClassVar = "verdict"
    exit_code: int
    tiers: Mapping[str, TierOutcome]
    counts: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether all that ran passed."""
        return self.exit_code == 0


Record: TypeAlias = Run | Skip | LeftOut | Check | Measure | Evidence | Verdict
_KINDS: Final[dict[str, type[Record]]] = {
    c.KIND: c for c in (Run, Skip, LeftOut, Check, Measure, Evidence, Verdict)
}
_DERIVED: Final = {"measure": ("outcome",), "verdict": ("ok",)}
"""Properties that a line states too, for readers that are not Python."""


@dataclass(frozen=True)
class Result:
    """All records of one run, each kind in the order of the file."""

    run: Run
    skips: tuple[Skip, ...] = ()
    checks: tuple[Check, ...] = ()
    measures: tuple[Measure, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    verdict: Verdict | None = None
    left_out: tuple[LeftOut, ...] = ()

    def records(self) -> Iterator[Record]:
        """Yield every record in the order in which a file has them."""
        yield self.run
        yield from self.skips
        yield from self.checks
        yield from self.measures
        yield from self.left_out
        yield from self.evidence
        if self.verdict:
            yield self.verdict


class Writer:
    """Writes the records of a run while it goes on; a context manager.

    Every line is on the disk when ``write`` returns: a run that is killed, and a host that goes
    down, leave what they had found.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, which must not exist. Raises: FileExistsError."""
        self._file = path.open("x", encoding="utf-8")
        self._last: Record | None = None

    def write(self, record: Record) -> None:
        """Write one line. Raises: ValueError unless Run is first, once, and Verdict last."""
        if isinstance(record, Run) != (self._last is None) or isinstance(self._last, Verdict):
            before = self._last.KIND if self._last else "nothing"
            raise ValueError(f"a {record.KIND} record cannot follow {before}")
        self._file.write(dump(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last = record

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dump(record: Record) -> str:
    """Return the record as one line of JSON, without its newline.

    Raises: ValueError for numbers that JSON does not have.
    """
    data: dict[str, Any] = {"kind": record.KIND}
    if isinstance(record, Run):
        data["schema"] = SCHEMA
    data |= dataclasses.asdict(record)
    data |= {name: getattr(record, name) for name in _DERIVED.get(record.KIND, ())}
    return json.dumps(data, allow_nan=False)


def load(line: str) -> Record:
    """Return the record of one line.

    Raises: RecordError for what is not JSON, of another schema, of an unknown kind, lacks a field
    or has one too many, or states what contradicts itself.
    """
    try:
        data = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") not in _KINDS:
        got = repr(data.get("kind")) if isinstance(data, dict) else type(data).__name__
        raise RecordError(f"unknown kind {got}; expected {', '.join(_KINDS)}")
    kind = data.pop("kind")
    if kind == "run" and (schema := data.pop("schema", None)) != SCHEMA:
        raise RecordError(f"schema {schema!r}; expected {SCHEMA}")
    derived = _DERIVED.get(kind, ())
    stated = {name: data.pop(name) for name in derived if name in data}
    if len(stated) < len(derived):
        raise RecordError(f"{kind}: missing field {', '.join(set(derived) - set(stated))}")
    record = _decode(_KINDS[kind], data, kind)
    for name, value in stated.items():
        if value != getattr(record, name):
            raise RecordError(f"{kind}: {name} is {value!r}, but its fields say otherwise")
    return record


def read(path: Path) -> Result:
    """Return the records of a file.

    Raises: OSError; RecordError with the line, for damage. A last line that was cut short is no
    damage but what a killed run leaves: it is dropped, and the result has no verdict.
    """
    return parse(path.read_bytes().decode("utf-8", errors="replace"), str(path))


def parse(text: str, source: str = "") -> Result:
    """Return the records of a file's text; ``source`` names it in errors. Pure.

    Raises: RecordError as ``read``.
    """
    lines = text.split("\n")
    tail = lines.pop()
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(load(line))
        except RecordError as error:
            raise RecordError(error.what, number, source) from None
        _require_order(records, number, source)
    if tail:
        try:
            records.append(load(tail))
        except RecordError as error:
            if not error.what.startswith("not JSON"):
                raise RecordError(error.what, len(lines) + 1, source) from None
        else:
            _require_order(records, len(lines) + 1, source)
    if not records:
        raise RecordError("no run record: the run was cut off before it began", 1, source)
    run, rest = records[0], records[1:]
    assert isinstance(run, Run)
    return Result(
        run,
        tuple(r for r in rest if isinstance(r, Skip)),
        tuple(r for r in rest if isinstance(r, Check)),
        tuple(r for r in rest if isinstance(r, Measure)),
        tuple(r for r in rest if isinstance(r, Evidence)),
        next((r for r in rest if isinstance(r, Verdict)), None),
        tuple(r for r in rest if isinstance(r, LeftOut)),
    )


def _require_order(records: list[Record], line: int, source: str) -> None:
    *before, last = records
    if isinstance(last, Run) != (not before):
        raise RecordError("the first line, and only it, must be the run's", line, source)
    if before and isinstance(before[-1], Verdict):
        raise RecordError(f"a {last.KIND} record follows the verdict", line, source)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


_T = TypeVar("_T")


def _decode(cls: type[_T], data: Mapping[str, Any], where: str) -> _T:
    """Return the dataclass of a JSON object; every field must be there, and no other."""
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if missing := [name for name in fields if name not in data]:
        raise RecordError(f"{where}: missing field {', '.join(missing)}")
    if unknown := [name for name in data if name not in fields]:
        raise RecordError(f"{where}: unknown field {', '.join(unknown)}")
    values = {name: _convert(data[name], hints[name], f"{where}.{name}") for name in fields}
    try:
        return cls(**values)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Return the value as the field's type has it; raise RecordError if it cannot be that."""
    origin, args = typing.get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _decode(hint, value, where)
    if origin is Literal and value in args and isinstance(value, str):
        return value
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, args, where)
    if origin is tuple and isinstance(value, list):
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            pairs = enumerate(zip(value, inner, strict=True))
            return tuple(_convert(v, h, f"{where}[{i}]") for i, (v, h) in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {k: _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    # Exactly: to Python a bool is an int as well.
    if origin is None and hint in (str, int, bool, types.NoneType) and type(value) is hint:
        return value
    raise RecordError(f"{where}: {value!r} is no {_name(hint)}")


def _first_that_fits(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint, where)
        except RecordError:
            continue
    raise RecordError(f"{where}: {value!r} is no {' or '.join(map(_name, hints))}")


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    plain = isinstance(hint, type) and not get_args(hint)
    return hint.__name__ if plain else str(hint).replace("typing.", "")
