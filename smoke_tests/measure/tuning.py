"""Times candidates for the dispatch table, as everything here is timed, and picks the best.

Each is checked against the reference before it is timed; the kernel that dispatch has chosen so
far, the incumbent, is timed in the same turns, and stays unless another is faster by MARGIN. The
fastest few are then timed beside their early forms, which have the same tiles: one that leaves
room for two kernels on a multiprocessor may gain more than the fastest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch

from gemm_allreduce.dispatch import Choice, Shape, choose, early_form
from gemm_allreduce.variants import Variant
from smoke_tests.measure.bench import FUSED, Bench, RanksKind, StepError, Way, measure, together
from smoke_tests.measure.candidates import candidates, label, misfit
from smoke_tests.measure.plan import Effort, copies_of
from smoke_tests.measure.timing import Timer

MARGIN: Final = 0.02
"""Less is no reason to change the table."""
EARLY_BYTES: Final = (16, 512)
"""Of a row of weight, for early forms: next to nothing, and what was best on H100 and H200."""
EARLY_TRIED: Final = 4
"""Of so many, the fastest, early forms are timed."""

Resources = Callable[[Choice, int, int, int], tuple[int, int] | None]
"""Makes a choice's kernel for M, N, K; returns registers of a thread and shared bytes, if known."""
Ahead = Callable[[Sequence[Variant], str], None]
"""Makes kernels for an architecture all at once, so that Resources finds them made."""
Say = Callable[[str], None]


class Chooser:
    """A dispatch that gives what it is told to, or else what the table in force says."""

    def __init__(self) -> None:
        self.now: Choice | None = None

    def __call__(self, shape: Shape) -> Choice:
        """Return the choice for a call."""
        return choose(shape) if self.now is None else self.now


@dataclass(frozen=True)
class Picked:
    """What was found for all M up to ``tokens``.

    Attributes:
        tokens: largest M, at which it was timed.
        choice: the fastest.
        ratio: the incumbents' time / its time: the geometric mean over the layers; 1: it stays.
        timed: how many candidates were right and timed on every layer.
        refused: why others were not, by their labels.
    """

    tokens: int
    choice: Choice
    ratio: float
    timed: int
    refused: Mapping[str, str]


class TunedBench:
    """The ranks of another bench, whose ways are candidates."""

    def __init__(self, inner: Bench, chooser: Chooser) -> None:
        self._inner, self._chooser = inner, chooser
        self.kind: RanksKind = inner.kind
        self.rank, self.world_size = inner.rank, inner.world_size
        self.gather, self.load, self.reference = inner.gather, inner.load, inner.reference
        self.align, self.flush = inner.align, inner.flush
        self.choices: Sequence[Choice] = ()

    def ways(self, m: int) -> list[Way]:
        """Return the incumbent, and every candidate."""
        fused = next(way for way in self._inner.ways(m) if way.name == FUSED)
        return [fused, *(self._way(fused, choice) for choice in self.choices)]

    def _way(self, fused: Way, choice: Choice) -> Way:
        def call(copy: int) -> torch.Tensor:
            self._chooser.now = choice
            try:
                return fused.call(copy)
            finally:
                self._chooser.now = None

        return replace(fused, name=label(choice), call=call)


def tune(
    bench: TunedBench,
    timer: Timer,
    shape_of: Callable[[int, int, int], Shape],
    layers: Sequence[tuple[int, int]],
    effort: Effort,
    l2_bytes: int,
    resources: Resources,
    ahead: Ahead,
    say: Say,
) -> list[Picked]:
    """Return the best choice for every M of the effort. Collective.

    Args:
        bench: its ways are replaced by candidates.
        timer: of the device.
        shape_of: makes the Shape of M, N, K that dispatch sees on these ranks.
        layers: (N, K of a rank) of each layer that the table shall serve; all count alike.
        effort: values of M, rounds.
        l2_bytes: size of the L2 cache.
        resources: makes a kernel.
        ahead: is called on rank 0 of all, with what will be asked of `resources`.
        say: takes a line on what was found.

    Raises: StepError on every rank when inputs cannot be made, or no candidate was right.
    """
    found = []
    for m in effort.tokens:
        shapes = [shape_of(m, n, k) for n, k in layers]
        incumbents = dict.fromkeys(choose(shape) for shape in shapes)
        tried = dict.fromkeys([*incumbents, *(c for s in shapes for c in candidates(s))])
        arch = shapes[0].arch
        if bench.rank == 0:
            ahead([choice.variant for choice in tried], arch)
        turns = partial(_turns, bench, timer, shapes, effort, l2_bytes, resources)
        ratios, refused = turns(list(tried))
        picked = pick(m, ratios, incumbents, refused)
        if early := early_forms(ratios, arch):
            if bench.rank == 0:
                ahead([choice.variant for choice in early], arch)
            ratios, refused = turns([picked.choice, *early])
            again = pick(m, ratios, [picked.choice], refused)
            timed = picked.timed + len(ratios) - (picked.choice in ratios)
            picked = replace(again, timed=timed, refused={**picked.refused, **refused})
        say(line_of(picked))
        found.append(picked)
    return found


