"""Bands that measures must lie in, by type of GPU: data in bands.toml (docs/smoke-report.md).

Standard library only: this module also runs inside images.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeAlias

from smoke_tests.records import Label, Measure

BANDS: Final = Path(__file__).with_name("bands.toml")
Wanted: TypeAlias = Label | tuple[Label, ...]
_KEYS: Final = {"device", "measure", "unit", "labels", "low", "high", "source"}


class BandError(ValueError):
    """Bands that cannot be read."""


@dataclass(frozen=True)
class BandRule:
    """A band and what it is for.

    ``device`` is a pattern for the GPU's name (``NVIDIA H100*``); ``labels`` are those that a
    measure must have, each one value or one of several; ``source`` tells where the limits are from.
    """

    device: str
    measure: str
    unit: str
    source: str
    labels: Mapping[str, Wanted] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None

    def fits(self, measure: Measure, device: str) -> bool:
        """Whether the rule is for this measure on this device."""
        return (
            fnmatchcase(device, self.device)
            and (measure.name, measure.unit) == (self.measure, self.unit)
            and all(
                key in measure.labels
                and measure.labels[key] in (wanted if isinstance(wanted, tuple) else (wanted,))
                for key, wanted in self.labels.items()
            )
        )


def read_bands(path: Path = BANDS) -> tuple[BandRule, ...]:
    """Return the rules of a file; none if there is no such file.

    Raises: BandError naming the entry that is wrong.
    """
    if not path.is_file():
        return ()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BandError(f"{path.name}: {error}") from None
    if unknown := data.keys() - {"band"}:
        raise BandError(f"{path.name}: unknown key {', '.join(sorted(unknown))}; expected band")
    entries = enumerate(data.get("band", []), 1)
    return tuple(_rule(entry, f"{path.name}, band {number}") for number, entry in entries)


def judge(measure: Measure, device: str, rules: Iterable[BandRule]) -> Measure:
    """Return the measure with the band that the rules have for it, or without one. Pure.

    Of the rules that fit, those that name most labels count: all of them, whichever file they are
    from. Total, as the number in hand may be the end of an hour's run.
    """
    fitting = [rule for rule in rules if rule.fits(measure, device)]
    most = max((len(rule.labels) for rule in fitting), default=0)
    counting = [rule for rule in fitting if len(rule.labels) == most]
    lows = [rule.low for rule in counting if rule.low is not None]
    highs = [rule.high for rule in counting if rule.high is not None]
    band = (max(lows, default=None), min(highs, default=None)) if counting else None
    return dataclasses.replace(measure, band=band)


def describe(measure: Measure) -> str:
    """Return the measure's name and labels in one line."""
    labels = " ".join(f"{key}={value}" for key, value in measure.labels.items())
    return f"{measure.name} {labels}".strip()


def show_band(measure: Measure) -> str:
    """Return the band in words: ``at least 1.1``, ``1.1 to 1.6``; empty without one."""
    low, high = measure.band or (None, None)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return (
        f"at least {low:g}" if low is not None else f"at most {high:g}" if high is not None else ""
    )


def explain(measure: Measure) -> str:
    """Return the number and its band in one sentence, for a measure that failed."""
    return f"{describe(measure)}: {measure.value:.4g} {measure.unit}, must be {show_band(measure)}"


def _rule(entry: Any, where: str) -> BandRule:
    if not isinstance(entry, dict):
        raise BandError(f"{where}: no table")
    if unknown := entry.keys() - _KEYS:
        raise BandError(f"{where}: unknown key {', '.join(sorted(unknown))}")
    for key in ("device", "measure", "unit", "source"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise BandError(f"{where}: {key} must be a text")
    limits = [entry.get("low"), entry.get("high")]
    numbers = [x for x in limits if isinstance(x, int | float) and not isinstance(x, bool)]
    if not numbers or len(numbers) != len([x for x in limits if x is not None]):
        raise BandError(f"{where}: low, high or both must be numbers")
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        raise BandError(f"{where}: low {numbers[0]} is above high {numbers[1]}")
    labels = entry.get("labels", {})
    if not isinstance(labels, dict):
        raise BandError(f"{where}: labels must be a table")
    wanted = {k: tuple(v) if isinstance(v, list) else v for k, v in labels.items()}
    return BandRule(**{**entry, "labels": wanted})
