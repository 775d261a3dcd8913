"""Bands from a recorded run: python -m smoke_tests.measure.make_bands docs/data/FILE.jsonl

Prints entries for bands.toml. Medians of one run on one machine say what is usual, not what is
tolerable: a band allows MARGIN less. Speed-ups are not above any limit, nor rates.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from smoke_tests.bands import BandRule
from smoke_tests.records import Label, Measure, Result, read

MARGIN: Final = 0.15
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the entries; 1 for a run that gives none."""
    parser = argparse.ArgumentParser(prog="python -m smoke_tests.measure.make_bands")
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        rules = bands_of(read(given.file), given.file.name)
    except ValueError as error:
        print(f"{given.file}: {error}", file=sys.stderr)
        return 1
    print("\n".join(entry_of(rule) for rule in rules), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
