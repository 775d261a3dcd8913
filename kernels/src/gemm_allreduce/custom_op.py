"""The operator as a torch custom op, for torch.compile and for engines that keep graphs.

``torch.ops.gemm_allreduce.gemm_allreduce`` is `gemm_allreduce` of call.py with a schema and with a
fake implementation. A schema takes no Python objects, so the workspace comes by a handle: a name
under which it was registered. A name, and not a number: torch.compile may make a symbol of a
number, but always takes a string as a constant.

The result is memory of its own, which the caller may overwrite; it never shares memory with an
argument or the workspace. Nothing else is written that a graph could see, so the schema says that
no argument is mutated.

A graph compiler may move, merge or drop calls whose inputs allow it. All ranks must make the same
calls in the same order, so all must compile the same graph; in a model whose layers follow from
each other the inputs leave only one order.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import torch

from .call import gemm_allreduce as _gemm_allreduce
from .variants import ROW_BYTES

if TYPE_CHECKING:
    from .workspace import Workspace

__all__ = ["gemm_allreduce", "register", "unregister", "workspace_of"]

_SCHEMA: Final = (
    "(Tensor x, Tensor weight, str workspace, Tensor? bias=None, Tensor? residual=None, "
    "Tensor? x_scale=None, Tensor? weight_scale=None) -> Tensor"
)

# Weakly: a workspace holds its process group, which must not outlive the user's last use of it.
_REGISTERED: Final[weakref.WeakValueDictionary[str, Workspace]] = weakref.WeakValueDictionary()
_LOCK: Final = threading.Lock()
_COUNT: Final = itertools.count()


def register(workspace: Workspace, name: str = "") -> str:
    """Return the handle by which the operator finds a workspace.

    Args:
        workspace: held weakly; the caller keeps it.
        name: the handle; empty makes one, the same on all ranks if all register in the same order.
            Compiled graphs that are kept on disk hold it: there name it.

    Raises:
        ValueError: the name belongs to another workspace that still lives.
    """
    with _LOCK:
        if not name:
            name = next(n for i in _COUNT if (n := f"workspace-{i}") not in _REGISTERED)
        other = _REGISTERED.get(name)
        if other is not None and other is not workspace:
            raise ValueError(f"{name!r} is the handle of another workspace; unregister it first")
        _REGISTERED[name] = workspace
    return name


def unregister(name: str) -> None:
    """Forget a handle; one that is not known is none. Does not close the workspace."""
    with _LOCK:
        _REGISTERED.pop(name, None)


def workspace_of(name: str) -> Workspace:
    """Return the workspace of a handle.

    Raises: LookupError when none is registered under it, or it is gone.
    """
    found = _REGISTERED.get(name)
    if found is None:
        known = ", ".join(map(repr, sorted(_REGISTERED))) or "none"
        raise LookupError(
            f"no workspace is registered as {name!r} in this process (registered: {known}); call "
            "gemm_allreduce.custom_op.register on every rank, and keep the workspace"
        )
    return found


# Written out: how annotations are read differs between versions of torch.
@torch.library.custom_op("gemm_allreduce::gemm_allreduce", mutates_args=(), schema=_SCHEMA)
def gemm_allreduce(
    x: torch.Tensor,
    weight: torch.Tensor,
    workspace: str,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return ``sum over ranks of x @ weight.T`` (+ bias + residual); see call.py.

    Args:
        x: [M, K_local]; [W, M, K_local] where ranks are virtual. Copied where it is not
            contiguous or not aligned: a compiler may choose another layout than eager code has.
        weight: [N, K_local] (virtual: [W, N, K_local]), contiguous and aligned; never copied.
        workspace: a handle from `register`.
        bias: [N]; copied likewise: loaders that map a file leave it where it lies there.
        residual: [M, N]; copied likewise.
        x_scale: float32 [M] (virtual: [W, M]), for 8-bit types.
        weight_scale: float32 [N] (virtual: [W, N]), for 8-bit types.

    Raises:
        LookupError: no such workspace.
        ValueError, RuntimeError, PeerTimeoutError: as `gemm_allreduce` of call.py. An input that
            requires gradients is refused after the launch, and so on all ranks alike.
    """
    return _gemm_allreduce(
        _packed(x),
        weight,
        workspace_of(workspace),
        None if bias is None else _packed(bias),
        None if residual is None else _packed(residual),
        x_scale=x_scale,
        weight_scale=weight_scale,
    )


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor, or a copy that is contiguous and begins where kernels can load it."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ROW_BYTES else tensor


@gemm_allreduce.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    workspace: str,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return an empty result of the right shape, type and device. Launches nothing."""
    if x.dim() != weight.dim() or x.dim() not in (2, 3):
        raise ValueError(
            f"x must be [M, K] and weight [N, K], or both with the virtual ranks before; got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x has K {x.shape[-1]}, weight {weight.shape[-1]}")
    shape = (*x.shape[:-1], weight.shape[-2])
    return x.new_empty(shape, dtype=workspace_of(workspace).dtype)


def _refuse(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Refuse, after the launch, which all ranks have made: torch asks no earlier."""
    raise RuntimeError("gemm_allreduce has no backward pass: call it under torch.no_grad()")


def _backward(ctx: Any, *gradients: torch.Tensor) -> Any:
    raise AssertionError("the forward pass was refused")


gemm_allreduce.register_autograd(_backward, setup_context=_refuse)
