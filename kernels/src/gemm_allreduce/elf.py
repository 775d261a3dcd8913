"""Reads the ELF frame of a cubin: its architecture, sections and symbols. Needs no CUDA."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_EM_CUDA: Final = 190
_EI_ABIVERSION: Final = 8
_E_MACHINE_OFFSET: Final = 18
_E_FLAGS_OFFSET: Final = 48
_HEADER_BYTES: Final = 64
_SECTION: Final = "<IIQQQQIIQQ"
_SYMBOL: Final = "<IBBHQQ"
_SHT_SYMTAB: Final = 2
_SHT_NOBITS: Final = 8
_STT_FUNC: Final = 2
_STO_ENTRY: Final = 0x10


@dataclass(frozen=True)
class Section:
    """A section of an ELF file. ``data`` is empty where the file holds none of its bytes."""

    name: str
    size: int
    data: bytes


@dataclass(frozen=True)
class Function:
    """A function symbol: its place in the symbol table, and whether a host can launch it."""

    index: int
    name: str
    entry: bool


@dataclass(frozen=True)
class Elf:
    """What a cubin's frame says."""

    sm: int
    sections: dict[str, Section]
    functions: tuple[Function, ...]


def unpack(layout: str, data: bytes, offset: int, what: str) -> tuple[int, ...]:
    """Return the numbers at an offset.

    Raises:
        ValueError: they reach beyond the end; says what and where.
    """
    if offset < 0 or offset + struct.calcsize(layout) > len(data):
        raise ValueError(
            f"{what} at byte {offset} reaches beyond the end, {len(data)} bytes: cut off or damaged"
        )
    numbers: tuple[int, ...] = struct.unpack_from(layout, data, offset)
    return numbers


def cubin_sm(cubin: bytes) -> int:
    """Return the compute capability of a cubin as major * 10 + minor, for example 90.

    The place of the number in ``e_flags`` follows the ELF's ABI version, not the architecture:
    the low byte up to version 7, bits 8 to 15 from version 8. ptxas 12.x writes version 7 for
    sm_80 to sm_90 and 8 for Blackwell; ptxas 13.0 writes 8 for all (read off their outputs).

    Raises:
        ValueError: the bytes are no 64-bit little-endian CUDA ELF, or of an unknown ABI version.
    """
    if len(cubin) < _HEADER_BYTES or cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<H", cubin, _E_MACHINE_OFFSET)
    if machine != _EM_CUDA:
        raise ValueError(f"not a CUDA ELF file: e_machine is {machine}, expected {_EM_CUDA}")
    abi_version = cubin[_EI_ABIVERSION]
    (flags,) = struct.unpack_from("<I", cubin, _E_FLAGS_OFFSET)
    if abi_version <= 7:
        return int(flags & 0xFF)
    if abi_version == 8:
        return int(flags >> 8 & 0xFF)
    raise ValueError(f"unknown ABI version {abi_version} of a CUDA ELF file, e_flags {flags:#x}")


def read_elf(cubin: bytes) -> Elf:
    """Return a cubin's architecture, its sections by name, and its functions.

    Raises:
        ValueError: no CUDA ELF file, or a damaged one; says what and where.
    """
    sm = cubin_sm(cubin)
    (offset,) = unpack("<Q", cubin, 40, "the place of the section table")
    size, count, names = unpack("<HHH", cubin, 58, "the size of the section table")
    if size != struct.calcsize(_SECTION):
        raise ValueError(f"section headers have {size} bytes, expected {struct.calcsize(_SECTION)}")
    if not 0 < names < count:
        raise ValueError(f"section names are said to be in section {names} of {count}")
    headers = [
        unpack(_SECTION, cubin, offset + index * size, f"the header of section {index}")
        for index in range(count)
    ]
    texts = [_bytes_of(cubin, header, f"section {i}") for i, header in enumerate(headers)]
    sections: dict[str, Section] = {}
    functions: list[Function] = []
    for index, header in enumerate(headers):
        name = _name(texts[names], header[0], f"section {index}")
        sections[name] = Section(name, header[5], texts[index])
        if header[1] == _SHT_SYMTAB:
            if header[6] >= count:
                raise ValueError(f"{name} takes its names from section {header[6]} of {count}")
            functions += _functions(texts[index], texts[header[6]])
    return Elf(sm, sections, tuple(functions))


def _bytes_of(cubin: bytes, header: tuple[int, ...], what: str) -> bytes:
    offset, size = header[4], header[5]
    if header[1] == _SHT_NOBITS:
        return b""
    if offset + size > len(cubin):
        raise ValueError(
            f"{what} at byte {offset} with {size} bytes reaches beyond the end, "
            f"{len(cubin)} bytes: cut off or damaged"
        )
    return cubin[offset : offset + size]


def _name(names: bytes, offset: int, what: str) -> str:
    end = names.find(b"\0", offset)
    if offset >= len(names) or end < 0:
        raise ValueError(f"the name of {what} at byte {offset} has no end: cut off or damaged")
    try:
        return names[offset:end].decode("ascii")
    except UnicodeDecodeError:
        raise ValueError(f"the name of {what} is no text: {names[offset:end]!r}") from None


def _functions(table: bytes, names: bytes) -> Iterator[Function]:
    size = struct.calcsize(_SYMBOL)
    for index in range(len(table) // size):
        name, info, other, *_ = struct.unpack_from(_SYMBOL, table, index * size)
        if info & 0xF == _STT_FUNC:
            entry = bool(other & _STO_ENTRY)
            yield Function(index, _name(names, name, f"symbol {index}"), entry)
