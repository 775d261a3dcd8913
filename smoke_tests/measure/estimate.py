"""From times of calls to speed-ups of shapes, layers and models. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from smoke_tests.measure.bench import FUSED, Case
from smoke_tests.measure.models import LAYERS, Model

BEST = "best"
"""The baseline that was fastest for a shape: what a serving engine would take."""


def speed_ups(case: Case) -> dict[str, float]:
    """Return serial time / fused time by baseline, BEST among them; empty without both."""
    fused = case.call_us.get(FUSED)
    serial = {name: us for name, us in case.call_us.items() if name != FUSED}
    if not fused or not serial:
        return {}
    return {name: us / fused for name, us in serial.items()} | {BEST: min(serial.values()) / fused}


@dataclass(frozen=True)
class LayerEstimate:
    """o_proj plus down_proj of one layer of a model, at one M, in microseconds."""

    model: str
    m: int
    fused_us: float
    serial_us: float
    layers: int

    @property
    def speed_up(self) -> float:
        """Serial time / fused time: of a layer, and of all of them."""
        return self.serial_us / self.fused_us

    @property
    def model_fused_ms(self) -> float:
        """Time of these calls in one pass through the model, milliseconds."""
        return self.layers * self.fused_us / 1e3

    @property
    def model_serial_ms(self) -> float:
        """The same without fusing."""
        return self.layers * self.serial_us / 1e3

    @property
    def saved_ms(self) -> float:
        """What fusing saves in one pass, milliseconds; negative where it costs."""
        return self.model_serial_ms - self.model_fused_ms


def estimates(
    cases: Iterable[Case], models: Iterable[Model], split: int, baseline: str = BEST
) -> list[LayerEstimate]:
    """Return an estimate for every model and M of which both layers were timed."""
    times = {(case.n, case.k, case.m): case for case in cases if baseline in speed_ups(case)}
    found = []
    for model in models:
        keys = [(model.hidden, model.depth(layer, split)) for layer in LAYERS]
        for m in sorted({m for _, _, m in times}):
            both = [times[n, k, m] for n, k in keys if (n, k, m) in times]
            if len(both) < len(LAYERS):
                continue
            fused = sum(case.call_us[FUSED] for case in both)
            serial = sum(speed_ups(case)[baseline] * case.call_us[FUSED] for case in both)
            found.append(LayerEstimate(model.name, m, fused, serial, model.layers))
    return found
