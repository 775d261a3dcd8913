"""Kernels that Triton compiles when they are first needed, and its interpreter on CPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .launch import (
    Grid,
    Operands,
    Ranks,
    integers_of,
    launch_grid,
    pointers_of,
    require_runnable,
)
from .layout import STATUS_WORDS
from .signature import compile_options, constexprs, kernel_of
from .variants import ROW_BYTES, Variant

if TYPE_CHECKING:
    import torch


class JitKernels:
    """Compiles with the Triton of this environment. ``why``: there are no cubins, or empty."""

    identity = "just in time"

    def __init__(self, why: str = "") -> None:
        self._why = why
        self._ready: dict[Variant, tuple[int, int]] = {}

    def describe(self) -> str:
        """Return one sentence on where the kernels come from."""
        return f"compiled at run time{f': {self._why}' if self._why else ''}"

    def serves(self, variant: Variant) -> bool:
        """Return whether the variant can be compiled and launched."""
        return not variant.multimem

    def prepare(self, variant: Variant, ranks: Ranks) -> bool:
        """Compile and load a kernel; return whether there was something to do.

        Raises: RuntimeError as `launch`; what Triton raises.
        """
        kernel, compiled = _kernel(variant, ranks)
        if not compiled or variant in self._ready:
            return False
        operands = _sample(variant, ranks)
        one = Grid(1, 1, 0)
        made = kernel.warmup(
            *pointers_of(ranks, operands),
            *integers_of(ranks, operands, one, 1),
            grid=(1, 1),
            **constexprs(variant),
            **compile_options(variant),
        )
        made._init_handles()  # else the first launch would load it, which a capture forbids
        self._ready[variant] = (made.n_regs, made.metadata.shared)
        return True

    def resources(self, variant: Variant) -> tuple[int, int] | None:
        """Return registers per thread and shared memory per CTA, bytes; None unless prepared."""
        return self._ready.get(variant)

    def launch(
        self, variant: Variant, ranks: Ranks, operands: Operands, grid: Grid, spin_limit: int
    ) -> None:
        """Launch on the current stream without waiting for it. Checks no shapes.

        Raises:
            RuntimeError: no Triton, neither a CUDA device nor an interpreter that can run it, or
                a multimem variant.
        """
        kernel, compiled = _kernel(variant, ranks)
        options = compile_options(variant) if compiled else {}
        if not compiled and operands.x.shape[-1] % ROW_BYTES:
            # Triton 3.4's interpreter wants descriptors' rows to be 16 elements apart, not bytes.
            variant = replace(variant, tile=replace(variant.tile, bulk=False))
        with _scratch_of(ranks) if compiled and variant.tile.bulk else nullcontext():
            kernel[launch_grid(ranks, grid)](
                *pointers_of(ranks, operands),
                *integers_of(ranks, operands, grid, spin_limit),
                **constexprs(variant),
                **options,
            )


def _kernel(variant: Variant, ranks: Ranks) -> tuple[Any, bool]:
    """Return Triton's function, and whether it is compiled, not interpreted."""
    require_runnable(variant)
    try:
        import triton
    except ImportError as error:
        raise RuntimeError(f"{_no_triton(ranks)}; import triton says: {error}") from error
    kernel = kernel_of(variant)
    if not isinstance(kernel, triton.JITFunction):  # TRITON_INTERPRET=1
        _require_interpretable(variant, ranks)
        return kernel, False
    if ranks.table.device.type != "cuda":
        raise RuntimeError(
            "the kernel needs a CUDA device, or TRITON_INTERPRET=1 set before Triton is "
            f"imported (TRITON_INTERPRET is {os.environ.get('TRITON_INTERPRET')!r}); "
            f"got {ranks.table.device}"
        )
    return kernel, True


def _no_triton(ranks: Ranks) -> str:
    if ranks.table.device.type != "cuda":
        return (
            f"the kernels need a CUDA device, got {ranks.table.device}: on a CPU only Triton's "
            "interpreter can run them (install triton and set TRITON_INTERPRET=1)"
        )
    return "no cubin serves this call, and there is no Triton to compile it"


_allocating = threading.Lock()


@contextmanager
def _scratch_of(ranks: Ranks) -> Iterator[None]:
    """Let Triton's launcher take the heap's scratch for one launch; other allocators stay."""
    import triton
    from triton.runtime import _allocation

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        if size > ranks.scratch.nbytes:
            raise RuntimeError(
                f"a launch wants {size} bytes of scratch; {ranks.scratch.nbytes} are there"
            )
        return ranks.scratch

    with _allocating:
        before = _allocation._allocator  # Triton 3.4: the allocator; later: a ContextVar of it
        if isinstance(before, ContextVar):
            before = before.get()
        triton.set_allocator(allocate)
        try:
            yield
        finally:
            triton.set_allocator(before)


def _sample(variant: Variant, ranks: Ranks) -> Operands:
    """Return operands of the types of a variant, in which nothing is read or written."""
    import torch

    types = {
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp8e4m3": torch.float8_e4m3fn,
        "int8": torch.int8,
    }
    device = ranks.table.device
    x = torch.empty((1, ROW_BYTES), dtype=types[variant.operand], device=device)
    y = torch.empty((1, ROW_BYTES), dtype=types[variant.dtype], device=device)
    scale: torch.Tensor | None = None
    if variant.scaled:
        scale = torch.empty(STATUS_WORDS, dtype=torch.float32, device=device)
    return Operands(x, x, y, x_scale=scale, weight_scale=scale)


def _require_interpretable(variant: Variant, ranks: Ranks) -> None:
    if ranks.virtual and variant.world_size > 1:
        raise RuntimeError(
            "Triton's interpreter runs CTAs one after another: several virtual ranks "
            "would wait for each other; use one process per rank"
        )
    if "bf16" in (variant.dtype, variant.operand) or variant.operand == "fp8e4m3":
        raise RuntimeError(
            "tl.dot on bf16 and on FP8, and rounding to bf16, are wrong in Triton's interpreter; "
            "use fp16"
        )
