"""Which kernel serves a call, and with what grid: pure functions."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gemm_allreduce
from gemm_allreduce.dispatch import (
    ARCHS,
    Choice,
    Shape,
    choose,
    early_form,
    explain,
    main,
    parse_rules,
    reachable_variants,
    rules,
    token_steps,
)
from gemm_allreduce.launch import plan_grid
from gemm_allreduce.layout import MOST_CTAS, HeapLayout, ceil_div
from gemm_allreduce.variants import DTYPES, OPERANDS, WORLD_SIZES, Operand, Tile, Variant

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
PROCESSORS = (132, 67, 66, 49, 48, 33, 32, 16)
"""Multiprocessors of a rank, on both sides of the table's limits."""
FP8_ARCHS = tuple(arch for arch in ARCHS if arch not in ("sm_80", "sm_86"))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    # Most rules end at powers of two: numbers beside those are drawn as often as any others.
    edge = st.integers(0, 17).flatmap(lambda p: st.sampled_from([2**p, 2**p + 1, max(1, 2**p - 1)]))
    size = edge | st.integers(1, 200_000)
    dtype = draw(st.sampled_from(DTYPES))
    operand = draw(st.sampled_from([None, dtype, "int8", "fp8e4m3"]))
    arch = draw(st.sampled_from(FP8_ARCHS if operand == "fp8e4m3" else ARCHS))
    tokens, features, depth = draw(size), 8 * draw(size), 16 * draw(size)
    ranks = draw(st.sampled_from(WORLD_SIZES))
    processors = draw(st.sampled_from(PROCESSORS) | st.integers(1, 200))
    return Shape(tokens, features, depth, ranks, arch, dtype, operand, processors)


@settings(max_examples=500)
@given(shapes())
def test_every_shape_is_served(shape: Shape) -> None:
    choice = choose(shape)
    variant = choice.variant
    assert variant in reachable_variants(shape.arch)
    assert variant.world_size == shape.world_size
    assert (variant.dtype, variant.operand) == (shape.dtype, shape.operand or shape.dtype)
    assert (variant.algorithm == "direct") == (shape.world_size == 1)
    most = HeapLayout(shape.world_size, 1, 1).most_tokens(variant.algorithm)
    if most is not None:
        assert max(shape.tokens, variant.tile.block_m) <= most
        assert choice.comm_ctas == 0
    assert choice.ctas_per_sm >= 1 and choice.comm_ctas >= 0
    assert not choice.variant.multimem
    assert choice.variant.product or (shape.operand or shape.dtype) == shape.dtype


@given(shapes())
def test_a_choice_depends_on_nothing_else(shape: Shape) -> None:
    first = choose(shape)
    choose.cache_clear()
    rules.cache_clear()
    assert choose(shape) == first


