"""Times candidates for the dispatch table, as everything here is timed, and picks the best.

Each is checked against the reference before it is timed; the kernel that dispatch has chosen so
far, the incumbent, is timed in the same turns, and stays unless another is faster by MARGIN. The
fastest few are then timed beside their early forms, which have the same tiles: one that leaves
room for two kernels on a multiprocessor may gain more than the fastest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch

from gemm_allreduce.dispatch import Choice, Shape, choose
from gemm_allreduce.variants import Variant
from smoke_tests.measure.bench import FUSED, Bench, RanksKind, StepError, Way, measure, together
from smoke_tests.measure.candidates import candidates, label, misfit
from smoke_tests.measure.picking import Picked, Ratios, early_forms, line_of, pick
from smoke_tests.measure.plan import Effort, copies_of
from smoke_tests.measure.timing import Timer

WITHIN: Final = 1.2
"""What takes so many times the fastest in its first rounds is not timed further."""

Resources = Callable[[Choice, int, int, int], tuple[int, int] | None]
"""Makes a choice's kernel for M, N, K; returns registers of a thread and shared bytes, if known."""
Ahead = Callable[[Sequence[Variant], str], None]
"""Makes kernels for an architecture all at once, so that Resources finds them made."""
Say = Callable[[str], None]
Keep = Callable[[Sequence[Picked]], None]


class Chooser:
    """A dispatch that gives what it is told to, or else what the table in force says."""

    def __init__(self) -> None:
        self.now: Choice | None = None

    def __call__(self, shape: Shape) -> Choice:
        """Return the choice for a call."""
        return choose(shape) if self.now is None else self.now


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
