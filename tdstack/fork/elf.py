"""What a compiled library asks of the system that it runs on, read without loading it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
# pybind11 compares the second text with the interpreter's version when the module is loaded.
_COMPARED = b"module was compiled for Python"
# One byte that ends a text may begin the next, hence the lookahead.
_COMPILED_FOR = re.compile(rb"\x00(3\.(?:[6-9]|[1-9]\d))(?=\x00)")


class NotElfError(Exception):
    """The bytes are no whole ELF file."""


@dataclass(frozen=True)
class Needs:
    """The machine, and the newest symbol versions that are asked for; empty when none is."""

    machine: str
    glibc: str
    glibcxx: str


def needs_of(data: bytes) -> Needs:
    """Read the symbol versions that an ELF file needs (section .gnu.version_r of the gABI).

    A manylinux tag is a promise; these versions are what the loader looks for.
    Raises: NotElfError.
    """
    try:
        file = ELFFile(BytesIO(data))
        _check_whole(file, len(data))
        found = sorted(_versions(file, len(data)))
        machine = MACHINES.get(file["e_machine"], str(file["e_machine"]))
    # What the parser lets through on bytes that are no ELF.
    except (
        ELFError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise NotElfError(str(error) or type(error).__name__) from error
    newest = {family: ".".join(map(str, number)) for family, number in found}
    return Needs(machine, newest.get("GLIBC", ""), newest.get("GLIBCXX", ""))


def _check_whole(file: ELFFile, size: int) -> None:
    """Compare what the headers promise with the size, before anything iterates by their numbers."""
    count = file.num_sections()
    if file["e_shoff"] and file["e_shentsize"] < file.structs.Elf_Shdr.sizeof():
        raise NotElfError("the headers of its sections overlap")
    if file["e_shoff"] + count * file["e_shentsize"] > size:
        raise NotElfError("the headers of its sections lie past its end")
    if count and file.get_section(file.get_shstrndx())["sh_type"] != "SHT_STRTAB":
        raise NotElfError("the headers of its sections are blank")
    # Some tools put these headers first, so that their being there proves nothing.
    for section in file.iter_sections():
        kept = section["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
        if kept and section["sh_offset"] + section["sh_size"] > size:
            raise NotElfError(f"section {section.name} lies past its end")
    if file.num_segments() and file["e_phentsize"] < file.structs.Elf_Phdr.sizeof():
        raise NotElfError("the headers of its segments overlap")
    for segment in file.iter_segments():
        if segment["p_offset"] + segment["p_filesz"] > size:
            raise NotElfError("a segment lies past its end")


def _versions(file: ELFFile, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    left = size // 16  # no file holds more entries, whatever its counters say
    for section in file.iter_sections():
        if not isinstance(section, GNUVerNeedSection):
            continue
        for _, wanted in section.iter_versions():
            for one in wanted:
                left -= 1
                if left < 0:
                    raise NotElfError("its symbol versions go round in circles")
                family, _, number = one.name.partition("_")
                if family in ("GLIBC", "GLIBCXX") and re.fullmatch(r"\d+(\.\d+)*", number):
                    yield family, tuple(map(int, number.split(".")))


def compiled_for(data: bytes) -> str:
    """Return the Python that a pybind11 module was compiled for, as `3.11`; empty if unclear."""
    # Without the check that compares it, a text of this form is anybody's.
    if _COMPARED not in data:
        return ""
    found = {match[1].decode() for match in _COMPILED_FOR.finditer(data)}
    return found.pop() if len(found) == 1 else ""
