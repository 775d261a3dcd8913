"""Bad input: a clear error on every rank, nothing launched, and the next call works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gemm_allreduce import Workspace, gemm_allreduce
from smoke_tests.checks.registry import GPU, check
from smoke_tests.ranks import Ranks
from smoke_tests.reference import Source, expected


@check()
def bad_input_is_refused_and_the_next_call_works(ranks: Ranks) -> str:
    """Every argument wrong in every way that can be told from it."""
    scale, w = ranks.scale, ranks.world_size
    features, depth = scale.features, scale.depths[0]
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 110)
        full_x = source.integers(workspace.dtype, w, 4, depth)
        full_weight = source.integers(workspace.dtype, w, features, depth)
        x = full_x if ranks.virtual else full_x[ranks.rank]
        weight = full_weight if ranks.virtual else full_weight[ranks.rank]
        wide = torch.cat([weight, weight], dim=-2)
        scales = torch.ones(*x.shape[:-1], device=x.device)
        other = torch.float16 if workspace.dtype == torch.bfloat16 else torch.bfloat16
        y = torch.empty(*x.shape[:-1], features, dtype=workspace.dtype, device=x.device)
        odd = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape)

        def eight_bits(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[..., : depth // 16 * 16].contiguous().to(torch.int8)

        def call(a: torch.Tensor, b: torch.Tensor, **extras: torch.Tensor) -> Callable[[], object]:
            return lambda: gemm_allreduce(a, b, workspace, **extras)

        bad: dict[str, tuple[str, Callable[[], object]]] = {
            "dimensions": ("x must be", call(x[0], weight)),
            "type of x": ("x must be", call(x.float(), weight)),
            "type of weight": ("weight must be", call(x, weight.to(other))),
            "depths differ": ("weight must have shape", call(x[..., :-8].contiguous(), weight)),
            "strided x": ("x must be contiguous", call(x.mT.contiguous().mT, weight)),
            "strided weight": ("weight must be contiguous", call(x, weight.mT.contiguous().mT)),
            "misaligned x": ("x must start at a multiple", call(odd, weight)),
            "K": (
                "K must be a multiple",
                call(x[..., :-1].contiguous(), weight[..., :-1].contiguous()),
            ),
            "N": ("N must be a multiple", call(x, weight[..., :-1, :].contiguous())),
            "N over capacity": ("max_features is only", call(x, wide)),
            "bias": ("bias must have shape", call(x, weight, bias=y[..., 0, :-8].contiguous())),
            "residual": ("residual must have shape", call(x, weight, residual=y[..., :1, :])),
            "out": ("out must have shape", call(x, weight, out=y[..., :2, :])),
            "out overlaps": ("out overlaps weight", lambda: _overlapping(workspace, weight, ranks)),
            "scale without 8 bits": ("go with 8-bit types", call(x, weight, x_scale=scales)),
            "8 bits without scale": (
                "go with 8-bit types",
                call(eight_bits(x), eight_bits(weight)),
            ),
        }
        if ranks.device.type == "cuda":
            bad["device"] = ("x must be on", call(x.cpu(), weight))
        for name, (words, attempt) in bad.items():
            try:
                attempt()
            except ValueError as error:
                assert words in str(error), f"{name}: {error}"
            else:
                raise AssertionError(f"{name} was not refused")
        try:
            with torch.enable_grad():
                gemm_allreduce(x.detach().clone().requires_grad_(), weight, workspace)
        except RuntimeError as error:
            assert "no backward" in str(error), error
        else:
            raise AssertionError("autograd was not refused")
        assert set(workspace.epochs()) == {0}, "a refused call was launched"
        got = ranks.call(workspace, full_x, full_weight)
        want = expected(full_x, full_weight, workspace.dtype)
        ranks.require_equal(got, want, "the next call")
    return f"{len(bad) + 1} refusals"


def _overlapping(workspace: Workspace, weight: torch.Tensor, ranks: Ranks) -> object:
    """A square weight, so that its own memory has the shape of a result."""
    size = min(weight.shape[-1], weight.shape[-2]) // 8 * 8
    square = weight[..., :size, :size].contiguous()
    return gemm_allreduce(square.clone(), square, workspace, out=square)


@check()
def a_closed_workspace_is_refused(ranks: Ranks) -> None:
    """Every use after close is a RuntimeError; a second close does nothing."""
    with ranks.workspace() as workspace:
        pass
    workspace.close()
    x = torch.zeros(4, 16, dtype=workspace.dtype, device=ranks.device)
    weight = torch.zeros(8, 16, dtype=workspace.dtype, device=ranks.device)
    if ranks.virtual:
        x, weight = (
            x[None].repeat(ranks.world_size, 1, 1),
            weight[None].repeat(ranks.world_size, 1, 1),
        )
    for use in (lambda: gemm_allreduce(x, weight, workspace), workspace.check):
        try:
            use()
        except RuntimeError as error:
            assert "closed" in str(error), error
        else:
            raise AssertionError("a closed workspace was used")


@check("cpu", "nvshmem", "symmetric", least_ranks=2)
def settings_that_differ_are_refused_on_every_rank(ranks: Ranks) -> None:
    """One rank with another size or type: all ranks raise, and all can go on."""
    odd_one = ranks.world_size - 1
    same: dict[str, Any] = {"max_tokens": 64, "max_features": 64, "dtype": torch.float16}
    for name, other in (
        ("max_tokens", 128),
        ("max_features", 128),
        ("dtype", torch.bfloat16),
        ("first_epoch", 1),
    ):
        settings = same | ({name: other} if ranks.rank == odd_one else {})
        try:
            Workspace(ranks.connect(), **settings)
        except ValueError as error:
            assert f"{name} differs between ranks" in str(error), error
        else:
            raise AssertionError(f"{name} that differs was not refused")
    bad = same | ({"max_tokens": 0} if ranks.rank == odd_one else {})
    try:
        Workspace(ranks.connect(), **bad)
    except ValueError as error:
        assert f"rank {odd_one}: max_tokens must be at least 1" in str(error), error
    else:
        raise AssertionError("a bad size was not refused on every rank")
    ranks.gather(None)


@check(*GPU)
def a_second_stream_is_refused_until_told(ranks: Ranks) -> None:
    """Calls on two streams could overlap; use_stream moves a workspace."""
    scale, w = ranks.scale, ranks.world_size
    with ranks.workspace() as workspace:
        source = Source(ranks.device, 120)
        x = source.integers(workspace.dtype, w, 16, scale.depths[0])
        weight = source.integers(workspace.dtype, w, scale.features, scale.depths[0])
        want = expected(x, weight, workspace.dtype)
        ranks.call(workspace, x, weight)
        ranks.synchronize()
        second = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(second):
            try:
                ranks.call(workspace, x, weight)
            except RuntimeError as error:
                assert "another stream" in str(error), error
            else:
                raise AssertionError("a second stream was not refused")
            workspace.use_stream(second)
            y = ranks.call(workspace, x, weight)
            second.synchronize()
        ranks.require_equal(y, want, "on the second stream")
