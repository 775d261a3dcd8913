"""Fused GEMM + all-reduce: one kernel computes, sends and sums.

`Workspace` and `gemm_allreduce` are the interface, `RowParallelLinear` a layer made of them;
`all_reduce` is the sum alone.
Importing this package loads neither torch nor Triton; docs/kernels.md explains the protocol.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import CubinError, CubinIntegrityError, MissingCubinError
    from .call import gemm_allreduce
    from .linear import RowParallelLinear
    from .reduce import all_reduce
    from .workspace import PeerTimeoutError, Workspace

__version__ = "0.3.0"
__all__ = [
    "CubinError",
    "CubinIntegrityError",
    "MissingCubinError",
    "PeerTimeoutError",
    "RowParallelLinear",
    "Workspace",
    "__version__",
    "all_reduce",
    "gemm_allreduce",
]

_HOMES = {
    "CubinError": "bundle",
    "CubinIntegrityError": "bundle",
    "MissingCubinError": "bundle",
    "all_reduce": "reduce",
    "gemm_allreduce": "call",
    "RowParallelLinear": "linear",
    "PeerTimeoutError": "workspace",
    "Workspace": "workspace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
