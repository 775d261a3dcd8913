"""The tables of docs/performance.md that are of calls measured on GPUs, from docs/data/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from smoke_tests.records import Label, Measure, Result
from tdstack.pages.places import table

PAGE: Final = "docs/performance.md"
FOUR: Final = "docs/data/measure-4xh100.jsonl"
TWO: Final = "docs/data/measure-2xh100.jsonl"
VIRTUAL: Final = "docs/data/measure-virtual-h100.jsonl"
RUNS: Final = (FOUR, TWO, VIRTUAL)
"""Recorded runs that the page and its plots are made of."""

SUM: Final = "cublas+sum kernel"
OWN: Final = "cublas+own all-reduce"
ALONE: Final = "cublas"
COPY: Final = "copy"
_WIDTHS: Final = (1, 16, 64, 128, 256, 1024, 2048, 8192)
"""M of the tables of virtual ranks."""


@dataclass(frozen=True)
class Reach:
    """A ratio of times, fused / baseline, that calls on virtual ranks are to keep.

    ``baseline`` may be COPY: then it is the time that weights take at the rate of a copy, over
    the time of the call, and ``bound`` the least.
    """

    w: int
    k: int
    tokens: tuple[int, ...]
    baseline: str
    bound: float


_DECODE: Final = (1, 8, 16, 32, 64)
REACH: Final = (
    *(Reach(1, k, _DECODE, ALONE, 1.10) for k in (1024, 3696)),
    *(Reach(1, k, (1024, 2048, 8192), ALONE, 1.10) for k in (1024, 3696)),
    Reach(8, 1024, (16,), SUM, 0.95),
    Reach(8, 1024, (64,), SUM, 1.0),
    Reach(8, 3696, _DECODE, SUM, 0.97),
    Reach(4, 1024, _DECODE, SUM, 0.85),
    Reach(2, 1024, _DECODE, SUM, 0.72),
    *(Reach(8, k, (1024, 2048), OWN, 1.0) for k in (1024, 3696)),
    *(Reach(8, k, (1, 8, 16), COPY, 0.8) for k in (1024, 3696)),
)


def tables(runs: Mapping[str, Result]) -> dict[str, str]:
    """Return every table of the page by the name of its place, from runs by their files. Pure."""
    virtual = runs[VIRTUAL]
    return {
        "four H100": calls_table(runs[FOUR]),
        "two H100": calls_table(runs[TWO]),
        "virtual ranks": ratio_table(virtual, "best", (1, 2, 4, 8)),
        "virtual ranks, own all-reduce": ratio_table(virtual, OWN, (2, 4, 8)),
        "reach": reach_table(virtual, REACH),
    }


def select(result: Result, name: str, **labels: Label) -> Iterator[Measure]:
    """Yield the measures of a name with these labels, among others. Pure."""
    for measure in result.measures:
        if measure.name == name and labels.items() <= measure.labels.items():
            yield measure


def the(result: Result, name: str, **labels: Label) -> float:
    """Return the value of the one measure of a name with these labels. Pure.

    Raises: ValueError when there is none, or more than one.
    """
    found = [measure.value for measure in select(result, name, **labels)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} measures {name!r} with {labels}, expected one")
    return found[0]


def calls_table(result: Result) -> str:
    """Return microseconds per call of a run with a process per GPU. Pure."""
    head = ["K of a rank", "M", "fused, us", "cuBLAS + NCCL", "cuBLAS + symmetric memory, best"]
    head += ["cuBLAS + own all-reduce", "best / fused", "limit, us"]
    rows = []
    for k in _numbers(select(result, "call", way="fused"), "k"):
        for m in _numbers(select(result, "call", way="fused", k=k), "m"):
            ways = {str(x.labels["way"]): x.value for x in select(result, "call", k=k, m=m)}
            symmetric = min(us for way, us in ways.items() if way.startswith("cublas+symmetric"))
            best = the(result, "fused/serial", k=k, m=m, baseline="best")
            limit = the(result, "physical limit", k=k, m=m)
            times = [ways["fused"], ways["cublas+nccl"], symmetric, ways[OWN]]
            shown = [*(f"{us:.1f}" for us in times), f"{best:.2f}", f"{limit:.1f}"]
            rows.append([str(k), str(m), *shown])
    return table(head, rows)


def ratio_table(result: Result, baseline: str, ranks: Sequence[int]) -> str:
    """Return the baseline's time / the fused time of virtual ranks. Pure."""
    rows = []
    for w in ranks:
        for k in _numbers(select(result, "fused/serial", w=w), "k"):
            found = [the(result, "fused/serial", w=w, k=k, m=m, baseline=baseline) for m in _WIDTHS]
            rows.append([str(w), str(k), *(f"{ratio:.2f}" for ratio in found)])
    return table(["W", "K", *(f"M {m}" for m in _WIDTHS)], rows)


def reach_table(result: Result, wanted: Iterable[Reach]) -> str:
    """Return what was to be reached, each call's ratio, and whether all hold. Pure."""
    rows = []
    for one in wanted:
        found = [ratio(result, one, m) for m in one.tokens]
        over = one.baseline == COPY
        holds = all(r >= one.bound if over else r <= one.bound for r in found)
        what = "weights at the copy rate / fused" if over else f"fused / {_NAMES[one.baseline]}"
        cells = [str(one.w), str(one.k), what, f"{'>=' if over else '<='} {one.bound:.2f}"]
        each = ", ".join(f"{r:.2f} (M {m})" for m, r in zip(one.tokens, found, strict=True))
        limits = sorted({f"{limit(result, one, m):.2f}" for m in one.tokens})
        span = limits[0] if len(limits) == 1 else f"{limits[0]} to {limits[-1]}"
        rows.append([*cells, each, span, "yes" if holds else "no"])
    return table(["W", "K", "ratio", "to reach", "found", "at the physical limit", "holds"], rows)


_NAMES: Final = {
    ALONE: "cuBLAS",
    SUM: "cuBLAS and sum kernel",
    OWN: "cuBLAS and own all-reduce",
}


def ratio(result: Result, wanted: Reach, m: int) -> float:
    """Return the ratio of one call, which ``bound`` is a bound of. Pure."""
    labels = _labels(wanted, m)
    if wanted.baseline != COPY:
        return 1 / the(result, "fused/serial", baseline=wanted.baseline, **labels)
    (call,) = select(result, "call", way="fused", **labels)
    weights = wanted.w * wanted.k * int(call.labels["n"]) * 2  # bf16
    gigabytes_per_s = the(result, "copy bandwidth", w=wanted.w)
    return weights / (gigabytes_per_s * 1e9) / (call.value * 1e-6)


def limit(result: Result, wanted: Reach, m: int) -> float:
    """Return the ratio that a call at the physical limit of the run would have. Pure."""
    if wanted.baseline == COPY:
        return 1.0
    labels = _labels(wanted, m)
    serial = the(result, "call", way=wanted.baseline, **labels)
    return the(result, "physical limit", **labels) / serial


def _labels(wanted: Reach, m: int) -> dict[str, Label]:
    return {"w": wanted.w, "k": wanted.k, "m": m}


def _numbers(measures: Iterable[Measure], label: str) -> list[int]:
    return sorted({int(measure.labels[label]) for measure in measures})
