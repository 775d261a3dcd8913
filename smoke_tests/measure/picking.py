"""Which of the choices that were timed is best, for calls of one M and every K. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gemm_allreduce.dispatch import Choice, Shape, early_form
from smoke_tests.measure.bench import StepError
from smoke_tests.measure.candidates import label

MARGIN: Final = 0.02
"""Less is no reason to change the table."""
EARLY_SIZES: Final = (16, 512)
"""Of a row of weight, for early forms: next to nothing, and what was best on H100 and H200."""
EARLY_TRIED: Final = 4
"""Of so many, the fastest, early forms are timed."""

Ratios = Mapping[Choice, Mapping[Shape, float]]
"""Time of the table in force / time of a choice, for the shapes where that was right and timed."""


@dataclass(frozen=True)
class Picked:
    """What was found for calls of so many rows, of one depth K or of several.

    Attributes:
        tokens: largest M, at which it was timed.
        depths: every K of a rank that it was timed with, ascending.
        choice: the fastest.
        ratio: the incumbents' time / its time: the geometric mean over the layers; 1: it stays.
        timed: how many candidates were right and timed.
        refused: why others were not, by their labels.
    """

    tokens: int
    depths: tuple[int, ...]
    choice: Choice
    ratio: float
    timed: int
    refused: Mapping[str, str]


def pick(
    shapes: Sequence[Shape],
    ratios: Ratios,
    incumbents: Iterable[Choice],
    refused: Mapping[str, str],
) -> list[Picked]:
    """Return the best choice for each depth of shapes of one M; neighbours that agree as one. Pure.

    That is the best for all shapes together, and for a depth another that is faster there by
    MARGIN or more. An incumbent within MARGIN of the best stays.
    Raises: StepError when there is none.
    """
    if not ratios:
        tokens = shapes[0].tokens
        raise StepError(f"M {tokens}: no candidate was timed on every layer: {dict(refused)}")
    incumbents = list(incumbents)
    common = _best(_means(ratios, shapes), incumbents)
    found: list[Picked] = []
    for depth in sorted({shape.depth for shape in shapes}):
        means = _means(ratios, [shape for shape in shapes if shape.depth == depth])
        best = _best(means, [common])
        if best != common:
            best = _best(means, [common, *incumbents])
        depths: tuple[int, ...] = (depth,)
        if found and found[-1].choice == best:
            depths = (*found.pop().depths, depth)
        served = [shape for shape in shapes if shape.depth in depths]
        mean = round(_means(ratios, served)[best], 4)
        found.append(Picked(shapes[0].tokens, depths, best, mean, len(ratios), dict(refused)))
    return found


def _best(means: Mapping[Choice, float], incumbents: Iterable[Choice]) -> Choice:
    best = max(means, key=means.__getitem__)
    kept = max((c for c in incumbents if c in means), key=means.__getitem__, default=best)
    return kept if means[best] < means[kept] * (1 + MARGIN) else best


def early_forms(ratios: Ratios, arch: str) -> list[Choice]:
    """Return the early forms of the fastest that are not early, those that were not timed. Pure.

    The fastest of all depths together, and of each one.
    """
    late = {choice: of for choice, of in ratios.items() if not choice.variant.early}
    shapes = list(next(iter(late.values()), {}))
    found: dict[Choice, None] = {}
    for depths in ({s.depth for s in shapes}, *({s.depth} for s in shapes)):
        means = _means(late, [shape for shape in shapes if shape.depth in depths])
        best = sorted(means, key=means.__getitem__, reverse=True)[:EARLY_TRIED]
        forms = (early_form(choice, arch, size) for choice in best for size in EARLY_SIZES)
        found |= dict.fromkeys(form for form in forms if form and form not in ratios)
    return list(found)


def _means(ratios: Ratios, shapes: Sequence[Shape]) -> dict[Choice, float]:
    return {c: statistics.geometric_mean(of[s] for s in shapes) for c, of in ratios.items()}


def line_of(picked: Picked) -> str:
    """Return what was found as a line."""
    counts = f"{picked.timed} candidates, {len(picked.refused)} refused"
    depths = ", ".join(map(str, picked.depths))
    ratio = f"x{picked.ratio:.2f}"
    return f"M {picked.tokens:5}  K {depths:12}  {ratio}  {label(picked.choice)}  ({counts})"
