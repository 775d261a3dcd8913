"""A writer of small LLVM bitstreams, for the tests of the reader in tdstack/verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

MAGIC = b"BC\xc0\xde"
NAME = "nvshmemi_device_lib_version_d"
CHARS6 = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._"
BLOCKINFO, MODULE, CONSTANTS, FUNCTION_BLOCK, IDENTIFICATION, STRTAB = 0, 8, 11, 12, 13, 23
VERSION, GLOBALVAR, FUNCTION, ALIAS = 1, 7, 8, 14
SETTYPE, NULL, UNDEF, INTEGER, AGGREGATE, CSTRING, DATA = 1, 2, 3, 4, 7, 9, 22

Encoding = Literal["literal", "fixed", "vbr", "array", "char6", "blob"]
Abbrev = Sequence[tuple[Encoding, int]]
CODES: dict[Encoding, int] = {"fixed": 1, "vbr": 2, "array": 3, "char6": 4, "blob": 5}


class Writer:
    """Bits, the first one lowest."""

    def __init__(self) -> None:
        self.value, self.length, self.width = 0, 0, 2

    def fixed(self, value: int, width: int) -> None:
        assert 0 <= value < 1 << width or value == width == 0
        self.value |= value << self.length
        self.length += width

    def vbr(self, value: int, width: int) -> None:
        high = 1 << (width - 1)
        while value >= high:
            self.fixed(value % high | high, width)
            value //= high
        self.fixed(value, width)

    def align(self) -> None:
        self.length += -self.length % 32

    def tobytes(self) -> bytes:
        return self.value.to_bytes((self.length + 7) // 8, "little")

    @contextmanager
    def block(self, name: int, width: int = 3) -> Iterator[None]:
        outer = self.width
        self.fixed(1, outer)
        self.vbr(name, 8)
        self.vbr(width, 4)
        self.align()
        at = self.length
        self.length += 32
        self.width = width
        yield
        self.fixed(0, width)
        self.align()
        self.value |= ((self.length - at) // 32 - 1) << at
        self.width = outer

    def define(self, abbrev: Abbrev) -> None:
        self.fixed(2, self.width)
        self.vbr(len(abbrev), 5)
        for encoding, value in abbrev:
            self.fixed(encoding == "literal", 1)
            if encoding == "literal":
                self.vbr(value, 8)
            else:
                self.fixed(CODES[encoding], 3)
                if encoding in ("fixed", "vbr"):
                    self.vbr(value, 5)

    def record(self, *values: int) -> None:
        """Write code and operands without an abbreviation."""
        self.fixed(3, self.width)
        self.vbr(values[0], 6)
        self.vbr(len(values) - 1, 6)
        for value in values[1:]:
            self.vbr(value, 6)

    def abbreviated(self, number: int, abbrev: Abbrev, values: Sequence[int]) -> None:
        """Write code and operands as abbreviation `number`, counted from 0, has it."""
        self.fixed(4 + number, self.width)
        left = list(values)
        operands = iter(abbrev)
        for encoding, width in operands:
            if encoding == "array":
                self.vbr(len(left), 6)
                element, element_width = next(operands)
                for value in left:
                    self._scalar(element, element_width, value)
                left = []
            elif encoding == "blob":
                self.vbr(len(left), 6)
                self.align()
                for value in left:
                    self.fixed(value, 8)
                self.align()
                left = []
            else:
                self._scalar(encoding, width, left.pop(0))
        assert not left

    def _scalar(self, encoding: Encoding, width: int, value: int) -> None:
        if encoding == "literal":
            assert value == width
        elif encoding == "fixed":
            self.fixed(value, width)
        elif encoding == "vbr":
            self.vbr(value, width)
        else:
            self.fixed(CHARS6.index(chr(value)), 6)


def rotated(value: int) -> int:
    """Return an integer constant's operand: the sign is its lowest bit."""
    return -value << 1 | 1 if value < 0 else value << 1


# How LLVM itself abbreviates constants, and one variable, whose name lies in the string table.
CONSTANT_ABBREVS: dict[int, Abbrev] = {
    SETTYPE: (("literal", SETTYPE), ("fixed", 7)),
    INTEGER: (("literal", INTEGER), ("vbr", 8)),
    NULL: (("literal", NULL),),
    AGGREGATE: (("literal", AGGREGATE), ("array", 0), ("fixed", 12)),
    CSTRING: (("literal", CSTRING), ("array", 0), ("char6", 0)),
}
GLOBAL_ABBREV: Abbrev = (
    ("literal", GLOBALVAR),
    ("vbr", 8),
    ("vbr", 8),
    ("fixed", 7),
    ("vbr", 6),
    ("vbr", 6),
    ("fixed", 5),
)
STRTAB_ABBREV: Abbrev = (("literal", 1), ("blob", 0))


