"""The bands of recorded runs: python -m smoke_tests.measure.make_bands FILE... > bands.toml

Medians of one run on one machine say what is usual, not what is tolerable: a band allows MARGIN
less. Speed-ups are not above any limit, nor rates. Of several runs on one type of GPU the lowest
number counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from smoke_tests.bands import BandRule
from smoke_tests.records import Label, Measure, Result, read

MARGIN: Final = 0.15
HEADER: Final = """\
# Limits that measures must keep, by type of GPU. Read by bands.py; docs/smoke-report.md says how.
#
#   device    pattern of the GPU's name, as torch gives it
#   measure   name, and `unit`, as in the records
#   labels    that the measure must have; a list is one of several values
#   low, high the limits; one of them may be absent
#   source    file in docs/data that the numbers are from, its date, and the margin
#
# Only from measured data, and made from the files that are named as sources:
# `python -m smoke_tests.measure.make_bands FILE... > smoke_tests/bands.toml`. A measure that no
# entry fits is unjudged. Of the entries that fit, those with most labels count.
"""
RATES: Final = ("copy bandwidth", "matmul rate", "p2p bandwidth")
"""One limit for all: a slow pair of GPUs, or a slow rank, must not pass because it always was."""
RATIOS: Final = ("fused/serial",)
"""A limit for each shape, against the best baseline."""
_SHAPE: Final = ("ranks", "transport", "w", "m", "n", "k", "baseline")


def bands_of(result: Result, source: str) -> list[BandRule]:
    """Return the bands of a run. Pure.

    Raises: ValueError for a run that is made up, was cut off or failed, or is of several types of
    GPU: nothing to hold others to.
    """
    devices = set(result.run.machine.get("devices") or [])
    if result.run.synthetic or result.verdict is None or not result.verdict.ok:
        raise ValueError("bands need a whole run that passed, on real hardware")
    if len(devices) != 1:
        raise ValueError(f"bands need one type of GPU, got {sorted(devices) or 'none'}")
    (device,) = devices
    date = result.run.started.partition("T")[0]
    text = f"{source}, {date}, {MARGIN:.0%} below"
    return [*_rates(result.measures, device, text), *_ratios(result.measures, device, text)]


def _rates(measures: Sequence[Measure], device: str, source: str) -> Iterator[BandRule]:
    lowest: dict[tuple[str, str, Label | None], float] = {}
    for measure in measures:
        if measure.name in RATES:
            key = measure.name, measure.unit, measure.labels.get("how")
            lowest[key] = min(measure.value, lowest.get(key, measure.value))
    for (name, unit, how), value in lowest.items():
        labels = {} if how is None else {"how": how}
        yield BandRule(device, name, unit, source, labels, _below(value))


def _ratios(measures: Sequence[Measure], device: str, source: str) -> Iterator[BandRule]:
    for measure in measures:
        if measure.name in RATIOS and measure.labels.get("baseline") == "best":
            labels = {key: measure.labels[key] for key in _SHAPE if key in measure.labels}
            yield BandRule(
                device, measure.name, measure.unit, source, labels, _below(measure.value)
            )


def lowest(rules: Iterable[BandRule]) -> list[BandRule]:
    """Return the rules with one for each device, measure and labels: the one that allows most."""
    found: dict[tuple[object, ...], BandRule] = {}
    for rule in rules:
        key = rule.device, rule.measure, rule.unit, *sorted(rule.labels.items())
        before = found.setdefault(key, rule)
        if (rule.low or 0) < (before.low or 0):
            found[key] = rule
    return list(found.values())


def _below(value: float) -> float:
    return float(f"{value * (1 - MARGIN):.3g}")


def entry_of(rule: BandRule) -> str:
    """Return an entry of bands.toml. Pure."""
    labels = ", ".join(f"{key} = {_toml(value)}" for key, value in rule.labels.items())
    lines = [
        "[[band]]",
        f"device = {_toml(rule.device)}",
        f"measure = {_toml(rule.measure)}",
        f"unit = {_toml(rule.unit)}",
        f"labels = {{ {labels} }}" if labels else "labels = {}",
        f"low = {rule.low}",
        f"source = {_toml(rule.source)}",
    ]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def text_of(results: Mapping[str, Result]) -> str:
    """Return bands.toml for runs, by the names of their files, in whatever order. Pure.

    Raises: ValueError as bands_of, naming the file.
    """
    rules: list[BandRule] = []
    for source, result in sorted(results.items()):
        try:
            rules += bands_of(result, source)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    return "\n".join((HEADER, *map(entry_of, lowest(rules))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the file; 1 for a run that gives none."""
    parser = argparse.ArgumentParser(prog="python -m smoke_tests.measure.make_bands")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    given = parser.parse_args(arguments)
    if len({path.name for path in given.files}) < len(given.files):
        parser.error("two files of one name: a source would not tell which of them it is")
    try:
        text = text_of({path.name: read(path) for path in given.files})
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