def test_another_process_and_environment_choose_alike() -> None:
    """Ranks are processes on several hosts: hash seeds, variables and folders differ."""
    code = (
        "from gemm_allreduce.dispatch import Shape, choose\n"
        "for w in (1, 2, 4, 8):\n"
        "    for m in (1, 16, 17, 64, 65, 257, 1024, 8192):\n"
        "        print(choose(Shape(m, 8192, 1024, w, 'sm_90')))\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(SOURCES), "PYTHONHASHSEED": seed, "TRITON_INTERPRET": seed[0]},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, folder in (("0", "/"), ("1234", os.getcwd()))
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 32


TUNED = "sm_90"
OTHERS = tuple(arch for arch in ARCHS if arch != TUNED)


@pytest.mark.parametrize(
    ("tokens", "depth", "ranks", "processors", "algorithm", "split", "comm_ctas", "tile"),
    [
        (1, 1024, 1, 132, "direct", 1, 0, Tile(16, 64, 256, 3, 4)),
        (16, 1024, 1, 132, "direct", 1, 0, Tile(16, 64, 256, 3, 4)),
        (17, 1024, 1, 132, "direct", 1, 0, Tile(64, 64, 128, 4, 4)),
        (65, 1024, 1, 132, "direct", 1, 0, Tile(64, 128, 128, 4, 4, True)),
        (257, 1024, 1, 132, "direct", 1, 0, Tile(128, 256, 64, 4, 8, True)),
        (16, 1024, 8, 33, "lamport", 1, 0, Tile(16, 64, 256, 4, 8)),
        (16, 2048, 8, 32, "two_shot", 8, 0, Tile(16, 256, 64, 2, 4)),
        (16, 2049, 8, 32, "two_shot", 8, 0, Tile(16, 256, 128, 3, 8)),
        (16, 1024, 4, 49, "lamport", 1, 0, Tile(16, 64, 128, 8, 4)),
        (16, 1024, 4, 48, "one_shot", 1, 0, Tile(16, 256, 128, 3, 8)),
        (16, 1024, 2, 67, "lamport", 1, 0, Tile(16, 64, 128, 8, 4)),
        (16, 2048, 2, 66, "one_shot", 1, 0, Tile(16, 128, 64, 4, 4)),
        (16, 2049, 2, 66, "lamport", 1, 0, Tile(16, 128, 128, 5, 8)),
        (17, 1024, 4, 49, "lamport", 1, 0, Tile(32, 64, 128, 6, 8)),
        (17, 1024, 4, 48, "one_shot", 1, 0, Tile(32, 128, 128, 3, 4)),
        (33, 1024, 4, 48, "two_shot", 4, 0, Tile(64, 128, 64, 3, 4)),
        (17, 1024, 2, 67, "lamport", 1, 0, Tile(32, 64, 128, 6, 4)),
        (32, 2048, 2, 66, "one_shot", 1, 0, Tile(32, 128, 128, 3, 4)),
        (32, 2049, 2, 66, "one_shot", 1, 0, Tile(32, 128, 128, 4, 8)),
        (33, 8192, 2, 67, "lamport", 1, 0, Tile(64, 64, 64, 8, 8)),
        (33, 1024, 2, 66, "one_shot", 1, 0, Tile(64, 128, 64, 4, 4)),
        (33, 3072, 4, 49, "two_shot", 4, 0, Tile(64, 64, 64, 6, 4)),
        (33, 3073, 4, 49, "two_shot", 4, 0, Tile(64, 64, 64, 8, 4)),
        (17, 1024, 8, 32, "two_shot", 8, 0, Tile(32, 256, 128, 3, 8)),
        (17, 1024, 8, 33, "two_shot", 8, 0, Tile(64, 64, 64, 6, 4)),
        (33, 1024, 8, 32, "two_shot", 8, 0, Tile(64, 128, 64, 3, 4)),
        (64, 1024, 2, 132, "lamport", 1, 0, Tile(64, 64, 64, 8, 8)),
        (65, 1024, 2, 132, "one_shot", 1, 0, Tile(64, 128, 128, 4, 4, True)),
        (129, 1024, 2, 132, "one_shot", 1, 0, Tile(128, 128, 64, 6, 8, True)),
        (256, 1024, 8, 132, "two_shot", 1, 0, Tile(128, 128, 128, 1, 8)),
        (257, 1024, 8, 132, "two_shot", 1, 0, Tile(128, 256, 64, 4, 8, True)),
        (513, 3072, 8, 132, "two_shot", 1, 24, Tile(128, 256, 64, 4, 8, True)),
        (513, 3072, 8, 66, "two_shot", 1, 0, Tile(128, 256, 64, 4, 8, True)),
        (2048, 3073, 8, 132, "two_shot", 1, 0, Tile(128, 256, 64, 4, 8, True)),
        (2049, 3073, 8, 132, "two_shot", 1, 8, Tile(128, 256, 64, 4, 8, True)),
        (2049, 3073, 2, 132, "two_shot", 1, 0, Tile(128, 256, 64, 4, 8, True)),
    ],
)
def test_the_tuned_table_at_its_edges(
    tokens: int,
    depth: int,
    ranks: int,
    processors: int,
    algorithm: str,
    split: int,
    comm_ctas: int,
    tile: Tile,
) -> None:
    choice = choose(Shape(tokens, 8192, depth, ranks, TUNED, processors=processors))
    variant = choice.variant
    assert (variant.algorithm, variant.split, variant.tile) == (algorithm, split, tile)
    assert choice.comm_ctas == comm_ctas


@pytest.mark.parametrize(
    ("tokens", "depth", "ranks", "processors", "early"),
    [
        (16, 1024, 1, 132, 16),
        (64, 1024, 1, 132, 512),
        (65, 1024, 1, 132, 0),
        (16, 14784, 4, 132, 512),
        (64, 14784, 2, 132, 512),
        (16, 2049, 8, 32, 0),
        (64, 1024, 4, 33, 0),
        (128, 14784, 8, 132, 512),
        (257, 1024, 8, 132, 0),
    ],
)
def test_where_the_tuned_table_starts_early(
    tokens: int, depth: int, ranks: int, processors: int, early: int
) -> None:
    shape = Shape(tokens, 8192, depth, ranks, TUNED, processors=processors)
    assert choose(shape).variant.early == early


@pytest.mark.parametrize("ranks", [4, 8])
def test_where_the_tuned_table_does_not_fuse(ranks: int) -> None:
    def fused(tokens: int, operand: Operand | None = None) -> bool:
        return choose(Shape(tokens, 8192, 1024, ranks, TUNED, operand=operand)).variant.product

    assert [fused(m) for m in (128, 129, 256, 257)] == [True, False, False, True]
    assert fused(256, "int8"), "torch does not multiply those with their scales"
    said = explain(Shape(256, 8192, 1024, ranks, TUNED))
    assert "not fused: torch multiplies, then this kernel sums" in said
    assert "not fused" not in explain(Shape(257, 8192, 1024, ranks, TUNED)).splitlines()[-1]
    assert "two_shot: for plain operands" in explain(
        Shape(256, 8192, 1024, ranks, TUNED, operand="int8")
    )


@pytest.mark.parametrize("arch", OTHERS)
@pytest.mark.parametrize(
    ("tokens", "ranks", "algorithm", "split", "comm_ctas"),
    [
        (16, 8, "one_shot", 1, 0),
        (17, 8, "two_shot", 8, 0),
        (48, 4, "one_shot", 1, 0),
        (49, 4, "two_shot", 4, 0),
        (256, 2, "one_shot", 1, 0),
        (257, 2, "two_shot", 2, 0),
        (512, 8, "two_shot", 8, 0),  # 8 MiB at N 8192
        (513, 8, "two_shot", 1, 16),
        (8192, 2, "two_shot", 1, 16),
        (64, 1, "direct", 1, 0),
        (8192, 1, "direct", 1, 0),
    ],
)
def test_the_table_of_other_gpus_at_its_edges(
    tokens: int, ranks: int, algorithm: str, split: int, comm_ctas: int, arch: str
) -> None:
    for processors in PROCESSORS:  # nothing there depends on them
        choice = choose(Shape(tokens, 8192, 1024, ranks, arch, processors=processors))
        variant = choice.variant
        assert (variant.algorithm, variant.split, choice.comm_ctas) == (algorithm, split, comm_ctas)
        assert not variant.tile.bulk


@pytest.mark.parametrize("arch", ["sm_80", TUNED, "sm_100"])
def test_every_variant_of_the_table_is_of_use(arch: str) -> None:
    """One that rules before it hide would be compiled for nothing."""
    eight = ("int8",) if arch == "sm_80" else ("int8", "fp8e4m3")
    chosen = {
        choose(Shape(tokens, features, depth, ranks, arch, dtype, operand, processors)).variant
        for ranks in WORLD_SIZES
        for tokens in (1, 16, 17, 32, 33, 48, 49, 64, 65, 128, 129, 256, 257, 513, 8192)
        for features in (8, 1024, 8192)
        for depth in (1024, 3696, 14784)
        for dtype in DTYPES
        for operand in OPERANDS
        if operand in (dtype, *eight)
        for processors in PROCESSORS
    }
    assert chosen == set(reachable_variants(arch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"features": -8}, "features must be at least 1, got -8"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"processors": 0}, "processors must be at least 1, got 0"),
        ({"world_size": 3}, "world_size must be one of 1, 2, 4, 8, got 3"),
        ({"world_size": 16}, "world_size must be one of 1, 2, 4, 8, got 16"),
        ({"arch": "sm_70"}, "unknown architecture 'sm_70'; valid: sm_80, sm_86"),
        ({"operand": "fp8e4m3", "arch": "sm_80"}, "sm_80 has no FP8 matrix units"),
    ],
)
def test_shape_refuses(change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {
        "tokens": 16,
        "features": 8192,
        "depth": 1024,
        "world_size": 8,
        "arch": "sm_90",
    }
    with pytest.raises(ValueError, match=message):
        Shape(**(fields | change))


def test_reachable_variants_refuses() -> None:
    with pytest.raises(ValueError, match="unknown architecture 'sm_70'; valid: sm_80"):
        reachable_variants("sm_70")


def test_an_early_form_differs_in_nothing_else() -> None:
    choice = choose(Shape(16, 8192, 1024, 8, "sm_90"))
    choice = replace(choice, variant=replace(choice.variant, early=0))
    early = early_form(choice, "sm_90", 256)
    assert early is not None
    assert early.variant.early == 256
    assert replace(early, variant=replace(early.variant, early=0)) == choice
    assert early_form(early, "sm_90", 256) is None
    assert early_form(choice, "sm_89", 256) is None


# ------------------------------------------------------------------ the table's format

RULE = {"algorithm": "two_shot", "world_sizes": [2, 4], "tile": [64, 128, 64, 3, 4]}


def test_parse_rules_reads_every_field() -> None:
    (rule,) = parse_rules(
        [
            RULE
            | {"archs": ["sm_90"], "max_tokens": 64, "max_bytes": 4096, "early": 48}
            | {"comm_ctas": 4, "ctas_per_sm": 2, "max_processors": 48, "bulk": True}
            | {"max_depth": 16}
        ]
    )
    choice = rule.choice("fp16", "int8", 4)
    tile = Tile(64, 128, 64, 3, 4, True)
    assert choice == Choice(Variant("two_shot", "fp16", "int8", 4, tile, early=48), 4, 2)
    (sums,) = parse_rules(
        [RULE | {"tile": [64, 128, 64, 1, 4], "fused": False, "operands": "plain"}]
    )
    unfused = sums.choice("fp16", None, 4).variant
    assert unfused == Variant("two_shot", "fp16", "fp16", 4, sums.tile, product=False)
    (eight,) = parse_rules([RULE | {"operands": "scaled"}])
    plain, scaled = (Shape(1, 8, 16, 2, "sm_90", "fp16", o) for o in (None, "int8"))
    assert [sums.refusal(plain), eight.refusal(scaled)] == [None, None]
    assert sums.refusal(scaled) == "for plain operands"
    assert eight.refusal(plain) == "for scaled operands"
    (split,) = parse_rules([RULE | {"split": True}])
    assert split.choice("fp16", None, 4).variant.split == 4
    fits = Shape(32, 64, 16, 2, "sm_90", processors=48)
    assert rule.refusal(fits) is None
    for change, refusal in (
        ({"world_size": 8}, "for 2, 4 ranks"),
        ({"arch": "sm_80"}, "for sm_90"),
        ({"tokens": 65, "features": 8}, "M over 64"),
        ({"tokens": 33}, "y of 4224 bytes, over 4096"),
        ({"depth": 17}, "K over 16"),
        ({"processors": 49}, "for ranks of at most 48 multiprocessors"),
    ):
        assert rule.refusal(replace(fits, **change)) == refusal  # type: ignore[arg-type]


def test_a_limit_of_multiprocessors_passes_larger_ranks_on_to_later_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table's first rule that fits: for small ranks the one with the limit, no other."""
    wide = RULE | {"tile": [64, 256, 64, 3, 4]}
    table = parse_rules([RULE | {"max_processors": 33}, wide])
    monkeypatch.setattr("gemm_allreduce.dispatch.rules", lambda: table)
    choose.cache_clear()
    chosen = {
        processors: choose(Shape(16, 64, 16, 4, "sm_90", processors=processors)).variant.tile
        for processors in (1, 33, 34, 132)
    }
    small, large = table[0].tile, table[1].tile
    assert chosen == {1: small, 33: small, 34: large, 132: large}
    choose.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": [64, 128, 64, 3]}, "num_warps"),
        ({"tile": [64, 128, 64, 3, 4, 1]}, "bulk"),
        ({"tile": [64, 100, 64, 3, 4]}, "block_n must be a power of two, got 100"),
        ({"algorithm": "ring"}, "algorithm must be one of"),
        ({"world_sizes": [3]}, "world_sizes must be some of"),
        ({"max_token": 16}, "max_token"),
        ({"multimem": True}, "multimem"),
        ({"algorithm": "one_shot"}, "one_shot serves at most 128 rows there"),
        ({"algorithm": "one_shot", "max_tokens": 129}, "one_shot serves at most 128 rows there"),
        (
            {"algorithm": "one_shot", "max_tokens": 16, "world_sizes": [8]}
            | {"tile": [128, 64, 64, 3, 4]},
            "one_shot serves at most 64 rows there, in such tiles",
        ),
        ({"algorithm": "one_shot", "max_tokens": 64, "split": True}, "split must be 1"),
        ({"split": True, "comm_ctas": 1}, "comm_ctas must be 0"),
        ({"archs": ["sm_90"], "early": True}, "early must be a multiple of 16 up to 65536, got Tr"),
        ({"archs": ["sm_90"], "early": 24}, "early must be a multiple of 16 up to 65536, got 24"),
        ({"archs": ["sm_90"], "early": -16}, "early must be a whole number of at least 0, got -16"),
        ({"archs": ["sm_90"], "early": 16.0}, "early must be a whole number of at least 0, got 16"),
        ({"archs": ["sm_90"], "early": 65552}, "early must be a multiple of 16"),
        ({"fused": False}, "only sums: no bulk, and num_stages 1"),
        (
            {"fused": False, "tile": [64, 128, 64, 1, 4]},
            "8-bit operands are always fused: others need operands plain",
        ),
        ({"operands": "fp8"}, "operands must be plain or scaled, got 'fp8'"),
        ({"fused": False, "world_sizes": [1], "algorithm": "direct"}, "only sums"),
        ({"early": 16}, "early needs sm_90 or later, archs has sm_80, sm_86, sm_89"),
        ({"bulk": True, "archs": ["sm_90", "sm_89"]}, "bulk needs sm_90 or later, archs has sm_89"),
    ],
)
def test_parse_rules_names_the_bad_rule(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^rule 2 of the dispatch table: .*{message}"):
        parse_rules([RULE, RULE | change])


@pytest.mark.parametrize("missing", ["algorithm", "world_sizes", "tile"])
def test_parse_rules_names_a_missing_field(missing: str) -> None:
    with pytest.raises(ValueError, match=f"^rule 1 of the dispatch table: .*{missing}"):
        parse_rules([{name: value for name, value in RULE.items() if name != missing}])


@pytest.mark.parametrize(
    "change",
    [
        {"archs": ["sm90"]},
        {"world_sizes": [16]},
        {"ctas_per_sm": 0},
        {"comm_ctas": -1},
        {"max_tokens": "64"},
        {"max_processors": 0},
        {"max_depth": 0},
        {"algorithm": "direct"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_parse_rules_refuses_what_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^rule 1 of the dispatch table: "):
        parse_rules([RULE | change])


def test_the_package_has_the_table_that_is_tested() -> None:
    text = resources.files(gemm_allreduce).joinpath("dispatch.toml").read_text("utf-8")
    assert parse_rules(tomllib.loads(text)["rule"]) == rules()


def test_no_rule_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemm_allreduce.dispatch.rules", lambda: parse_rules([RULE]))
    shape = Shape(16, 8192, 1024, 8, "sm_90")
    choose.cache_clear()
    with pytest.raises(LookupError, match="no rule of the dispatch table fits Shape"):
        choose(shape)
    assert explain(shape).splitlines() == ["rule  1  two_shot: for 2, 4 ranks", "no rule fits"]
    choose.cache_clear()


@settings(max_examples=300)
@given(shapes(), st.integers(1, 40_000))
def test_a_step_of_m_stands_for_all_below_it(shape: Shape, most: int) -> None:
    """Loading the kernels of the steps loads what any M needs."""
    steps = token_steps(shape.features, most)
    assert steps[-1] == most
    assert list(steps) == sorted(set(steps))
    tokens = 1 + (shape.tokens - 1) % most
    above = next(step for step in steps if step >= tokens)
    assert choose(replace(shape, tokens=tokens)) == choose(replace(shape, tokens=above))


# ------------------------------------------------------------------ what it prints


@given(shapes())
def test_explain_agrees_with_choose(shape: Shape) -> None:
    lines = explain(shape).splitlines()
    choice = choose(shape)
    if not choice.variant.product:
        assert lines.pop().strip().startswith("not fused")
    assert lines[-2].endswith(f"chosen: {choice.variant.name}")
    assert lines[-1].strip() == f"comm_ctas {choice.comm_ctas}, per SM {choice.ctas_per_sm}"
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["rule", str(number)] for number in range(1, len(lines))
    ]


def test_main_prints_the_choice_and_what_was_passed_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["128", "8192", "1024", "8", "sm_90", "--operand", "fp8e4m3"]) == 0
    output = capsys.readouterr().out
    assert output == explain(Shape(128, 8192, 1024, 8, "sm_90", "bf16", "fp8e4m3")) + "\n"
    assert "chosen: two_shot_fp8e4m3_bf16_w8_split_" in output
    assert "  two_shot: M over 64\n" in output
    arguments = ["16", "8192", "1024", "8", "sm_90", "--processors"]
    for processors in (132, 16):
        assert main([*arguments, str(processors)]) == 0
        shape = Shape(16, 8192, 1024, 8, "sm_90", processors=processors)
        output = capsys.readouterr().out
        assert output == explain(shape) + "\n"
        refused = "two_shot: for ranks of at most 32 multiprocessors\n" in output
        assert refused == (processors == 132)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("512 8192 1024 3 sm_90", "world_size must be one of 1, 2, 4, 8, got 3"),
        ("0 8192 1024 8 sm_90", "tokens must be at least 1, got 0"),
        ("512 8192 1024 8 sm_70", "unknown architecture 'sm_70'; valid: sm_80"),
        ("512 8192 1024 8 sm_86 --operand fp8e4m3", "sm_86 has no FP8 matrix units"),
        ("512 8192 1024 8", "required: arch"),
        ("512 x 1024 8 sm_90", "invalid int value: 'x'"),
        ("512 8192 1024 8 sm_90 --dtype fp32", "invalid choice: 'fp32'"),
        ("512 8192 1024 8 sm_90 --dtype bf16 --operand fp16", "operand fp16 needs dtype fp16"),
    ],
)
def test_main_refuses(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.err and output.out == ""


# ------------------------------------------------------------------ grids


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    algorithm = draw(st.sampled_from(["direct", "one_shot", "two_shot"]))
    ranks = 1 if algorithm == "direct" else draw(st.sampled_from([1, 2, 4, 8]))
    bulk = draw(st.booleans())
    tile = Tile(draw(st.sampled_from([16, 64, 128])), 256, 64, 3, 4, bulk)
    comm_ctas = draw(st.sampled_from([0, 1, 16, 200]))
    return Choice(Variant(algorithm, "bf16", "bf16", ranks, tile), comm_ctas)  # type: ignore[arg-type]


sizes = st.integers(1, 20_000)
resident_ctas = st.integers(1, 2000)


def check_grid(
    choice: Choice, tokens: int, features: int, resident: int, in_order: bool, sharing: int
) -> None:
    grid = plan_grid(choice, tokens, features, resident, in_order=in_order, sharing=sharing)
    tile = choice.variant.tile
    tiles = ceil_div(tokens, tile.block_m) * ceil_div(features, tile.block_n)
    if tile.bulk:
        assert grid.ctas * sharing <= MOST_CTAS, "a CTA without memory for its descriptors"
        resident = min(resident, MOST_CTAS // sharing)
    assert 1 <= grid.gemm_ctas <= min(tiles, grid.ctas), "a CTA without a tile, or no CTA"
    assert 0 <= grid.copy_first < grid.ctas, "nobody copies"
    two_shot = choice.variant.algorithm == "two_shot"
    # With room for one CTA, that one does both.
    if not two_shot or not choice.comm_ctas or (resident == 1 and not in_order):
        assert (grid.gemm_ctas, grid.copy_first) == (grid.ctas, 0)
        assert grid.ctas <= resident
        assert grid.ctas == (1 if in_order and two_shot else min(tiles, resident))
    elif in_order:
        # One CTA for all that waits, and it runs last.
        assert grid.ctas == grid.gemm_ctas + 1 and grid.copy_first == grid.gemm_ctas
        assert grid.ctas <= max(2, resident)
    else:
        assert grid.copy_first == 0, "CTAs that compute must help to copy"
        comm = grid.ctas - grid.gemm_ctas
        assert 1 <= comm <= ceil_div(choice.comm_ctas, sharing), "more than a rank's share"
        assert comm <= max(1, resident // 2), "more CTAs communicate than compute"
        assert grid.ctas <= resident, "CTAs that are not resident would be waited for"


@settings(max_examples=400)
@example(
    Choice(Variant("two_shot", "bf16", "bf16", 8, Tile(128, 256, 64, 3, 8)), 16),
    8192,
    8192,
    1,
    False,
    1,
)
@given(choices(), sizes, sizes, resident_ctas, st.booleans(), st.sampled_from([1, 2, 4, 8]))
def test_plan_grid(
    choice: Choice, tokens: int, features: int, resident: int, in_order: bool, sharing: int
) -> None:
    check_grid(choice, tokens, features, resident, in_order, sharing)


@pytest.mark.parametrize(
    ("page", "command", "shape"),
    [
        (
            "kernels.md",
            "python -m gemm_allreduce.dispatch 33 8192 1024 8 sm_90",
            Shape(33, 8192, 1024, 8, TUNED),
        ),
        (
            "bench.md",
            "invoke bench --explain 16,8192,1024,8,sm_90",
            Shape(16, 8192, 1024, 8, TUNED),
        ),
    ],
)
def test_pages_show_what_explain_says(page: str, command: str, shape: Shape) -> None:
    """A rule more changes the numbers of all behind it."""
    docs = SOURCES.parent.parent / "docs"
    if not docs.is_dir():
        pytest.skip("not in a checkout")
    _, _, behind = (docs / page).read_text().partition(f"$ {command}\n")
    first, _, last = behind.partition("```")[0].partition("...\n")
    said = explain(shape) + "\n"
    assert last
    assert said.startswith(first)
    assert said.endswith(last)