@dataclass
class Module:
    """A module to write.

    `before` and `after` name what is declared around the version's variable: a name that begins
    with g is a variable, f a function, a an alias. `constants` are the records of the
    constants; an operand that is a string "#n" stands for the number of constant n, and
    `initializer` is such an n, or None for a declaration.
    """

    constants: list[tuple[int | str, ...]] = field(default_factory=list)
    initializer: int | None = 0
    before: Sequence[str] = ("g_first", "f_second", "a_third")
    after: Sequence[str] = ("f_last",)
    abbreviate: Literal["none", "blockinfo", "local"] = "blockinfo"
    name: str = NAME
    version: int = 2
    split: int = 10**6  # constants from this one on stand in a second block

    def tobytes(self) -> bytes:
        writer = Writer()
        for byte in MAGIC:
            writer.fixed(byte, 8)
        with writer.block(IDENTIFICATION, 5):
            writer.record(1, *b"LLVM18.1.8")
            writer.record(2, 0)
        names: list[str] = []
        with writer.block(MODULE):
            self._module(writer, names)
        with writer.block(STRTAB):
            writer.define(STRTAB_ABBREV)
            writer.abbreviated(0, STRTAB_ABBREV, [1, *"".join(names).encode()])
        return writer.tobytes()

    def _module(self, writer: Writer, names: list[str]) -> None:
        writer.record(VERSION, self.version)
        if self.abbreviate == "blockinfo":
            with writer.block(BLOCKINFO, 2):
                writer.record(1, FUNCTION_BLOCK)
                writer.define((("fixed", 3), ("array", 0), ("vbr", 6)))
                writer.record(1, CONSTANTS)
                for abbrev in CONSTANT_ABBREVS.values():
                    writer.define(abbrev)
        # What a function block or a type table would be: only its length word may be read.
        with writer.block(17, 4):
            writer.fixed(0xFEEDFACE, 32)
        writer.define(GLOBAL_ABBREV)
        declared = [*self.before, self.name, *self.after]
        for name in declared:
            offset = sum(map(len, names))
            names.append(name)
            if name == self.name:
                at = 0 if self.initializer is None else len(declared) + self.initializer + 1
                writer.record(GLOBALVAR, offset, len(name), 5, 2, at, 0, 3, 0)
            elif name.startswith("g"):
                values = [GLOBALVAR, offset, len(name), 5, 2, 0, 0]
                writer.abbreviated(0, GLOBAL_ABBREV, values)
            else:
                code = FUNCTION if name.startswith("f") else ALIAS
                writer.record(code, offset, len(name), 5, 0, 0, 0)
        if self.constants:
            self._constants(writer, self.constants[: self.split], len(declared))
        if self.constants[self.split :]:
            self._constants(writer, self.constants[self.split :], len(declared))
        with writer.block(FUNCTION_BLOCK, 4):
            writer.fixed(0xFFFFFFFF, 32)

    def _constants(self, writer: Writer, records: list[tuple[int | str, ...]], first: int) -> None:
        abbrevs = list(CONSTANT_ABBREVS)
        with writer.block(CONSTANTS, 5):
            if self.abbreviate == "local":
                for abbrev in CONSTANT_ABBREVS.values():
                    writer.define(abbrev)
            for record in records:
                values = [first + int(v[1:]) if isinstance(v, str) else v for v in record]
                if self.abbreviate != "none" and values[0] in abbrevs:
                    code = values[0]
                    writer.abbreviated(abbrevs.index(code), CONSTANT_ABBREVS[code], values)
                else:
                    writer.record(*values)


def device_bitcode(version: str) -> bytes:
    """Return a module that says it is NVSHMEM's device library of `version`, as clang has it."""
    parts = [int(part) for part in version.split(".")]
    integers = [(INTEGER, rotated(part)) for part in parts]
    aggregate = (AGGREGATE, "#0", "#1", "#2")
    return Module([(SETTYPE, 1), *integers, (SETTYPE, 2), aggregate], initializer=3).tobytes()


def wrapped(content: bytes, offset: int = 20, size: int | None = None) -> bytes:
    """Return bitcode in the wrapper that some linkers want."""
    words = [0x0B17C0DE, 0, offset, len(content) if size is None else size, 7]
    head = b"".join(word.to_bytes(4, "little") for word in words)
    return head.ljust(offset, b"\0") + content + bytes(8)
