"""Kernels that are compiled all at once, before ranks and tuners ask for each. No GPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("torch")
pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def _kernels_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "kernels" / "src"))


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


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_know_which_kernels_their_checks_ask_for(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from gemm_allreduce.dispatch import Shape, choose
    from smoke_tests.ranks import GPU_SCALE, Ranks

    monkeypatch.setenv("GEMM_AR_CUBINS", "none")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    device = torch.device("cuda", 0)
    ranks = Ranks("virtual", world_size, 0, None, device, lambda: pytest.fail("connected"), 1.0)
    variants = ranks.variants
    assert len(variants) == len(set(variants))
    assert {variant.world_size for variant in variants} == {world_size}
    for m in GPU_SCALE.tokens:
        for dtype in ranks.dtypes:
            assert choose(Shape(m, 8192, 1024, world_size, "sm_90", dtype)).variant in variants  # type: ignore[arg-type]
    if world_size > 1:
        tiles = {variant.tile for variant in variants}
        assert {*GPU_SCALE.tiles, GPU_SCALE.small_tile} <= tiles
