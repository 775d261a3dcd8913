"""Kernels that are compiled all at once, before ranks and tuners ask for each. No GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gemm_allreduce.variants import Variant
    from smoke_tests.ranks import Ranks

pytest.importorskip("torch")
pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("kernels_on_the_path")


def test_kernels_compiled_ahead_are_in_tritons_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one that cannot be compiled: that is told where it is launched."""
    from gemm_allreduce.variants import Tile, Variant
    from smoke_tests.ahead import compile_ahead, text_of, variants_of

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    good = Variant("one_shot", "bf16", "bf16", 2, Tile(16, 64, 64, 2, 4), early=48)
    too_large = Variant("two_shot", "bf16", "bf16", 2, Tile(128, 256, 256, 6, 8), 2)
    assert variants_of(text_of([good, too_large])) == [good, too_large]
    compile_ahead([too_large, good], "sm_90")
    assert len(list(tmp_path.glob("*/gemm_allreduce_one_shot.cubin"))) == 1


def test_what_takes_too_long_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemm_allreduce.dispatch import reachable_variants
    from smoke_tests.ahead import compile_ahead

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variants = reachable_variants("sm_90")
    begin = time.monotonic()
    compile_ahead(variants, "sm_90", limit_s=0.0)
    assert time.monotonic() - begin < 60
    assert len(list(tmp_path.glob("*/*.cubin"))) < len(variants) / 4


def virtual_ranks(
    monkeypatch: pytest.MonkeyPatch, world_size: int, capability: tuple[int, int] = (9, 0)
) -> Ranks:
    """Ranks of a GPU that is not there, to be asked what they would run."""
    import torch

    from smoke_tests.ranks import Ranks

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda", 0)
    return Ranks("virtual", world_size, 0, None, device, lambda: pytest.fail("connected"), 1.0)


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_know_which_kernels_their_checks_ask_for(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemm_allreduce.dispatch import Shape, choose
    from smoke_tests.ranks import GPU_SCALE

    monkeypatch.setenv("GEMM_AR_CUBINS", "none")
    ranks = virtual_ranks(monkeypatch, world_size)
    variants = ranks.variants
    assert len(variants) == len(set(variants))
    assert {variant.world_size for variant in variants} == {world_size}
    for m in GPU_SCALE.tokens:
        for dtype in ranks.dtypes:
            assert choose(Shape(m, 8192, 1024, world_size, "sm_90", dtype)).variant in variants  # type: ignore[arg-type]
    if world_size > 1:
        tiles = {variant.tile for variant in variants}
        assert {*GPU_SCALE.tiles, GPU_SCALE.small_tile} <= tiles


class Bundled:
    """Kernels of a bundle and no compiler: what the dispatch table can choose, no more."""

    def __init__(self, arch: str) -> None:
        from gemm_allreduce.dispatch import reachable_variants

        self.variants = reachable_variants(arch)

    def serves(self, variant: Variant) -> bool:
        return variant in self.variants


@pytest.mark.parametrize("arch", [(8, 0), (9, 0)])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_without_a_compiler_checks_compare_the_tables_own_kernels(
    arch: tuple[int, int], world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tile of the scale need be among them: a tuned table has few."""
    ranks = virtual_ranks(monkeypatch, world_size, arch)
    bundled = Bundled(ranks.arch)
    monkeypatch.setitem(vars(ranks), "kernels", bundled)
    families = ranks.families("bf16")
    for family in families:
        assert len({choice.variant.tile for choice in family.values()}) == 1
    found = {choice.variant for family in families for choice in family.values()}
    assert found == {
        v
        for v in bundled.variants
        if (v.world_size, v.operand, v.product) == (world_size, "bf16", True)
    }
    assert found


def test_with_a_compiler_checks_have_every_algorithm_in_one_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from smoke_tests.ranks import GPU_SCALE

    monkeypatch.setenv("GEMM_AR_CUBINS", "none")
    ranks = virtual_ranks(monkeypatch, 8)
    by_tile = {next(iter(f.values())).variant.tile: f for f in ranks.families("bf16")}
    first, second = (by_tile[tile] for tile in GPU_SCALE.tiles)
    assert {c.variant.algorithm for c in first.values()} == {"one_shot", "two_shot"}
    for family in (first, second):
        two_shot = [c for c in family.values() if c.variant.algorithm == "two_shot"]
        assert {c.variant.split for c in two_shot} == {1, 8}
        assert {c.comm_ctas > 0 for c in two_shot} == {False, True}
        assert {c.variant.early > 0 for c in family.values()} == {False, True}
