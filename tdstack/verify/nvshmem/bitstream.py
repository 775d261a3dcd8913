"""LLVM's bitstream container: blocks, records and abbreviations, without LLVM.

Format: "LLVM Bitcode File Format", https://llvm.org/docs/BitCodeFormat.html, sections "Bitstream
Format" and "Bitcode Wrapper Format". Numbers are little-endian; bit 0 of byte 0 comes first.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field

MAGIC = b"BC\xc0\xde"
WRAPPER_MAGIC = b"\xde\xc0\x17\x0b"  # 0x0B17C0DE
WRAPPER_SIZE = 20  # bytes: magic, version, offset, size, CPU type
TOP_WIDTH = 2  # bits of an abbreviation id outside all blocks
BLOCKINFO = 0

END_BLOCK, ENTER_SUBBLOCK, DEFINE_ABBREV, UNABBREV_RECORD = range(4)
FIRST_ABBREV = 4
SETBID = 1
FIXED, VBR, ARRAY, CHAR6, BLOB = range(1, 6)
LITERAL = 0  # this module's own: in the format a literal has no encoding
CHARS6 = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
# The format sets no bounds for these. What LLVM writes is far below; garbage is not.
MAX_WIDTH = 64
MAX_ABBREV_OPERANDS = 256

Data = bytes | mmap.mmap
Operand = tuple[int, int]  # an encoding and its value or width in bits
Abbrevs = dict[int, list[list[Operand]]]  # by id of the block that they hold in


class BitcodeError(Exception):
    """The bytes are no LLVM bitcode, are cut short or damaged, or lack what is asked for."""


@dataclass(frozen=True)
class Record:
    """One record; `blob` holds the bytes that an abbreviation may attach to it."""

    code: int
    operands: list[int]
    blob: bytes = b""


@dataclass(frozen=True)
class Block:
    """A block that begins; `begin` and `end` are the bits that its content lies between."""

    id: int
    width: int
    begin: int
    end: int


@dataclass
class Bits:
    """A place in a stream: bits from `position` up to `end`; words count from `origin`.

    Whatever is read takes bits and ends at `end`, so that no count in the data, however large,
    makes a reader go on for ever.
    """

    data: Data
    origin: int
    position: int
    end: int
    abbrevs: Abbrevs = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Return how many bits are left."""
        return self.end - self.position

    def fixed(self, width: int) -> int:
        """Read a number of `width` bits."""
        begin, self.position = self.position, self.position + width
        if self.position > self.end:
            raise BitcodeError("the bitcode is cut short, or damaged: a number runs past its end")
        value = int.from_bytes(self.data[begin >> 3 : (self.position + 7) >> 3], "little")
        return (value >> (begin & 7)) & ((1 << width) - 1)

    def vbr(self, width: int) -> int:
        """Read a number in chunks of `width` bits, whose highest bit says that one more comes."""
        high, value, shift = 1 << (width - 1), 0, 0
        while True:
            chunk = self.fixed(width)
            value |= (chunk & (high - 1)) << shift
            if not chunk & high:
                return value
            shift += width - 1
            if shift >= MAX_WIDTH:
                raise BitcodeError("the bitcode is damaged: a number of more than 64 bits")

    def align(self) -> None:
        """Go on at the next whole word of 32 bits."""
        self.position += (self.origin - self.position) % 32
        if self.position > self.end:
            raise BitcodeError("the bitcode is cut short: its last word is not whole")

    def enter(self) -> Block:
        """Read a block's head, after its ENTER_SUBBLOCK; go on at its content."""
        name, width = self.vbr(8), self.vbr(4)
        self.align()
        words = self.fixed(32)
        end = self.position + 32 * words
        if end > self.end:
            missing = (end - self.end) // 8
            raise BitcodeError(f"the bitcode is cut short: block {name} lacks {missing} bytes")
        if not 1 <= width <= 32:
            raise BitcodeError(f"the bitcode is damaged: abbreviation ids of {width} bits")
        return Block(name, width, self.position, end)


def open_stream(data: Data) -> Bits:
    """Return the stream behind the magic number, and behind a wrapper if there is one.

    Raises: BitcodeError if the data does not begin as bitcode does.
    """
    begin, end = 0, len(data)
    if data[:4] == WRAPPER_MAGIC and end >= WRAPPER_SIZE:
        begin = int.from_bytes(data[8:12], "little")
        size = int.from_bytes(data[12:16], "little")
        if begin + size > end:
            raise BitcodeError(f"the bitcode is cut short: its wrapper names {begin + size} bytes")
        end = begin + size
    if end - begin < len(MAGIC) or data[begin : begin + 4] != MAGIC:
        raise BitcodeError(f"this is no LLVM bitcode: it begins with {data[begin : begin + 4]!r}")
    return Bits(data, 8 * begin, 8 * (begin + len(MAGIC)), 8 * end)


