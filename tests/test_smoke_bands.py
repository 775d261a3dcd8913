"""Bands by type of GPU: which rule is for a measure, and what a file of them may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from smoke_tests.bands import BANDS, BandError, explain, judge, read_bands, show_band
from smoke_tests.records import Measure

H100 = "NVIDIA H100 80GB HBM3"
FILE = """
[[band]]
device = "NVIDIA H100*"
measure = "fused/serial"
unit = "ratio"
labels = { w = 8 }
low = 1.0
source = "a run"

[[band]]
device = "NVIDIA H100*"
measure = "fused/serial"
unit = "ratio"
labels = { w = 8, m = [1, 16], baseline = "cublas+nccl" }
low = 1.25
high = 4
source = "a run"
"""


def _measure(value: float, **labels: str | int) -> Measure:
    return Measure("gpu", "fused/serial", value, "ratio", {"w": 8, **labels})


def _bands(folder: Path, text: str = FILE) -> Path:
    path = folder / "bands.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("measure", "device", "outcome"),
    [
        (_measure(1.1, m=16, baseline="cublas+nccl"), H100, "failed"),
        (_measure(1.3, m=16, baseline="cublas+nccl"), H100, "passed"),
        (_measure(4.1, m=1, baseline="cublas+nccl"), H100, "failed"),
        (_measure(1.1, m=64, baseline="cublas+nccl"), H100, "passed"),
        (_measure(0.9, m=64), H100, "failed"),
        (_measure(0.9, m=64), "NVIDIA H200", "unjudged"),
        (_measure(0.9, m=16, w=4), H100, "unjudged"),
        (Measure("gpu", "fused/serial", 0.9, "us", {"w": 8}), H100, "unjudged"),
    ],
)
def test_the_rule_that_names_most_labels_decides(
    tmp_path: Path, measure: Measure, device: str, outcome: str
) -> None:
    assert judge(measure, device, read_bands(_bands(tmp_path))).outcome == outcome


def test_a_failure_tells_the_number_and_the_band(tmp_path: Path) -> None:
    rules = read_bands(_bands(tmp_path))
    text = explain(judge(_measure(1.1, m=16, baseline="cublas+nccl"), H100, rules))
    assert text == ("fused/serial w=8 m=16 baseline=cublas+nccl: 1.1 ratio, must be 1.25 to 4")
    assert show_band(judge(_measure(0.5), H100, rules)) == "at least 1"
    assert show_band(_measure(0.5)) == ""
    assert show_band(Measure("gpu", "x", 1.0, "us", {}, (None, 2.0))) == "at most 2"


def test_of_several_entries_for_one_measure_each_must_hold(tmp_path: Path) -> None:
    rules = read_bands(_bands(tmp_path, FILE + FILE.replace("1.25", "1.5").replace("= 4", "= 5")))
    band = judge(_measure(1.3, m=16, baseline="cublas+nccl"), H100, rules).band
    assert band == (1.5, 4), "the higher of the lows, the lower of the highs"
    assert judge(_measure(0.9, m=64), H100, rules).band == (1.0, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('device = "NVIDIA H100*"', "", "band 1: device must be a text"),
        ("low = 1.0", "", "band 1: low, high or both"),
        ("low = 1.0", 'low = "1.0"', "band 1: low, high or both"),
        ("high = 4", "high = 1", "band 2: low 1.25 is above high 1"),
        ('source = "a run"', "", "band 1: source must be a text"),
        ("low = 1.0", "lowest = 1.0", "band 1: unknown key lowest"),
        ("labels = { w = 8 }", "labels = 8", "band 1: labels must be a table"),
        ("[[band]]", "[[bands]]", "unknown key bands"),
        ("low = 1.0", "low = ", "bands.toml: Invalid value"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(BandError, match=message):
        read_bands(_bands(tmp_path, FILE.replace(old, new, 1 if old != "[[band]]" else -1)))


def test_the_checkouts_own_bands_can_be_read() -> None:
    assert all(rule.source for rule in read_bands(BANDS))


def test_without_a_file_nothing_is_judged(tmp_path: Path) -> None:
    assert read_bands(tmp_path / "bands.toml") == ()
