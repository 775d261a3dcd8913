"""Measures as records, and as lines to read. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from smoke_tests.measure.bench import FUSED, Case, RanksKind
from smoke_tests.measure.estimate import LayerEstimate, speed_ups
from smoke_tests.measure.limits import Limits, least_us
from smoke_tests.measure.models import Shape
from smoke_tests.records import Label, Measure, Tier

TIER_OF: Mapping[RanksKind, Tier] = {"virtual": "gpu", "processes": "multi-gpu"}


@dataclass(frozen=True)
class Place:
    """Labels that all measures of a set of ranks share; ``transport`` is empty for virtual ones."""

    kind: RanksKind
    world_size: int
    transport: str = ""

    @property
    def labels(self) -> dict[str, Label]:
        """The labels."""
        labels: dict[str, Label] = {"ranks": self.kind, "w": self.world_size}
        return labels | ({"transport": self.transport} if self.transport else {})

    def measure(self, name: str, value: float, unit: str, **labels: Label) -> Measure:
        """Return a record with these labels and more; its band is found later."""
        return Measure(TIER_OF[self.kind], name, round(value, 4), unit, self.labels | labels)


def of_limits(place: Place, limits: Limits) -> Iterator[Measure]:
    """Yield what the hardware gave."""
    yield place.measure("copy bandwidth", limits.copy_gbs, "GB/s")
    yield place.measure("matmul rate", limits.matmul_tflops, "TFLOP/s")


def of_case(place: Place, shape: Shape, case: Case, limits: Limits) -> Iterator[Measure]:
    """Yield times, the physical limit, and speed-ups."""
    labels: dict[str, Label] = {"m": case.m, "n": case.n, "k": case.k}
    labels |= {"layer": shape.layer, "models": shape.models}
    for way, us in case.call_us.items():
        yield place.measure("call", us, "us", **labels, way=way)
    for way, us in case.latency_us.items():
        yield place.measure("latency", us, "us", **labels, way=way)
    least = least_us(case.m, case.n, case.k, place.world_size, place.kind, limits)
    yield place.measure("physical limit", least, "us", **labels)
    if FUSED in case.call_us:
        yield place.measure("limit/fused", least / case.call_us[FUSED], "ratio", **labels)
    for baseline, ratio in speed_ups(case).items():
        yield place.measure("fused/serial", ratio, "ratio", **labels, baseline=baseline)


def of_estimate(place: Place, found: LayerEstimate, split: int) -> Iterator[Measure]:
    """Yield a layer's times and speed-up, and the model's."""
    labels: dict[str, Label] = {"model": found.model, "m": found.m, "tp": split, "baseline": "best"}
    yield place.measure("layer fused/serial", found.speed_up, "ratio", **labels)
    for way, us, ms in (
        (FUSED, found.fused_us, found.model_fused_ms),
        ("serial", found.serial_us, found.model_serial_ms),
    ):
        yield place.measure("layer", us, "us", **labels, way=way)
        yield place.measure("model", ms, "ms", **labels, way=way)
    yield place.measure("model saves", found.saved_ms, "ms", **labels)


def line_of(case: Case, least: float) -> str:
    """Return a case as one line."""
    times = "  ".join(f"{way} {us:.1f}" for way, us in case.call_us.items())
    single = "  ".join(f"{way} {us:.1f}" for way, us in case.latency_us.items())
    ratio = speed_ups(case).get("best")
    verdict = "" if ratio is None else f"  x{ratio:.2f}"
    text = f"M {case.m:5} N {case.n} K {case.k}  us: {times}{verdict}  limit {least:.1f}"
    text += f"  single: {single}" if single else ""
    problems = "".join(f"\n  {what}" for what in case.problems.values())
    return text + problems
