"""Counts the accesses to memory in a kernel's machine code, by width. Needs no disassembler.

Instructions have 16 bytes on sm_80 to sm_121. The low 9 bits are the operation, the 3 above them
the form of its operands; bits 73 to 75 say how wide an access is, on Blackwell's asynchronous
copies bits 74 and 75. NVIDIA documents none of this: it was read off nvdisasm for the output of
ptxas 12.4 to 13.4, and tests compare where nvdisasm is at hand.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

INSTRUCTION_BYTES: Final = 16

Access = Literal["load", "store", "copy", "local", "generic", "bulk load", "bulk"]
"""Loads, stores and asynchronous copies (into shared memory) of global memory; local memory;
accesses whose memory the compiler did not know; copies by the tensor memory accelerator: of tiles
into shared memory, and all others."""

_OPERATIONS: Final[dict[int, Access]] = {
    0x181: "load",  # LDG
    0x17E: "load",  # LDG of 32 bytes
    0x186: "store",  # STG
    0x17F: "store",  # STG of 32 bytes
    0x1AE: "copy",  # LDGSTS
    0x183: "local",  # LDL
    0x187: "local",  # STL
    0x180: "generic",  # LD
    0x185: "generic",  # ST
    0x1B4: "bulk load",  # UTMALDG
    0x1B5: "bulk",  # UTMASTG
    0x1BA: "bulk",  # UBLKCP
    0x1BB: "bulk",  # UBLKRED
}
_WIDE: Final = (0x17E, 0x17F)
_LDGSTS: Final = 0x1AE
_WIDTHS: Final = (1, 1, 2, 2, 4, 8, 16, 16)


@dataclass(frozen=True)
class Accesses:
    """How many instructions of each kind and width (bytes; 0 for bulk copies) a kernel has."""

    counts: Mapping[tuple[Access, int], int]

    def of(self, access: Access) -> int:
        """How many there are of a kind."""
        return sum(count for (kind, _), count in self.counts.items() if kind == access)

    def wide(self, access: Access, least: int) -> int:
        """How many of a kind move that many bytes or more."""
        return self.of(access) - self.narrow(access, least)

    def narrow(self, access: Access, below: int) -> int:
        """How many of a kind move fewer bytes than that."""
        return sum(
            n for (kind, width), n in self.counts.items() if kind == access and width < below
        )

    def __str__(self) -> str:
        parts = (f"{n} x {kind} {width}" for (kind, width), n in sorted(self.counts.items()))
        return ", ".join(parts) or "no accesses"


def count_accesses(code: bytes, sm: int) -> Accesses:
    """Count the accesses in machine code.

    Args:
        code: whole instructions.
        sm: compute capability, major * 10 + minor.

    Raises:
        ValueError: the code does not consist of whole instructions, or there is none.
    """
    if not code or len(code) % INSTRUCTION_BYTES:
        raise ValueError(
            f"code of {len(code)} bytes, expected a multiple of {INSTRUCTION_BYTES}: cut off"
        )
    counts: Counter[tuple[Access, int]] = Counter()
    for low, high in struct.iter_unpack("<QQ", code):
        operation = low & 0x1FF
        if access := _OPERATIONS.get(operation):
            counts[access, _width(operation, high, sm)] += 1
    return Accesses(dict(counts))


def _width(operation: int, high: int, sm: int) -> int:
    """Bytes that one thread moves; ``high`` is the instruction's upper half."""
    if operation in _WIDE:
        return 32
    if _OPERATIONS[operation] in ("bulk load", "bulk"):
        return 0
    if operation == _LDGSTS and sm >= 100:
        return 4 << (high >> 10 & 3)
    return _WIDTHS[high >> 9 & 7]
