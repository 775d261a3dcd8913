"""All ranks of a group in one kernel launch on one GPU: the kernel's correctness test bed.

The ranks' heaps are slices of one tensor, and rank r takes every W-th CTA. The kernel runs the
same instructions as on W GPUs; what this leaves untested is the links. It is no way to serve.

Under Triton's interpreter only one rank works, since it runs the CTAs one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .launch import launch_one_shot
from .layout import (
    ARRIVALS_WORD,
    EPOCH_WORD,
    MAX_TOKENS,
    STATUS_FIELDS,
    STATUS_WORD,
    HeapLayout,
    ceil_div,
    describe_status,
)
from .variants import Variant, find_variant

if TYPE_CHECKING:
    import torch

SPIN_LIMIT: Final = 1 << 22
"""Polls of one flag before a wait gives up; some seconds on a GPU."""

_DTYPE_NAMES: Final = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}


class VirtualRanks:
    """W heaps on one device, and calls of the one-shot kernel over them.

    Calls must be made on one stream. State lives on the device, so calls can be captured in a
    CUDA graph after a first call outside of it has compiled the kernel.

    Args:
        world_size: number of ranks W, one of the table's (1, 2, 4, 8) unless ``variant`` is given.
        dtype: torch.bfloat16 or torch.float16.
        device: where the heaps lie; must be the inputs' device.
        max_features: largest N, in elements.
        max_tokens: largest M, in rows.
        variant: compile-time variant; None takes the table's.
        ctas_per_sm: CTAs per multiprocessor, for the size of the grid; a launch that does not fit
            on the GPU at once fails (cooperative launch).
        first_epoch: int32 value the epoch counter starts at; for tests of its wrap-around.

    Raises:
        ValueError: a size or dtype that the kernel does not support.
        LookupError: the table has no variant for dtype and world_size.
    """

    def __init__(
        self,
        world_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        max_features: int,
        max_tokens: int = MAX_TOKENS,
        variant: Variant | None = None,
        ctas_per_sm: int = 1,
        first_epoch: int = 0,
    ) -> None:
        import torch

        name = _DTYPE_NAMES.get(str(dtype))
        if name is None:
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}")
        self.variant = find_variant(name, world_size) if variant is None else variant
        if (self.variant.dtype, self.variant.world_size) != (name, world_size):
            raise ValueError(
                f"variant {self.variant.name} is not for {name} and {world_size} ranks"
            )
        if ctas_per_sm < 1:
            raise ValueError(f"ctas_per_sm must be at least 1, got {ctas_per_sm}")
        self.world_size = world_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.ctas_per_sm = ctas_per_sm
        self.layout = HeapLayout(
            world_size, max_tokens, max_features, self.variant.block_m, self.variant.block_n
        )
        self.heaps = torch.zeros(
            (world_size, self.layout.total_bytes), dtype=torch.uint8, device=self.device
        )
        words = self.heaps.view(torch.int32)
        flags = slice(self.layout.flags_offset // 4, self.layout.slots_offset // 4)
        words[:, EPOCH_WORD] = first_epoch
        words[:, flags] = first_epoch
        self._table = torch.tensor(
            [heap.data_ptr() for heap in self.heaps], dtype=torch.int64, device=self.device
        )

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor | None = None,
        *,
        spin_limit: int = SPIN_LIMIT,
    ) -> torch.Tensor:
        """Return y [W, M, N]: for every rank the sum over r of ``x[r] @ weight[r].T``.

        Does not wait for the GPU, and does not look at the status: see :meth:`check`.

        Args:
            x: [W, M, K], contiguous, 1 <= M <= max_tokens.
            weight: [W, N, K], contiguous, N a multiple of the variant's block_n, <= max_features.
            out: [W, M, N], contiguous; written and returned when given.
            spin_limit: polls of one flag before a wait gives up.

        Raises:
            ValueError: a shape, dtype, device or layout is not as above.
            RuntimeError: the device can't run it (no GPU; interpreter with more than one rank).
        """
        import torch

        tokens, features = self._check_inputs(x, weight)
        shape = (self.world_size, tokens, features)
        if out is None:
            out = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._check_tensor("out", out, shape)
        launch_one_shot(
            self.variant,
            self.layout,
            x,
            weight,
            out,
            self._table,
            rank=0,
            ctas=self._ctas_per_rank(tokens, features) * self.world_size,
            spin_limit=spin_limit,
            virtual=True,
        )
        return out

    def statuses(self) -> list[dict[str, int] | None]:
        """Return each rank's status record, None where healthy. Waits for the GPU."""
        words = self.control_words()
        records = words[:, STATUS_WORD : STATUS_WORD + len(STATUS_FIELDS)].tolist()
        return [
            dict(zip(STATUS_FIELDS, record, strict=True)) if record[0] else None
            for record in records
        ]

    def epochs(self) -> list[int]:
        """Return each rank's epoch (int32, number of finished calls). Waits for the GPU."""
        epochs: list[int] = self.control_words()[:, EPOCH_WORD].tolist()
        return epochs

    def control_words(self) -> torch.Tensor:
        """Return a CPU copy of the int32 words before the slots, [W, words]."""
        import torch

        return self.heaps.view(torch.int32)[:, : self.layout.slots_offset // 4].cpu()

    def check(self) -> None:
        """Wait for the GPU, then raise if a wait has given up in any call so far.

        Raises:
            TimeoutError: names the rank, tile, source rank, flag seen and flag expected.
        """
        for status in self.statuses():
            if status is not None:
                raise TimeoutError(describe_status(status))
        arrivals = self.control_words()[:, ARRIVALS_WORD]
        if bool((arrivals != 0).any()):
            raise RuntimeError(f"arrival counters are not back at zero: {arrivals.tolist()}")

    def _ctas_per_rank(self, tokens: int, features: int) -> int:
        import torch

        tiles = ceil_div(tokens, self.variant.block_m) * (features // self.variant.block_n)
        if self.device.type != "cuda":
            return tiles
        multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return max(1, min(tiles, multiprocessors * self.ctas_per_sm // self.world_size))

    def _check_inputs(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
        if x.dim() != 3 or weight.dim() != 3:
            raise ValueError(
                f"x must be [W, M, K] and weight [W, N, K], got {tuple(x.shape)} "
                f"and {tuple(weight.shape)}"
            )
        tokens, depth, features = x.shape[1], x.shape[2], weight.shape[1]
        self._check_tensor("x", x, (self.world_size, tokens, depth))
        self._check_tensor("weight", weight, (self.world_size, features, depth))
        if not 1 <= tokens <= self.layout.max_tokens:
            raise ValueError(f"M must be from 1 to {self.layout.max_tokens}, got {tokens}")
        if depth < 1:
            raise ValueError("K must be at least 1")
        if not self.variant.block_n <= features <= self.layout.max_features:
            raise ValueError(
                f"N must be from {self.variant.block_n} to {self.layout.max_features}, "
                f"got {features}"
            )
        if features % self.variant.block_n:
            raise ValueError(f"N must be a multiple of {self.variant.block_n}, got {features}")
        return tokens, features

    def _check_tensor(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != self.dtype:
            raise ValueError(f"{name} must be {self.dtype}, got {tensor.dtype}")
        if tensor.device != self.heaps.device:
            raise ValueError(f"{name} must be on {self.heaps.device}, got {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        if tensor.data_ptr() % 16:
            raise ValueError(f"{name} must start at a multiple of 16 bytes")


def launch_virtual_ranks(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run one call on fresh heaps and wait for it: x [W, M, K], weight [W, N, K] -> y [W, M, N].

    Raises:
        ValueError, LookupError, RuntimeError: as :class:`VirtualRanks`.
        TimeoutError: a wait gave up.
    """
    if x.dim() != 3 or weight.dim() != 3:
        raise ValueError("x must be [W, M, K] and weight [W, N, K]")
    ranks = VirtualRanks(
        x.shape[0],
        dtype=x.dtype,
        device=x.device,
        max_features=weight.shape[1],
        max_tokens=max(x.shape[1], 1),
    )
    y = ranks(x, weight)
    ranks.check()
    return y
