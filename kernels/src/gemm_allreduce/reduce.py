"""The sum alone: y = sum over ranks of x, by the same kernels, with nothing multiplied.

For what another kernel has computed, and to see what fusing is worth: the same product and the
same all-reduce, in two launches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .call import Checks, overlap
from .launch import Operands

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def all_reduce(
    x: torch.Tensor, workspace: Workspace, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``sum over ranks of x``, the same bits on every rank.

    Summed in float32 in the order of ranks, and rounded once. One epoch of the workspace a launch,
    as a call of `gemm_allreduce`: calls of both may be mixed, in the same order on all ranks. No
    bundle has its kernels: Triton compiles each at its first call, which must not be in a capture.
    With one rank, y is a copy of x.

    Args:
        x: [M, N], with a virtual workspace [W, M, N]; contiguous, of the workspace's dtype;
            M >= 0, N a multiple of 8.
        workspace: of the same ranks.
        out: of x's shape, written and returned; must not overlap x.

    Raises:
        ValueError: a shape, type, device or layout that is not as above. Nothing was launched.
        RuntimeError: closed workspace, second stream, autograd, or no Triton to compile with.
        MissingCubinError: compiling at run time is switched off.
        PeerTimeoutError: an earlier call gave up waiting for a peer.
    """
    import torch

    lead = (workspace.world_size,) if workspace.transport.virtual else ()
    if x.dim() != 2 + len(lead):
        raise ValueError(f"x must be {'[W, M, N]' if lead else '[M, N]'}, got {tuple(x.shape)}")
    tokens, features = x.shape[-2:]
    shape = (*lead, tokens, features)
    check = Checks(workspace)
    check.tensor("x", x, shape, workspace.dtype)
    check.features(features)
    if torch.is_grad_enabled() and x.requires_grad:
        raise RuntimeError("all_reduce has no backward pass: call it under torch.no_grad()")
    if out is None:
        out = torch.empty_like(x)
    else:
        check.tensor("out", out, shape, workspace.dtype)
        if overlap(out, x):
            raise ValueError("out overlaps x, which is still read while out is written")
    workspace.require_usable()
    if workspace.world_size == 1:
        return out.copy_(x)
    most = workspace.layout.max_tokens
    for first in range(0, tokens, most):
        rows = slice(first, min(first + most, tokens))
        # Rows of virtual ranks are not contiguous: those are copied.
        given, part = x[..., rows, :].contiguous(), out[..., rows, :].contiguous()
        workspace.run(Operands(given, given, part), product=False)
        if part.data_ptr() != out[..., rows, :].data_ptr():
            out[..., rows, :] = part
    return out
