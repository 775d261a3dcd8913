"""When layers and calls are fused: the conditions, one by one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gemm_allreduce.integrations.conditions import (
    Call,
    Layer,
    Served,
    Tokens,
    why_declined,
    why_native,
)

BF16 = "torch.bfloat16"
LAYER = Layer("torch.nn.Linear", True, 8192, 29568, BF16, "cuda:0", None, tuple(range(8)))
SERVED = Served(BF16, "cuda:0", 8192, tuple(range(8)))
CALL = Call(16, BF16, local=True, grad=False, autocast=False, open=True)


def test_qwen2_72b_at_eight_ranks_is_armed() -> None:
    assert why_declined(LAYER, SERVED) == ""
    assert why_declined(replace(LAYER, depth=8192, bias_dtype=BF16), SERVED) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"plain": False, "kind": "quant.Linear8bit"}, "quant.Linear8bit, not a plain"),
        ({"ranks": (0, 1)}, r"ranks are \(0, 1\)"),
        # The same ranks in another order: shards would meet the wrong peers' bias and order.
        ({"ranks": (1, 0, 2, 3, 4, 5, 6, 7)}, r"ranks are \(1, 0"),
        ({"device": "cpu"}, "it is on cpu, the workspace on cuda:0"),
        ({"dtype": "torch.float16"}, "its weight is torch.float16"),
        ({"bias_dtype": "torch.float32"}, "its bias is torch.float32"),
        ({"features": 8200}, "max_features 8192"),
        ({"features": 8188}, "N is 8188, no multiple of 8"),
        # A multiple of the ranks, but not of 8 on each: K 3700.
        ({"depth": 29600}, "K is 29600, no multiple of 8 x 8 ranks"),
        # Not even of the ranks: shards would differ in size.
        ({"depth": 29572}, "no multiple of 8 x 8 ranks"),
    ],
)
def test_a_layer_is_declined_with_its_reason(changes: dict[str, object], says: str) -> None:
    assert re.search(says, why_declined(replace(LAYER, **changes), SERVED))


def test_a_workspace_of_other_or_virtual_ranks_declines_all() -> None:
    assert "virtual" in why_declined(LAYER, replace(SERVED, virtual=True))
    assert "unknown" in why_declined(LAYER, replace(SERVED, ranks=()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"tokens": 2}, ""),
        ({"tokens": 64}, ""),
        ({"tokens": 1}, "fewer than 2 rows"),
        ({"tokens": 65}, "more than 64 rows"),
        ({"grad": True}, "grad mode is on"),
        ({"autocast": True}, "autocast is on"),
        ({"local": False}, "x is not a local shard"),
        ({"dtype": "torch.float32"}, "x is torch.float32"),
        ({"open": False, "grad": True}, "the workspace is closed"),
    ],
)
def test_a_call_is_native_with_its_reason(changes: dict[str, object], why: str) -> None:
    assert why_native(replace(CALL, **changes), BF16, Tokens(2, 64)) == why


def test_no_rows_are_never_fused_and_without_a_limit_any_number_is() -> None:
    assert why_native(replace(CALL, tokens=0), BF16, Tokens()) == "fewer than 1 rows"
    assert why_native(replace(CALL, tokens=10**6), BF16, Tokens()) == ""


@pytest.mark.parametrize(("least", "most"), [(0, None), (-1, 4), (5, 4)])
def test_a_range_that_is_none(least: int, most: int | None) -> None:
    with pytest.raises(ValueError, match="no range of rows"):
        Tokens(least, most)
