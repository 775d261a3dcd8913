"""A row-parallel linear layer whose all-reduce is part of its matrix product."""

from __future__ import annotations

import torch

from .call import gemm_allreduce
from .workspace import Workspace


class RowParallelLinear(torch.nn.Module):
    """y = all-reduce(x @ weight.T) + bias, for a weight whose input features are spread over ranks.

    Inference only: the parameters take no gradients.

    Args:
        workspace: shared with the model's other fused layers.
        local_features: K of this rank.
        out_features: N.
        bias: whether there is one; it is the same on every rank.

    Attributes:
        weight: [out_features, local_features], the workspace's dtype and device.
        bias: [out_features], or None.
    """

    def __init__(
        self, workspace: Workspace, local_features: int, out_features: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.workspace = workspace
        self.weight = torch.nn.Parameter(
            torch.empty(
                out_features, local_features, dtype=workspace.dtype, device=workspace.device
            ),
            requires_grad=False,
        )
        self.bias: torch.nn.Parameter | None = None
        if bias:
            zeros = torch.zeros(out_features, dtype=workspace.dtype, device=workspace.device)
            self.bias = torch.nn.Parameter(zeros, requires_grad=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return [..., out_features] for x [..., local_features]; residual has y's shape.

        Raises: as `gemm_allreduce`.
        """
        rows = x.reshape(-1, x.shape[-1])
        features = self.weight.shape[0]
        added = None if residual is None else residual.reshape(rows.shape[0], features)
        y = gemm_allreduce(rows, self.weight, self.workspace, self.bias, added)
        return y.view(*x.shape[:-1], features)
