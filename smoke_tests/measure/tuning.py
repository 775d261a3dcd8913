"""Times candidates for the dispatch table, as everything here is timed, and picks the best.

Each is checked against the reference before it is timed; the kernel that dispatch has chosen so
far, the incumbent, is timed in the same turns, and stays unless another is faster by MARGIN. The
fastest few are then timed beside their early forms, which have the same tiles: one that leaves
room for two kernels on a multiprocessor may gain more than the fastest.
"""

from __future__ import annotations

import statistics
import time
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
WITHIN: Final = 1.2
"""What takes so many times the fastest in its first rounds is not timed further."""
EARLY_SIZES: Final = (16, 512)
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


Keep = Callable[[Sequence[Picked]], None]


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
    keep: Keep,
) -> list[Picked]:
    """Return the best choices for every M of the effort, by M and K. Collective.

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
        keep: takes all that was found so far, after every M.

    Raises: StepError on every rank when inputs cannot be made, or no candidate was right.
    """
    found: list[Picked] = []
    for m in effort.tokens:
        shapes = [shape_of(m, n, k) for n, k in layers]
        incumbents = dict.fromkeys(choose(shape) for shape in shapes)
        tried = dict.fromkeys([*incumbents, *(c for s in shapes for c in candidates(s))])
        arch = shapes[0].arch
        compile_ahead = partial(_compile, bench, ahead, arch, m, say)
        compile_ahead(tried)
        turns = partial(_turns, bench, timer, shapes, effort, l2_bytes, resources)
        ratios, refused = turns(list(tried))
        picked = pick(shapes, ratios, incumbents, refused)
        if early := early_forms(ratios, arch):
            compile_ahead(early)
            late = dict.fromkeys(one.choice for one in picked)
            again, more = turns([*late, *early])
            # Each is compared with what ran beside it, not with the first turns.
            timed = {**ratios, **again}
            picked = [
                replace(one, timed=len(timed)) for one in pick(shapes, again, late, refused | more)
            ]
        for one in picked:
            say(line_of(one))
        found += picked
        keep(found)
    return found


def _compile(
    bench: Bench, ahead: Ahead, arch: str, m: int, say: Say, choices: Iterable[Choice]
) -> None:
    """Compile on one rank for all: they share Triton's cache."""
    if bench.rank == 0:
        variants = list(dict.fromkeys(choice.variant for choice in choices))
        begin = time.monotonic()
        ahead(variants, arch)
        say(f"M {m:5}  {len(variants)} kernels compiled in {time.monotonic() - begin:.0f} s")


def _turns(
    bench: TunedBench,
    timer: Timer,
    shapes: Sequence[Shape],
    effort: Effort,
    l2_bytes: int,
    resources: Resources,
    tried: Sequence[Choice],
) -> tuple[Ratios, dict[str, str]]:
    """Time choices beside the table in force; return its time / theirs, and why some have none.

    What is refused with one shape is left out. Raises: StepError when the table fails.
    """
    refused: dict[str, str] = {}
    ratios: dict[Choice, dict[Shape, float]] = {choice: {} for choice in tried}
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
        case = measure(bench, timer, m, n, k, copies, effort, WITHIN)
        timer.forget()
        refused |= {name: why for name, why in case.problems.items() if name != FUSED}
        if FUSED not in case.call_us:
            why = case.problems.get(FUSED) or case.problems.get("timing", "")
            raise StepError(f"M {m} N {n} K {k}, the table in force: {why}")
        for choice in bench.choices:
            if us := case.call_us.get(label(choice)):
                ratios[choice][shape] = case.call_us[FUSED] / us
    return {c: of for c, of in ratios.items() if len(of) == len(shapes)}, refused


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
