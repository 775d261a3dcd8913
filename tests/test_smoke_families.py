"""The check that compares kernels of one tile, where kernels serve few rows only. Without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import needs_torch

pytestmark = [needs_torch, pytest.mark.usefixtures("kernels_on_the_path")]


def _asked_for(families: list[dict[str, Any]], world_size: int = 4) -> list[int]:
    """Run the check on ranks whose kernels give zeros; return the values of M that it called."""
    import torch

    from gemm_allreduce.layout import HeapLayout
    from smoke_tests.checks.results import ranks_runs_and_algorithms_agree_bit_for_bit
    from smoke_tests.ranks import CPU_SCALE, Ranks

    called: list[int] = []

    @contextmanager
    def workspace(dtype: str, **_: object) -> Iterator[SimpleNamespace]:
        layout = HeapLayout(world_size, CPU_SCALE.max_tokens, CPU_SCALE.features)
        yield SimpleNamespace(dtype=torch.float16, layout=layout)

    def call(_: object, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        called.append(x.shape[1])
        return torch.zeros(1, x.shape[1], weight.shape[1])

    ranks = SimpleNamespace(
        scale=CPU_SCALE,
        world_size=world_size,
        dtypes=("fp16",),
        device=torch.device("cpu"),
        local=[0],
        families=lambda _: families,
        workspace=workspace,
        call=call,
        gather=lambda value: [value],
    )
    ranks.most_tokens = lambda choice: Ranks.most_tokens(ranks, choice)  # type: ignore[arg-type]
    ranks_runs_and_algorithms_agree_bit_for_bit(ranks)  # type: ignore[arg-type]
    return called


def test_a_tile_that_only_few_rows_have_is_compared_with_few_rows() -> None:
    from gemm_allreduce.dispatch import Choice
    from gemm_allreduce.variants import Tile, Variant

    def choice(algorithm: str, tile: Tile) -> Choice:
        return Choice(Variant(algorithm, "fp16", "fp16", 4, tile))  # type: ignore[arg-type]

    few, more = Tile(16, 64, 128, 8, 4), Tile(64, 64, 64, 8, 4)
    alone = {"lamport": choice("lamport", few)}
    assert _asked_for([alone]) == [1, 1, 17, 17], "twice each; cells hold 32 rows"
    assert _asked_for([alone, {"one_shot": choice("one_shot", more)}])[-2:] == [64, 64]


def test_without_a_kernel_there_is_nothing_to_pass() -> None:
    with pytest.raises(AssertionError, match="no kernel to compare"):
        _asked_for([{}])