def blocks(bits: Bits) -> Iterator[Block]:
    """Yield the blocks outside all blocks; each is stepped over before the next is read."""
    # Less than a block's head is padding: some archivers round a file's size up.
    while bits.left >= 64:
        if bits.fixed(TOP_WIDTH) != ENTER_SUBBLOCK:
            raise BitcodeError("the bitcode is damaged: something else where a block should begin")
        block = bits.enter()
        yield block
        bits.position = block.end


def content(bits: Bits, block: Block) -> Iterator[Record | Block]:
    """Yield a block's records and the blocks in it; those are stepped over, unless read meanwhile.

    BLOCKINFO blocks are read and not yielded: their abbreviations are kept in `bits`.
    """
    bits.position = block.begin
    abbrevs = list(bits.abbrevs.get(block.id, []))
    while True:
        if bits.position >= block.end:
            raise BitcodeError(f"the bitcode is damaged: block {block.id} has no end")
        kind = bits.fixed(block.width)
        if kind == END_BLOCK:
            return
        if kind == ENTER_SUBBLOCK:
            inner = bits.enter()
            if inner.id == BLOCKINFO:
                _read_blockinfo(bits, inner)
            else:
                yield inner
            bits.position = inner.end
        elif kind == DEFINE_ABBREV:
            abbrevs.append(_abbreviation(bits))
        elif kind == UNABBREV_RECORD:
            yield _unabbreviated(bits)
        else:
            yield _abbreviated(bits, abbrevs, kind)


def _read_blockinfo(bits: Bits, block: Block) -> None:
    """Learn the abbreviations that BLOCKINFO defines for blocks of other kinds."""
    bits.position = block.begin
    into: list[list[Operand]] | None = None
    while True:
        kind = bits.fixed(block.width)
        if kind == END_BLOCK:
            return
        if kind == DEFINE_ABBREV and into is not None:
            into.append(_abbreviation(bits))
        elif kind == UNABBREV_RECORD:
            record = _unabbreviated(bits)
            if record.code == SETBID and record.operands:
                into = bits.abbrevs.setdefault(record.operands[0], [])
        else:
            raise BitcodeError("the bitcode is damaged: BLOCKINFO holds something else")


def _abbreviation(bits: Bits) -> list[Operand]:
    count = bits.vbr(5)
    if not 1 <= count <= MAX_ABBREV_OPERANDS:
        raise BitcodeError(f"the bitcode is damaged: an abbreviation of {count} operands")
    operands: list[Operand] = []
    for _ in range(count):
        if bits.fixed(1):
            operands.append((LITERAL, bits.vbr(8)))
            continue
        encoding = bits.fixed(3)
        width = bits.vbr(5) if encoding in (FIXED, VBR) else 0
        if not FIXED <= encoding <= BLOB or width > MAX_WIDTH or (encoding == VBR and width == 1):
            raise BitcodeError(f"the bitcode is damaged: encoding {encoding} of {width} bits")
        # A field of no bits is the literal 0, as LLVM reads it.
        operands.append((LITERAL if encoding in (FIXED, VBR) and not width else encoding, width))
    encodings = [encoding for encoding, _ in operands]
    scalars, last = encodings, encodings[-1]
    if len(encodings) >= 2 and encodings[-2] == ARRAY:
        scalars = encodings[:-2]
        if last not in (FIXED, VBR, CHAR6):
            raise BitcodeError("the bitcode is damaged: an array of what takes no bits")
    elif last == BLOB:
        scalars = encodings[:-1]
    if not scalars or ARRAY in scalars or BLOB in scalars:
        raise BitcodeError("the bitcode is damaged: an abbreviation without a code, or misordered")
    return operands


def _unabbreviated(bits: Bits) -> Record:
    code, count = bits.vbr(6), bits.vbr(6)
    return Record(code, [bits.vbr(6) for _ in range(count)])


def _abbreviated(bits: Bits, abbrevs: list[list[Operand]], number: int) -> Record:
    if number - FIRST_ABBREV >= len(abbrevs):
        raise BitcodeError(f"the bitcode is damaged: abbreviation {number} is not defined")
    values: list[int] = []
    blob = b""
    operands = iter(abbrevs[number - FIRST_ABBREV])
    for encoding, width in operands:
        if encoding == ARRAY:
            count, element = bits.vbr(6), next(operands)
            values.extend(_scalar(bits, *element) for _ in range(count))
        elif encoding == BLOB:
            blob = _blob(bits)
        else:
            values.append(_scalar(bits, encoding, width))
    return Record(values[0], values[1:], blob)


def _scalar(bits: Bits, encoding: int, width: int) -> int:
    if encoding == LITERAL:  # whose value stands in the place of a width
        return width
    if encoding == FIXED:
        return bits.fixed(width)
    if encoding == VBR:
        return bits.vbr(width)
    return CHARS6[bits.fixed(6)]


def _blob(bits: Bits) -> bytes:
    size = bits.vbr(6)
    bits.align()
    begin = bits.position >> 3
    bits.position += 8 * size
    bits.align()
    return bits.data[begin : begin + size]
