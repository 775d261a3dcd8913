"""Layout of one rank's heap: control words, flags, slots. Plain arithmetic, no torch, no Triton.

Every rank owns one heap of the same layout; a peer's element lies at the same offset in the
peer's heap. All parts start at a multiple of PAGE bytes. From the start of the heap::

    control         PAGE bytes    int32 words: arrivals and epoch, status record
    table           int64 [W]                      address of every rank's heap, in this process
    scratch         DESCRIPTOR_BYTES a CTA         what describes x and weight to bulk copies
    partial flags   int32 [max_tiles, W]     (unit // W, source rank): that partial is in my heap
    result flags    int32 [max_tiles * W]    (unit): that result is in my heap
    slots           dtype [2, W, small area]       one-shot: every rank's partials
      cells         dtype [cell area]              end of each slot; Lamport: a partial, or EMPTY
    receive         dtype [W, owned area]          two-shot: partials of the units that I own
    result          dtype [large area]             two-shot: finished units

A *tile* is what one CTA computes at a time. A *unit* is a tile, or one of W equal row blocks of
it; unit u is owned, that is summed, by rank u % W. Tiles and units lie in their parts one after
another, row by row inside. Areas are counted in elements, rounded up to whole tiles.

Why one receive part, two slots and two cells suffice: docs/kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAGE: Final = 256
"""Bytes; offsets reach the kernels in pages, so that 31 bits suffice and 16-byte access is safe."""

ARRIVALS_WORD: Final = 0
EPOCH_WORD: Final = 1
"""The halves of one 64-bit counter, to which every launch adds 2**32: device.arrive."""
STATUS_WORD: Final = 32
STATUS_FIELDS: Final = ("code", "rank", "tile", "source", "seen", "expected")
"""The words of the status record. ``code`` is 0 (healthy) or one of the codes below."""
GAVE_UP_WORD: Final = STATUS_WORD + len(STATUS_FIELDS)
"""0, or 2 * epoch + 1 of the call in which the first wait of this rank gave up."""
STATUS_WORDS: Final = 8
"""Words between two ranks' status records in the host's copy."""

PARTIAL_LATE: Final = 1
RESULT_LATE: Final = 2
CELL_LATE: Final = 3

EMPTY: Final = -(2**15)
"""An element of a cell, as int16, that has not come: -0.0 in bf16 and in fp16, never sent."""

DESCRIPTOR_BYTES: Final = 256
"""Of one CTA: Triton makes a tensor map of 128 bytes for each of x and weight."""
MOST_CTAS: Final = 1024
"""CTAs of one launch that can have descriptors."""

REFRESH_CALLS: Final = 64
"""One flag word is looked at in every so many calls, and brought up to date where it is old: a
flag that lags by 2**31 calls would look like one from the future."""

SLOTS: Final = 2
SMALL_ROWS: Final = 512
"""One-shot serves up to this many rows over all ranks: 64 a rank at 8 ranks, 256 at 2."""

CELL_ROWS: Final = 128
"""Lamport serves up to this many rows over all ranks: 16 a rank at 8 ranks, 64 at 2."""

TILE_ROWS: Final = 128
TILE_COLUMNS: Final = 256
"""The largest tile; areas are rounded up to it."""
SMALL_TILE_AREA: Final = 16 * 64
LARGE_TILE_AREA: Final = 64 * 64
"""The smallest tiles, in elements, of one hop, and of two-shot: they bound the flags."""

ELEMENT_BYTES: Final = 2
_FLAG_BYTES: Final = 4
_ADDRESS_BYTES: Final = 8


def ceil_div(value: int, divisor: int) -> int:
    """Return value / divisor, rounded up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple that is not below value."""
    return ceil_div(value, multiple) * multiple


@dataclass(frozen=True)
class HeapLayout:
    """Offsets and sizes of one rank's heap.

    Args:
        world_size: number of ranks W, a power of two.
        max_tokens: largest M of one launch, rows.
        max_features: largest N, elements.

    Raises:
        ValueError: a size is not positive, or ``world_size`` is no power of two.
    """

    world_size: int
    max_tokens: int
    max_features: int

    def __post_init__(self) -> None:
        for name in ("world_size", "max_tokens", "max_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.world_size & (self.world_size - 1):
            raise ValueError(f"world_size must be a power of two, got {self.world_size}")
        # The kernels count elements inside a part in 32 bits, and must come round to every flag
        # before it is 2**30 calls old, twice where the rotation starts again at 2**31.
        flags = 2 * self.max_tiles * self.world_size
        if max(self.owned_area, self.small_area) >= 2**31 or flags * REFRESH_CALLS > 2**29:
            raise ValueError(
                f"max_tokens {self.max_tokens} x max_features {self.max_features} is too large"
            )

    @property
    def small_tokens(self) -> int:
        """Largest M that one-shot serves, rows: its slots take the same bytes for every W > 1."""
        return 64 if self.world_size == 1 else max(16, SMALL_ROWS // self.world_size)

    @property
    def cell_tokens(self) -> int:
        """Largest M that Lamport serves, rows."""
        return 32 if self.world_size == 1 else max(16, CELL_ROWS // self.world_size)

    def most_tokens(self, algorithm: str) -> int | None:
        """Return the largest M, and rows of a tile, that an algorithm serves; None: any."""
        return {"one_shot": self.small_tokens, "lamport": self.cell_tokens}.get(algorithm)

    @property
    def cell_area(self) -> int:
        """Elements of one source's cell, the last ones of its slot."""
        return self.cell_tokens * self._columns

    @property
    def _columns(self) -> int:
        return round_up(self.max_features, TILE_COLUMNS)

    @property
    def small_area(self) -> int:
        """Elements of one source's slot."""
        return self.small_tokens * self._columns

    @property
    def large_area(self) -> int:
        """Elements of the result part."""
        return round_up(self.max_tokens, TILE_ROWS) * self._columns

    @property
    def owned_area(self) -> int:
        """Elements that one source may send to one owner: its share, and a unit of remainder."""
        return self.large_area // self.world_size + TILE_ROWS * TILE_COLUMNS

    @property
    def max_tiles(self) -> int:
        """Number of tiles of the call with the most of them."""
        return max(self.small_area // SMALL_TILE_AREA, self.large_area // LARGE_TILE_AREA)

    @property
    def table(self) -> int:
        """Offset of the table of heaps, bytes."""
        return PAGE

    @property
    def scratch(self) -> int:
        """Offset of the descriptors, bytes."""
        return self.table + round_up(self.world_size * _ADDRESS_BYTES, PAGE)

    @property
    def partial_flags(self) -> int:
        """Offset of the partial flags, bytes."""
        return self.scratch + MOST_CTAS * DESCRIPTOR_BYTES

    @property
    def result_flags(self) -> int:
        """Offset of the result flags, bytes."""
        return self.partial_flags + self._flag_bytes

    @property
    def slots(self) -> int:
        """Offset of the one-shot slots, bytes."""
        return self.result_flags + self._flag_bytes

    @property
    def cells(self) -> int:
        """Offset of the first cell, bytes; the next ones are as far apart as slots are."""
        return self.slots + (self.small_area - self.cell_area) * ELEMENT_BYTES

    @property
    def receive(self) -> int:
        """Offset of the receive part, bytes."""
        return self.slots + SLOTS * self.world_size * self.small_area * ELEMENT_BYTES

    @property
    def result(self) -> int:
        """Offset of the result part, bytes."""
        return self.receive + self.world_size * self.owned_area * ELEMENT_BYTES

    @property
    def total_bytes(self) -> int:
        """Size of the heap, bytes; a multiple of PAGE."""
        return self.result + self.large_area * ELEMENT_BYTES

    @property
    def _flag_bytes(self) -> int:
        return round_up(self.max_tiles * self.world_size * _FLAG_BYTES, PAGE)


def describe_status(status: dict[str, int]) -> str:
    """Return a status record (see layout.STATUS_FIELDS) as one sentence."""
    late = "result" if status["code"] == RESULT_LATE else "partial sum"
    seen = f"its flag is {status['seen']}, expected {status['expected']}"
    if status["code"] == CELL_LATE:
        seen = f"{status['seen']} elements have not come in call {status['expected']}"
    return (
        f"rank {status['rank']} gave up waiting for the {late} of rank {status['source']} at tile "
        f"{status['tile']}: {seen}; "
        f"rank {status['source']} did not make this call, stopped in it, or gave up itself"
    )
