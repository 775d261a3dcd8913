"""What is expected of a GPU by its name, and where that is from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from tdstack.doctor import thresholds
from tdstack.doctor.lines import lines_of
from tdstack.doctor.thresholds import GpuType, load_thresholds, thresholds_of
from tdstack.errors import UsageError
from tdstack.lock.io import load_lock

THRESHOLDS = load_thresholds()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 PCIe"),
        ("NVIDIA H800", "any other"),
        ("NVIDIA H800 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA GH200 480GB", "any other"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H20-3e", "H20"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM"),
        ("NVIDIA A800-SXM4-80GB", "A100 SXM"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("NVIDIA A40", "A100 PCIe"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "B200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "Blackwell without NVLink"),
        ("NVIDIA L40S", "L4, L40, L40S, A10"),
        ("NVIDIA L4", "L4, L40, L40S, A10"),
        ("NVIDIA A10", "L4, L40, L40S, A10"),
        ("NVIDIA A10G", "any other"),
        ("NVIDIA GeForce RTX 4090", "any other"),
        ("Tesla V100-SXM2-32GB", "any other"),
        ("", "any other"),
    ],
)
def test_the_type_of_a_gpu_follows_from_its_name(name: str, kind: str) -> None:
    assert THRESHOLDS.of(name).type == kind


def test_the_last_entry_fits_every_name_and_expects_nothing() -> None:
    *_, last = THRESHOLDS.gpu
    assert re.search(last.match, "anything")
    assert last == GpuType(type=last.type, match="", form="pcie", source=last.source)


@pytest.mark.parametrize("kind", THRESHOLDS.gpu, ids=lambda kind: str(kind.type))
def test_an_entry_is_whole(kind: GpuType) -> None:
    assert kind.source
    assert (kind.nvlinks is None) == (kind.nvlink_version is None)
    # Soldered links are what makes a board; a card's bridge never brings switches.
    assert not kind.sxm or kind.nvlinks
    assert kind.sxm or not (kind.nvswitches or kind.fabric or kind.multicast)


def fits(value: object, kind: Any) -> bool:
    """Return whether a value is of an annotated type."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return all(fits(getattr(value, f.name), hints[f.name]) for f in fields(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(fits(one, get_args(kind)[0]) for one in value)
    if get_args(kind):
        return any(value == one or fits(value, one) for one in get_args(kind))
    if not isinstance(kind, type):
        return False
    return type(value) in (int, float) if kind is float else type(value) is kind


def test_every_value_is_of_its_type() -> None:
    assert fits(THRESHOLDS, thresholds.Thresholds)
    assert not fits("1", int)
    assert not fits(("a", 1), tuple[str, ...])


def test_a_key_that_is_misspelt_or_missing_is_an_error() -> None:
    text = Path(thresholds.__file__).with_name("thresholds.toml").read_text()
    for old, new in (("shm_bytes", "shm_byte"), ("[clocks]", "[clock]"), ("sxm", "sxm")):
        data = tomllib.loads(text.replace(old, new, 1))
        if old != new:
            with pytest.raises(TypeError, match=re.escape(new.strip("[]"))):
                thresholds_of(data)
        else:
            assert thresholds_of(data) == THRESHOLDS


def test_the_lines_are_those_of_the_lock(root: Path, tmp_path: Path) -> None:
    lock, _ = load_lock(root)
    found = lines_of(root)
    assert set(found) == set(lock.lines)
    for cuda, line in lock.lines.items():
        assert (found[cuda].driver_floor, list(found[cuda].archs)) == (
            line.driver_floor,
            line.archs,
        )
        assert found[cuda].experimental == line.experimental
    for text in ("", "[]", '{"lines": 1}', '{"lines": {"12.4": {}}}', "[" * 100_000):
        (tmp_path / "versions.lock").write_text(text)
        lines_of.cache_clear()
        with pytest.raises(UsageError, match="CUDA lines"):
            lines_of(tmp_path)
    lines_of.cache_clear()
