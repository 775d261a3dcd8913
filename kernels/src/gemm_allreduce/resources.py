"""Reads from a cubin what its kernel needs and takes: registers, memory, parameters, threads.

The attributes are NVIDIA's, not documented; their numbers and forms were read off the output of
ptxas 12.4 to 13.4 for sm_80 to sm_121, and compared with cuobjdump.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .elf import Elf, read_elf, unpack

_MAX_THREADS: Final = 0x05
_REQUIRED_THREADS: Final = 0x10
_FRAME_SIZE: Final = 0x11
_PARAMETER: Final = 0x17
_PARAMETER_BYTES: Final = 0x19
_REGISTERS: Final = 0x2F

_RESERVED_SHARED: Final = 1024
"""Bytes at the start of shared memory that are the system's, in the section from sm_90 on. The
limits of a CTA leave them out on every architecture."""


@dataclass(frozen=True)
class Parameter:
    """A kernel's argument: place and size in the parameter block, bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Kernel:
    """The one kernel of a cubin.

    Attributes:
        sm: compute capability that it was made for, major * 10 + minor.
        entry: name to launch it by.
        registers: per thread.
        local_bytes: local memory per thread, bytes: its stack frame. In kernels that call nothing
            and index no local array these are spilled registers.
        static_shared: shared memory per CTA that the launch does not ask for, bytes.
        threads: per CTA, or None where the cubin leaves it open.
        parameters: in order.
        code: its machine code.
    """

    sm: int
    entry: str
    registers: int
    local_bytes: int
    static_shared: int
    threads: int | None
    parameters: tuple[Parameter, ...]
    code: bytes


def read_kernel(cubin: bytes) -> Kernel:
    """Return the kernel of a cubin that holds exactly one.

    Functions that no host can launch may stand beside it: ptxas adds traps on sm_100.

    Raises:
        ValueError: no CUDA ELF file, a damaged one, or not one kernel; says what and where.
    """
    elf = read_elf(cubin)
    entries = [function for function in elf.functions if function.entry]
    if len(entries) != 1:
        names = ", ".join(function.name for function in entries)
        raise ValueError(f"expected one kernel, found {names or 'none'}")
    name, index = entries[0].name, entries[0].index
    if f".text.{name}" not in elf.sections:
        raise ValueError(f"the code of {name} is missing: no section .text.{name}")
    registers = frame = None
    for attribute, value in _attributes(elf, ".nv.info"):
        if attribute in (_REGISTERS, _FRAME_SIZE):
            symbol, number = unpack("<II", value, 0, f"attribute {attribute:#x} of .nv.info")
            if symbol == index and attribute == _REGISTERS:
                registers = number
            elif symbol == index:
                frame = number
    if registers is None or frame is None:
        raise ValueError(f".nv.info says nothing of the registers or the stack frame of {name}")
    local = elf.sections.get(f".nv.local.{name}")
    threads, parameters = _of_kernel(elf, f".nv.info.{name}")
    return Kernel(
        sm=elf.sm,
        entry=name,
        registers=registers,
        local_bytes=frame + (local.size if local else 0),
        static_shared=_static_shared(elf, name),
        threads=threads,
        parameters=parameters,
        code=elf.sections[f".text.{name}"].data,
    )


def _static_shared(elf: Elf, name: str) -> int:
    section = elf.sections.get(f".nv.shared.{name}")
    if section is None:
        return 0
    reserved = _RESERVED_SHARED if elf.sm >= 90 else 0
    if section.size < reserved:
        raise ValueError(f"{section.name} has {section.size} bytes, of which {reserved} reserved")
    return section.size - reserved


def _of_kernel(elf: Elf, section: str) -> tuple[int | None, tuple[Parameter, ...]]:
    """Threads per CTA and parameters, from the kernel's own attributes."""
    threads = None
    block = None
    found: dict[int, Parameter] = {}
    for attribute, value in _attributes(elf, section):
        what = f"attribute {attribute:#x} of {section}"
        if attribute in (_REQUIRED_THREADS, _MAX_THREADS):
            x, y, z = unpack("<III", value, 0, what)
            threads = x * y * z
        elif attribute == _PARAMETER_BYTES:
            (block,) = unpack("<H", value, 0, what)
        elif attribute == _PARAMETER:
            _, ordinal, offset, flags = unpack("<IHHI", value, 0, what)
            found[ordinal] = Parameter(offset, flags >> 18)
    if block is None:
        raise ValueError(f"{section} says nothing of the size of the parameters")
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"{section} describes parameters {sorted(found)}, not each one once")
    parameters = tuple(found[ordinal] for ordinal in range(len(found)))
    end = 0
    for ordinal, parameter in enumerate(parameters):
        if parameter.size < 1 or parameter.offset < end:
            raise ValueError(f"{section}: parameter {ordinal} lies on top of another or is empty")
        end = parameter.offset + parameter.size
    # Alignment is the only reason for bytes that no parameter owns.
    if not end <= block < end + 8:
        raise ValueError(f"{section}: parameters take {end} bytes, their block has {block}")
    return threads, parameters


def _attributes(elf: Elf, name: str) -> Iterator[tuple[int, bytes]]:
    """Number and value of each attribute of a ``.nv.info`` section."""
    section = elf.sections.get(name)
    if section is None:
        raise ValueError(f"section {name} is missing")
    data = section.data
    at = 0
    while at < len(data):
        form, attribute, size = unpack("<BBH", data, at, f"an attribute of {name}")
        if form in (1, 2, 3):  # none, a byte, two bytes: in the place of the size
            yield attribute, struct.pack("<H", size)
        elif form == 4:
            end = at + 4 + size
            if end > len(data):
                raise ValueError(
                    f"attribute {attribute:#x} at byte {at} of {name} reaches beyond its end, "
                    f"{len(data)} bytes: cut off or damaged"
                )
            yield attribute, data[at + 4 : end]
            at += size
        else:
            raise ValueError(f"unknown form {form} of the attribute at byte {at} of {name}")
        at += 4
