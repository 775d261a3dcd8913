"""What is expected of a GPU by its name, and where that is from."""

from __future__ import annotations

import re

import pytest

from tdstack.doctor.thresholds import GpuType, load_thresholds

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