def _turns(
    bench: TunedBench,
    timer: Timer,
    shapes: Sequence[Shape],
    effort: Effort,
    l2_bytes: int,
    resources: Resources,
    tried: Sequence[Choice],
) -> tuple[dict[Choice, list[float]], dict[str, str]]:
    """Time choices beside the table in force; return its time / theirs, and why some have none.

    A choice has a ratio for each shape, in their order. Raises: StepError when the table fails.
    """
    refused: dict[str, str] = {}
    ratios: dict[Choice, list[float]] = {choice: [] for choice in tried}
    local = bench.world_size if bench.kind == "virtual" else 1
    for shape in shapes:
        m, n, k = shape.tokens, shape.features, shape.depth
        copies = copies_of(local * n * k * 2, l2_bytes)
        together(bench, "weights", partial(bench.load, n, k, copies, [m]))
        left = [choice for choice in tried if label(choice) not in refused]
        for choice in left:
            if why := _refusal(bench, resources, choice, shape):
                refused[label(choice)] = why
        bench.choices = [choice for choice in left if label(choice) not in refused]
        case = measure(bench, timer, m, n, k, copies, effort)
        timer.forget()
        refused |= {name: why for name, why in case.problems.items() if name != FUSED}
        if FUSED not in case.call_us:
            why = case.problems.get(FUSED) or case.problems.get("timing", "")
            raise StepError(f"M {m} N {n} K {k}, the table in force: {why}")
        for choice in bench.choices:
            if us := case.call_us.get(label(choice)):
                ratios[choice].append(case.call_us[FUSED] / us)
    return {c: means for c, means in ratios.items() if len(means) == len(shapes)}, refused


def pick(
    tokens: int,
    ratios: Mapping[Choice, Sequence[float]],
    incumbents: Iterable[Choice],
    refused: Mapping[str, str],
) -> Picked:
    """Return the choice with the largest geometric mean; an incumbent that is within MARGIN. Pure.

    Raises: StepError when there is none.
    """
    means = _means(ratios)
    if not means:
        raise StepError(f"M {tokens}: no candidate was timed on every layer: {dict(refused)}")
    best = max(means, key=means.__getitem__)
    kept = max((c for c in incumbents if c in means), key=means.__getitem__, default=best)
    if means[best] < means[kept] * (1 + MARGIN):
        best = kept
    return Picked(tokens, best, round(means[best], 4), len(means), dict(refused))


def early_forms(ratios: Mapping[Choice, Sequence[float]], arch: str) -> list[Choice]:
    """Return the early forms of the fastest that are not early, those that were not timed. Pure."""
    means = _means({choice: of for choice, of in ratios.items() if not choice.variant.early})
    best = sorted(means, key=means.__getitem__, reverse=True)[:EARLY_TRIED]
    forms = (early_form(choice, arch, size) for choice in best for size in EARLY_BYTES)
    return [form for form in forms if form and form not in ratios]


def _means(ratios: Mapping[Choice, Sequence[float]]) -> dict[Choice, float]:
    return {choice: statistics.geometric_mean(of) for choice, of in ratios.items()}


def line_of(picked: Picked) -> str:
    """Return what was found as a line."""
    counts = f"{picked.timed} candidates, {len(picked.refused)} refused"
    return f"M {picked.tokens:5}  x{picked.ratio:.2f}  {label(picked.choice)}  ({counts})"


def _refusal(bench: Bench, resources: Resources, choice: Choice, shape: Shape) -> str:
    """Return why a kernel cannot be made on some rank, or not be as often resident; or nothing."""

    def make() -> Any:
        return resources(choice, shape.tokens, shape.features, shape.depth)

    try:
        made = together(bench, label(choice), make)
    except StepError as error:
        return str(error)
    reasons = bench.gather(misfit(choice, shape.arch, *made) if made else None)
    return next((reason for reason in reasons if reason), "")
