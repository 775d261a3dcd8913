"""All ranks in one launch on one GPU, against cuBLAS's batched product and a launch that sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gemm_allreduce import Workspace, all_reduce, gemm_allreduce
from gemm_allreduce.dispatch import Choice, Shape, choose
from gemm_allreduce.kernels import Mode
from gemm_allreduce.transports.virtual import VirtualTransport
from smoke_tests.measure.bench import FUSED, OWN, RanksKind, Way
from smoke_tests.measure.inputs import DTYPE, Flusher, normal
from smoke_tests.reference import bound


class VirtualBench:
    """W ranks, their weights stacked [W, N, K]."""

    kind: RanksKind = "virtual"
    rank = 0

    def __init__(
        self,
        world_size: int,
        device: torch.device,
        max_tokens: int,
        max_features: int,
        *,
        dispatch: Callable[[Shape], Choice] = choose,
        kernels: Mode = "auto",
    ) -> None:
        self.world_size = world_size
        self._device = device
        transport = VirtualTransport(world_size, device)
        self.workspace = Workspace(
            transport,
            max_tokens=max_tokens,
            max_features=max_features,
            dispatch=dispatch,
            kernels=kernels,
        )
        self.flush = Flusher(device)
        self._sum = _sum_way()
        self.missing = self._without_own()
        self._weights: list[torch.Tensor] = []
        self._x = torch.empty(0)

    def _without_own(self) -> dict[str, str]:
        """Return why the package's own all-reduce cannot be had, by its name; or nothing."""
        parts = torch.zeros(self.world_size, 8, 64, dtype=DTYPE, device=self._device)
        try:
            all_reduce(parts, self.workspace)
        except RuntimeError as error:  # nothing to compile it with, or that may
            return {OWN: f"{type(error).__name__}: {error}"}
        return {}

    def gather(self, value: Any) -> list[Any]:
        """Return the value of the one process."""
        return [value]

    def load(self, n: int, k: int, copies: int, tokens: Sequence[int]) -> None:
        """Make the weights, and load the kernels."""
        self._weights.clear()
        for copy in range(copies):
            self._weights.append(normal(self._device, copy, self.world_size, n, k))
        self.workspace.warmup([(n, k)], tokens=tokens)

    def ways(self, m: int) -> list[Way]:
        """Return fused, serial, with several ranks own, and with one cuBLAS alone."""
        weights, w = self._weights, self.world_size
        n, k = weights[0].shape[1:]
        self._x = x = normal(self._device, 1000 + m, w, m, k)
        parts, y = (torch.empty(w, m, n, dtype=DTYPE, device=self._device) for _ in range(2))
        fused_y, own_y = torch.empty_like(y), torch.empty_like(y)

        def fused(copy: int) -> torch.Tensor:
            return gemm_allreduce(x, weights[copy], self.workspace, out=fused_y)

        def serial(copy: int) -> torch.Tensor:
            torch.bmm(x, weights[copy].transpose(1, 2), out=parts)
            self._sum[1](parts, y)
            return y

        def own(copy: int) -> torch.Tensor:
            torch.bmm(x, weights[copy].transpose(1, 2), out=parts)
            return all_reduce(parts, self.workspace, own_y)

        def alone(copy: int) -> torch.Tensor:
            return torch.mm(x[0], weights[copy][0].T, out=y[0])

        found = [Way(FUSED, fused), Way(self._sum[0], serial)]
        if w == 1:
            return [*found, Way("cublas", alone)]
        return found if self.missing else [*found, Way(f"cublas+{OWN}", own)]

    def reference(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the rows must be, and the bound."""
        return bound(self._x[:, list(rows)], self._weights[0], DTYPE)

    def align(self) -> None:
        """There is one device."""

    def close(self) -> None:
        """Check that no wait gave up, and free everything."""
        self.workspace.check()
        self.workspace.close()
        self._weights.clear()


def _sum_way() -> tuple[str, Callable[[torch.Tensor, torch.Tensor], None]]:
    """One kernel, where Triton can compile it; else torch's two."""
    try:
        from smoke_tests.measure.sum_kernel import sum_to_all
    except Exception:  # where there is no Triton, or one that needs another environment
        return "cublas+torch sum", _torch_sum
    return "cublas+sum kernel", sum_to_all


def _torch_sum(parts: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(parts.sum(0).expand_as(out))
