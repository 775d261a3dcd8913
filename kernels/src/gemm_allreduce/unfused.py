"""The product in a launch of its own, by torch, for calls whose kernel only sums.

At some sizes cuBLAS is so much faster than a product in Triton that fusing does not make up for it.
"""

from __future__ import annotations

from dataclasses import replace

from .launch import Operands


def multiplied(operands: Operands) -> Operands:
    """Queue ``x @ weight.T`` on the current stream; return the operands of a kernel that sums it.

    The product is rounded to y's type, by torch's settings, and lies in y: a kernel that sums reads
    a tile before it writes it. Only where y is the residual too, it takes memory of its own.
    """
    import torch

    y, residual = operands.y, operands.residual
    taken = residual is not None and residual.data_ptr() == y.data_ptr()
    place = torch.empty_like(y) if taken else y
    torch.matmul(operands.x, operands.weight.transpose(-1, -2), out=place)
    return replace(operands, x=place, weight=place)
