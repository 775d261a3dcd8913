"""Refusals of the sum alone, and the sum of one rank. No kernel runs here."""

from __future__ import annotations

import torch

from gemm_allreduce import Workspace, all_reduce
from gemm_allreduce.transports import Heap
from gemm_allreduce.transports.virtual import VirtualTransport

HALF = torch.float16
FEATURES = 64


class OneProcess(VirtualTransport):
    """One rank that is not virtual: operands without a leading dimension."""

    virtual = False

    def allocate(self, nbytes: int) -> Heap:
        heap = super().allocate(nbytes)
        return Heap(heap.own[0], heap.addresses)


def workspace_of(transport: VirtualTransport) -> Workspace:
    return Workspace(transport, max_tokens=64, max_features=FEATURES, dtype=HALF)


def case_arguments_that_are_not_as_said() -> None:
    workspace = workspace_of(OneProcess(1, "cpu"))
    x = torch.ones(80, FEATURES, dtype=HALF)
    shifted = torch.ones(FEATURES * 9 + 1, dtype=HALF)[1:].view(9, FEATURES)
    for given, out, words in (
        (x[None], None, "x must be [M, N], got (1, 80, 64)"),
        (x.float(), None, "x must be torch.float16, got torch.float32"),
        (x[:, :8], None, "x must be contiguous"),
        (shifted, None, "x must start at a multiple of 16 bytes"),
        (x[:, :12].contiguous(), None, "N must be a multiple of 8, got 12"),
        (torch.ones(4, 72, dtype=HALF), None, "N is 72, the workspace's max_features is only 64"),
        (x, x[:40], "out must have shape (80, 64), got (40, 64)"),
        (x[:40], x[20:60], "out overlaps x"),
        (x, x, "out overlaps x"),
    ):
        try:
            all_reduce(given, workspace, out)
        except ValueError as caught:
            assert words in str(caught), caught
        else:
            raise AssertionError(f"not refused: {words}")
    assert workspace.epochs() == [0]
    workspace.close()
    for error, attempt in (
        (RuntimeError, lambda: all_reduce(x, workspace)),
        (ValueError, lambda: all_reduce(x, workspace_of(VirtualTransport(1, "cpu")))),
    ):
        try:
            attempt()
        except error:
            continue
        raise AssertionError("not refused")


def case_gradients_are_refused() -> None:
    workspace = workspace_of(OneProcess(1, "cpu"))
    x = torch.ones(4, FEATURES, dtype=HALF, requires_grad=True)
    try:
        all_reduce(x, workspace)
    except RuntimeError as caught:
        assert "no backward pass" in str(caught)
    else:
        raise AssertionError("not refused")
    with torch.no_grad():
        assert torch.equal(all_reduce(x, workspace), x)


def case_one_rank_is_a_copy() -> None:
    workspace = workspace_of(VirtualTransport(1, "cpu"))
    x = torch.randn(1, 80, FEATURES).to(HALF)
    out = torch.empty_like(x)
    assert all_reduce(x, workspace, out) is out and torch.equal(out, x)
    y = all_reduce(x, workspace)
    assert torch.equal(y, x) and y.data_ptr() != x.data_ptr()
    assert workspace.epochs() == [0]
