"""Reads beyond the end of operands, in Triton's interpreter: they end the process.

Values read there are not always used, so that no result would show them.
"""

from __future__ import annotations

import ctypes
import mmap

import torch
from interpreter_rank import HALF, OneRank, kinds_of

_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_ACCESS = 0


def at_the_end(values: torch.Tensor) -> torch.Tensor:
    """Copy to where the next byte cannot be accessed."""
    size = values.numel() * values.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protected = ctypes.c_void_p(start + pages)
    if _LIBC.mprotect(protected, ctypes.c_size_t(mmap.PAGESIZE), _NO_ACCESS):
        raise OSError(ctypes.get_errno(), "mprotect")
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=pages - size)
    view = raw.view(values.dtype).view(values.shape)
    view.copy_(values)
    return view


def case_sixteen_bits() -> None:
    """x, weight, bias, residual and y end where their memory does."""
    for kind in kinds_of(1):
        for tokens, features, depth in ((1, 8, 8), (17, 72, 40), (33, 136, 24)):
            ones = {
                "x": torch.ones(tokens, depth),
                "weight": torch.ones(features, depth),
                "bias": torch.ones(features),
                "residual": torch.ones(tokens, features),
                "out": torch.zeros(tokens, features),
            }
            operands = {name: at_the_end(values.to(HALF)) for name, values in ones.items()}
            out = operands["out"]
            rank = OneRank(kind.variant, max_features=features)
            rank.launch(**operands, comm_ctas=kind.comm_ctas)
            assert (out == depth + 2).all(), str(kind)


def case_eight_bits() -> None:
    """The scales too."""
    for kind in kinds_of(1, "int8"):
        for tokens, features, depth in ((1, 8, 16), (17, 72, 80)):
            operands = {
                "x": at_the_end(torch.ones(tokens, depth, dtype=torch.int8)),
                "weight": at_the_end(torch.ones(features, depth, dtype=torch.int8)),
                "x_scale": at_the_end(torch.ones(tokens)),
                "weight_scale": at_the_end(torch.ones(features)),
                "out": at_the_end(torch.zeros(tokens, features, dtype=HALF)),
            }
            rank = OneRank(kind.variant, max_features=features)
            rank.launch(**operands, comm_ctas=kind.comm_ctas)
            assert (operands["out"] == depth).all(), str(kind)
