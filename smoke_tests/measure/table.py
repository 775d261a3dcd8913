"""Rules in the form of dispatch.toml, from what was picked. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemm_allreduce.dispatch import Rule, parse_rules
from smoke_tests.measure.tuning import Picked


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


def text_of(origin: Origin, tuned: Sequence[Tuned]) -> str:
    """Return a table that dispatch reads; neighbours of one choice become one rule.

    Rules fit only ranks of the architecture and of the multiprocessors that were timed: another
    GPU passes them over. Calls of more rows than were timed get the last rule, unless that is for
    few rows only.
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
    ]
    for of in tuned:
        for number, group in enumerate(groups := _merged(of.picked)):
            last = number == len(groups) - 1
            lines += ["", *_rule(origin.arch, of, group, last=last)]
    text = "\n".join(lines) + "\n"
    rules_of(text)
    return text


def rules_of(text: str) -> tuple[Rule, ...]:
    """Return the rules of a table's text. Raises: ValueError as `parse_rules`."""
    return parse_rules(tomllib.loads(text).get("rule", ()))


def _merged(picked: Sequence[Picked]) -> list[list[Picked]]:
    groups: list[list[Picked]] = []
    for one in sorted(picked, key=lambda p: p.tokens):
        if groups and groups[-1][-1].choice == one.choice:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _rule(arch: str, of: Tuned, group: Sequence[Picked], *, last: bool) -> list[str]:
    choice, tokens = group[-1].choice, group[-1].tokens
    variant, tile = choice.variant, choice.variant.tile
    ratios = ", ".join(f"M {p.tokens}: x{p.ratio:.2f}" for p in group)
    lines = [f"# against the table before: {ratios}", "[[rule]]"]
    lines += [f'algorithm = "{variant.algorithm}"', f"world_sizes = [{of.world_size}]"]
    lines += [f'archs = ["{arch}"]']
    lines += [f"min_processors = {of.processors}", f"max_processors = {of.processors}"]
    if not last or variant.algorithm == "one_shot":
        lines.append(f"max_tokens = {tokens}")
    numbers = (tile.block_m, tile.block_n, tile.block_k, tile.num_stages, tile.num_warps)
    lines.append(f"tile = {list(numbers)}")
    lines += ["bulk = true"] * tile.bulk + ["split = true"] * (variant.split > 1)
    lines += ['operands = "plain"', "fused = false"] * (not variant.product)
    lines += [f"early = {variant.early}"] * (variant.early > 0)
    lines += [f"comm_ctas = {choice.comm_ctas}"] * (choice.comm_ctas > 0)
    return lines + [f"ctas_per_sm = {choice.ctas_per_sm}"] * (choice.ctas_per_sm > 1)
