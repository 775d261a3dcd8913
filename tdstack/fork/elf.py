"""What a compiled library asks of the system that it runs on, read without loading it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
# pybind11 compares this text with the interpreter's version when the module is loaded.
_COMPILED_FOR = re.compile(rb"\x00(3\.(?:[6-9]|[1-9]\d))\x00")


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
    versions: dict[str, set[tuple[int, ...]]] = {"GLIBC": set(), "GLIBCXX": set()}
    try:
        file = ELFFile(BytesIO(data))
        for section in file.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for _, wanted in section.iter_versions():
                    for one in wanted:
                        family, _, number = one.name.partition("_")
                        if family in versions and re.fullmatch(r"[\d.]+", number):
                            versions[family].add(tuple(map(int, number.split("."))))
        machine = MACHINES.get(file["e_machine"], str(file["e_machine"]))
    # What the parser lets through on bytes that end early.
    except (ELFError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise NotElfError(str(error) or type(error).__name__) from error
    glibc, glibcxx = (max(versions[f], default=()) for f in ("GLIBC", "GLIBCXX"))
    return Needs(machine, ".".join(map(str, glibc)), ".".join(map(str, glibcxx)))


def compiled_for(data: bytes) -> str:
    """Return the Python that a pybind11 module was compiled for, as `3.11`; empty if unclear."""
    found = {match[1].decode() for match in _COMPILED_FOR.finditer(data)}
    return found.pop() if len(found) == 1 else ""
