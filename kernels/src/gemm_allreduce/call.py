"""The operator: y = sum over ranks of x @ weight.T, checked, split and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .launch import Operands
from .variants import ROW_BYTES

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

_SCALED: Final = ("torch.float8_e4m3fn", "torch.int8")


def gemm_allreduce(
    x: torch.Tensor,
    weight: torch.Tensor,
    workspace: Workspace,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``sum over ranks of x @ weight.T`` (+ bias + residual), the same bits on every rank.

    Does not wait for the device; a wait for a peer that gave up shows at the next call, or in
    `Workspace.check`. Inference only. With a virtual workspace x, weight, their scales and the
    result have a leading dimension W; bias and residual do not.

    Args:
        x: [M, K_local], M >= 0, contiguous: the workspace's dtype, float8_e4m3fn or int8.
        weight: [N, K_local], contiguous, the dtype of x; N a multiple of 8, and rows of a
            multiple of 16 bytes (K a multiple of 8, of 16 for 8-bit types).
        workspace: of the same ranks.
        bias: [N], the workspace's dtype, the same on all ranks; added once.
        residual: [M, N], the workspace's dtype, the same on all ranks; added once.
        out: [M, N], written and returned; may be `residual`.
        x_scale: float32 [M], for 8-bit types: x is x_scale[:, None] * the given values.
        weight_scale: float32 [N], for 8-bit types: weight is weight_scale[:, None] * the given.

    Raises:
        ValueError: a shape, type, device or layout that is not as above. Nothing was launched:
            if the other ranks refuse it too, the next call works.
        RuntimeError: closed workspace, second stream, autograd, or a device that can't run it.
        PeerTimeoutError: an earlier call gave up waiting for a peer.
    """
    import torch

    lead = (workspace.world_size,) if workspace.transport.virtual else ()
    if x.dim() != 2 + len(lead) or weight.dim() != 2 + len(lead):
        raise ValueError(
            f"x must be {'[W, M, K]' if lead else '[M, K]'} and weight "
            f"{'[W, N, K]' if lead else '[N, K]'}, got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    (tokens, depth), features = x.shape[-2:], weight.shape[-2]
    scaled = str(x.dtype) in _SCALED
    if not scaled and x.dtype != workspace.dtype:
        raise ValueError(
            f"x must be {workspace.dtype}, as the workspace is, or {', '.join(_SCALED)}; "
            f"got {x.dtype}"
        )
    check = Checks(workspace)
    check.tensor("x", x, (*lead, tokens, depth), x.dtype)
    check.tensor("weight", weight, (*lead, features, depth), x.dtype)
    check.multiple("K", depth, ROW_BYTES // x.element_size())
    check.features(features)
    if scaled != (x_scale is not None) or scaled != (weight_scale is not None):
        raise ValueError("x_scale and weight_scale go with 8-bit types, both of them, only there")
    if x_scale is not None and weight_scale is not None:
        check.tensor("x_scale", x_scale, (*lead, tokens), torch.float32)
        check.tensor("weight_scale", weight_scale, (*lead, features), torch.float32)
    if bias is not None:
        check.tensor("bias", bias, (features,), workspace.dtype)
    if residual is not None:
        check.tensor("residual", residual, (tokens, features), workspace.dtype)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, residual)
    ):
        raise RuntimeError("gemm_allreduce has no backward pass: call it under torch.no_grad()")
    shape = (*lead, tokens, features)
    if out is None:
        out = torch.empty(shape, dtype=workspace.dtype, device=workspace.device)
    else:
        check.tensor("out", out, shape, workspace.dtype)
        for name, other in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
            if other is None or (name == "residual" and _same(out, other)):
                continue
            if overlap(out, other):
                raise ValueError(f"out overlaps {name}, which is still read while out is written")
    workspace.require_usable()
    most = workspace.layout.max_tokens
    if tokens <= most:
        if tokens:
            workspace.run(Operands(x, weight, out, bias, residual, x_scale, weight_scale))
        return out
    for first in range(0, tokens, most):
        rows = slice(first, min(first + most, tokens))
        _run_rows(workspace, x, weight, out, bias, residual, x_scale, weight_scale, rows)
    return out


def _run_rows(
    workspace: Workspace,
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    rows: slice,
) -> None:
    """Run some rows of a call. Rows of virtual ranks are not contiguous: those are copied."""
    part = out[..., rows, :].contiguous()
    scale = None if x_scale is None else x_scale[..., rows].contiguous()
    if scale is not None and scale.data_ptr() % ROW_BYTES:
        scale = scale.clone()
    workspace.run(
        Operands(
            x[..., rows, :].contiguous(),
            weight,
            part,
            bias,
            None if residual is None else residual[rows],
            scale,
            weight_scale,
        )
    )
    if part.data_ptr() != out[..., rows, :].data_ptr():
        out[..., rows, :] = part


class Checks:
    """Refusals that name the argument, what it must be, and what it is."""

    def __init__(self, workspace: Workspace) -> None:
        self._device = workspace.device
        self._max_features = workspace.layout.max_features

    def tensor(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.device != self._device:
            raise ValueError(f"{name} must be on {self._device}, got {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")
        if tensor.data_ptr() % ROW_BYTES:
            raise ValueError(f"{name} must start at a multiple of {ROW_BYTES} bytes")

    @staticmethod
    def multiple(name: str, value: int, divisor: int) -> None:
        if value < divisor or value % divisor:
            raise ValueError(f"{name} must be a multiple of {divisor}, got {value}")

    def features(self, features: int) -> None:
        self.multiple("N", features, ROW_BYTES // 2)
        if features > self._max_features:
            raise ValueError(
                f"N is {features}, the workspace's max_features is only {self._max_features}"
            )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    first, second = one.data_ptr(), other.data_ptr()
    return (
        first < second + other.numel() * other.element_size()
        and second < first + one.numel() * one.element_size()
    )
