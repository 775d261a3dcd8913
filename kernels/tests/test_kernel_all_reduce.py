"""The sum alone: ranks as processes in Triton's interpreter, and which kernel is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_kernel_interpreter import HERE, TIME_LIMIT, environment, needs_interpreter

from gemm_allreduce.dispatch import ARCHS, Shape, choose, sum_only


@needs_interpreter
def test_two_ranks_sum_whatever_the_algorithm_and_whoever_multiplied(tmp_path: Path) -> None:
    w = 2
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "all_reduce_rank.py"), str(tmp_path), str(rank), str(w)],
            env=environment(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(w)
    ]
    said = [process.communicate(timeout=TIME_LIMIT) for process in started]
    assert [p.returncode for p in started] == [0] * w, said[0][1][-2000:] + said[1][1][-2000:]
    found = [json.loads(out) for out, _ in said]
    assert found[0] == found[1]
    for name in ("table", "communication CTAs", "split", "not fused", "not fused, split"):
        assert found[0][name] == [], name
    # No launch for M 0, two for more rows than the workspace has, one for the product between.
    assert found[0]["epochs of table"] == [6]
    algorithms = {name.partition("_fp16")[0] for name in found[0]["kernels of table"]}
    assert algorithms == {"lamport", "one_shot"}
    assert all("_given_" in name for name in found[0]["kernels of table"])
    for name, split in (("communication CTAs", ""), ("not fused, split", "_split")):
        assert found[0][f"kernels of {name}"] == [
            f"two_shot_fp16_w2{split}_given_64x128x32_stages1_warps4"
        ]
    # One launch a call: none for M 0, two for more rows than the workspace has, three times each.
    assert found[0]["epochs of not fused"] == [3 * (0 + 1 + 1 + 2)]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_it_is_the_kernel_of_the_same_call_without_what_a_product_needs(
    arch: str, ranks: int
) -> None:
    for tokens in (1, 17, 65, 257, 8192):
        fused = choose(Shape(tokens, 8192, 1024, ranks, arch))
        alone = sum_only(fused)
        assert (alone.comm_ctas, alone.ctas_per_sm) == (fused.comm_ctas, fused.ctas_per_sm)
        variant, tile = alone.variant, alone.variant.tile
        assert (variant.product, tile.bulk, tile.num_stages) == (False, False, 1)
        same = (variant.algorithm, variant.split, tile.block_m, tile.block_n, tile.num_warps)
        of = fused.variant
        assert same == (of.algorithm, of.split, of.tile.block_m, of.tile.block_n, of.tile.num_warps)


def test_one_rank_has_nothing_to_sum() -> None:
    with pytest.raises(ValueError, match="direct does nothing but a product"):
        sum_only(choose(Shape(16, 8192, 1024, 1, "sm_90")))
