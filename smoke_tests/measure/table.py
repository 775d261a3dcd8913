"""Rules in the form of dispatch.toml, from what was picked. Pure."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from gemm_allreduce.dispatch import Choice, Rule, parse_rules
from gemm_allreduce.layout import HeapLayout
from smoke_tests.measure.picking import Picked


@dataclass(frozen=True)
class Tuned:
    """What was picked for one number of ranks, that have so many multiprocessors each."""

    world_size: int
    processors: int
    picked: Sequence[Picked]


@dataclass(frozen=True)
class Origin:
    """Where a table comes from; ``layers`` are (N, K of a rank) by number of ranks."""

    gpu: str
    arch: str
    processors: int
    triton: str
    date: str
    ranks: str
    layers: Iterable[tuple[int, int]]


def text_of(origin: Origin, tuned: Sequence[Tuned], *, whole: bool = True) -> str:
    """Return a table that dispatch reads; neighbours of one choice become one rule.

    Rules fit only ranks of the architecture and of the multiprocessors that were timed: another
    GPU passes them over. Between two depths that have rules of their own, the geometric mean is
    where one ends; deeper calls than were timed get the last one's. Calls of more rows than were
    timed get the last rules, unless those are for few rows only; or unless the table is not
    `whole`, since others were to come.
    Raises: ValueError for what would not be a table.
    """
    layers = ", ".join(f"{n} x {k}" for n, k in origin.layers)
    lines = [
        "# Which kernel serves a call; dispatch.toml of gemm_allreduce says what the fields mean.",
        "# Its rules come after these. To be named by GEMM_AR_DISPATCH, on every rank.",
        "#",
        f"# GPU         {origin.gpu}, {origin.arch}, {origin.processors} multiprocessors",
        f"# Triton      {origin.triton}",
        f"# date        {origin.date}",
        f"# ranks       {origin.ranks}",
        f"# layers      N x K of a rank: {layers}",
        "# written by  invoke bench --tune",
        *["# unfinished  no rule serves more rows than were timed"] * (not whole),
    ]
    for of in tuned:
        for number, group in enumerate(groups := _merged(of.picked)):
            last = whole and number == len(groups) - 1
            for column, depth in zip(zip(*group, strict=True), _ends(group[0]), strict=True):
                lines += ["", *_rule(origin.arch, of, column, depth, last=last)]
    text = "\n".join(lines) + "\n"
    rules_of(text)
    return text


def rules_of(text: str) -> tuple[Rule, ...]:
    """Return the rules of a table's text. Raises: ValueError as `parse_rules`."""
    return parse_rules(tomllib.loads(text).get("rule", ()))


def _merged(picked: Iterable[Picked]) -> list[list[list[Picked]]]:
    """Return groups of neighbours in M: of each M what was picked, by depth, alike in a group."""
    groups: list[list[list[Picked]]] = []
    for _, of_rows in groupby(sorted(picked, key=lambda p: p.tokens), lambda p: p.tokens):
        row = sorted(of_rows, key=lambda p: p.depths)
        if groups and _chosen(groups[-1][-1]) == _chosen(row):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _chosen(row: Sequence[Picked]) -> list[tuple[tuple[int, ...], Choice]]:
    return [(one.depths, one.choice) for one in row]


def _ends(row: Sequence[Picked]) -> list[int | None]:
    """Return the largest K of each rule of a row; the last has none."""
    between = [math.isqrt(a.depths[-1] * b.depths[0]) for a, b in pairwise(row)]
    return [*between, None]


def _rule(
    arch: str, of: Tuned, group: Sequence[Picked], depth: int | None, *, last: bool
) -> list[str]:
    choice, tokens = group[-1].choice, group[-1].tokens
    variant, tile = choice.variant, choice.variant.tile
    ratios = ", ".join(f"M {p.tokens}: x{p.ratio:.2f}" for p in group)
    lines = [f"# against the table before: {ratios}", "[[rule]]"]
    lines += [f'algorithm = "{variant.algorithm}"', f"world_sizes = [{of.world_size}]"]
    lines += [f'archs = ["{arch}"]']
    lines += [f"min_processors = {of.processors}", f"max_processors = {of.processors}"]
    if not last or HeapLayout(of.world_size, 1, 1).most_tokens(variant.algorithm):
        lines.append(f"max_tokens = {tokens}")
    lines += [f"max_depth = {depth}"] * (depth is not None)
    numbers = (tile.block_m, tile.block_n, tile.block_k, tile.num_stages, tile.num_warps)
    lines.append(f"tile = {list(numbers)}")
    lines += ["bulk = true"] * tile.bulk + ["split = true"] * (variant.split > 1)
    lines += ['operands = "plain"', "fused = false"] * (not variant.product)
    lines += [f"early = {variant.early}"] * (variant.early > 0)
    lines += [f"comm_ctas = {choice.comm_ctas}"] * (choice.comm_ctas > 0)
    return lines + [f"ctas_per_sm = {choice.ctas_per_sm}"] * (choice.ctas_per_sm > 1)
