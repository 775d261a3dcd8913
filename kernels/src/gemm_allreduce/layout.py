"""Layout of one rank's heap: control words, flags, slots. Plain arithmetic, no torch, no Triton.

Every rank owns one heap of the same layout; a peer's element lies at the same offset in the
peer's heap. From the start of the heap::

    control   256 bytes    int32 words: epoch, arrival counter, status record (see STATUS_FIELDS)
    flags                  int32 [max_tiles, world_size]      one per (tile, source rank)
    slots                  dtype [2, world_size, max_tokens, max_features]

Two slots suffice: a rank that has finished call e needed every rank's partial of e, so every
rank has finished e - 1, and nobody reads the slot that call e + 1 will overwrite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_TOKENS: Final = 64
"""Rows (M) that one-shot serves by default; above this a two-shot algorithm moves fewer bytes."""

CONTROL_BYTES: Final = 256
EPOCH_WORD: Final = 0
ARRIVALS_WORD: Final = 16  # its own 64 bytes: arrivals must not share a line with the epoch
STATUS_WORD: Final = 32
STATUS_FIELDS: Final = ("code", "rank", "tile", "source", "seen", "expected")
"""The words of the status record. ``code`` is 0 (healthy) or STATUS_TIMEOUT."""

STATUS_TIMEOUT: Final = 1

SLOTS: Final = 2
_ALIGNMENT: Final = 256
_FLAG_BYTES: Final = 4


def ceil_div(value: int, divisor: int) -> int:
    """Return value / divisor, rounded up."""
    return -(-value // divisor)


@dataclass(frozen=True)
class HeapLayout:
    """Offsets and sizes, in bytes, of one rank's heap.

    ``block_m`` and ``block_n`` are the smallest tile that will use the heap: they bound the
    number of tiles and with it the number of flags.

    Raises:
        ValueError: a size is not positive, or ``max_features`` is no multiple of ``block_n``.
    """

    world_size: int
    max_tokens: int
    max_features: int
    block_m: int
    block_n: int
    element_bytes: int = 2

    def __post_init__(self) -> None:
        for name in ("world_size", "max_tokens", "max_features", "block_m", "block_n"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.element_bytes != 2:
            raise ValueError(f"element_bytes must be 2 (bf16, fp16), got {self.element_bytes}")
        if self.max_features % self.block_n or self.max_features % 16:
            raise ValueError(
                f"max_features must be a multiple of block_n ({self.block_n}) and of 16, "
                f"got {self.max_features}"
            )

    @property
    def max_tiles(self) -> int:
        """Number of output tiles of the largest call."""
        return ceil_div(self.max_tokens, self.block_m) * (self.max_features // self.block_n)

    @property
    def flags_offset(self) -> int:
        """Offset of the flags, bytes."""
        return CONTROL_BYTES

    @property
    def slots_offset(self) -> int:
        """Offset of the slots, bytes."""
        end = self.flags_offset + self.max_tiles * self.world_size * _FLAG_BYTES
        return ceil_div(end, _ALIGNMENT) * _ALIGNMENT

    @property
    def row_stride(self) -> int:
        """Elements between two rows of a slot."""
        return self.max_features

    @property
    def source_stride(self) -> int:
        """Elements between the partials of two source ranks; never depends on a call's M."""
        return self.max_tokens * self.max_features

    @property
    def total_bytes(self) -> int:
        """Size of the heap, bytes; a multiple of 256."""
        end = self.slots_offset + SLOTS * self.world_size * self.source_stride * self.element_bytes
        return ceil_div(end, _ALIGNMENT) * _ALIGNMENT


def describe_status(status: dict[str, int]) -> str:
    """Return a status record (see layout.STATUS_FIELDS) as one sentence."""
    return (
        f"rank {status['rank']} gave up waiting for rank {status['source']} at tile "
        f"{status['tile']}: its flag is {status['seen']}, expected {status['expected']}; "
        f"rank {status['source']} did not make this call, or stopped in it"
    )
