"""The version that NVSHMEM's device bitcode was built as, read without LLVM.

The library's device half carries it as `nvshmemi_device_lib_version_d`, a constant struct of three
32-bit integers: NVSHMEM_VENDOR_MAJOR_VERSION, _MINOR_ and _PATCH_. The host half compares it with
its own when a kernel's module is initialised.

Format: "LLVM Bitcode File Format", https://llvm.org/docs/BitCodeFormat.html, section "LLVM IR
Encoding"; record codes as in LLVM's llvm/Bitcode/LLVMBitCodes.h.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from .bitstream import BitcodeError, Bits, Block, Data, Record, blocks, content, open_stream

__all__ = ["BitcodeError", "device_version", "version_in"]

GLOBAL = "nvshmemi_device_lib_version_d"
MODULE_BLOCK, CONSTANTS_BLOCK, STRTAB_BLOCK = 8, 11, 23
# Records of a module. Each but VERSION gives the next number of a value to what it declares.
VERSION, GLOBALVAR, FUNCTION, ALIAS_OLD, ALIAS, IFUNC = 1, 7, 8, 9, 14, 15
# Records of the constants. Each but SETTYPE is one more value.
SETTYPE, NULL, INTEGER, AGGREGATE, DATA = 1, 2, 4, 7, 22
STRTAB_BLOB = 1
NAMES_IN_STRTAB = 2  # the module version since which names lie in the STRTAB block
PARTS = 3
LARGEST = 999  # of a version's part; more is no version


@dataclass
class _Module:
    """What is kept of a module: its variables, and its values up to the last constant."""

    version: int = 0
    variables: list[Record] = field(default_factory=list)
    values: list[Record] = field(default_factory=list)


def device_version(path: Path) -> str:
    """Return the version of a device bitcode file, such as "3.6.5".

    Function bodies are stepped over: 45 MB take some tenths of a second.
    Raises: BitcodeError if the file is no bitcode, is cut short or damaged, or has no version;
    OSError if it cannot be read.
    """
    with path.open("rb") as stream:
        if not path.stat().st_size:
            raise BitcodeError("the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return version_in(view)


def version_in(data: Data) -> str:
    """Return the version in a device bitcode's bytes. Pure; raises BitcodeError as above."""
    bits = open_stream(data)
    modules: list[_Module] = []
    for block in blocks(bits):
        if block.id == MODULE_BLOCK:
            modules.append(_read_module(bits, block))
        elif block.id == STRTAB_BLOCK:
            # The table follows the modules whose names it holds.
            for module in modules:
                if (variable := _find(module, _strings(bits, block))) is not None:
                    return _version(module, variable)
    if not modules:
        raise BitcodeError("the bitcode holds no module")
    if any(module.version < NAMES_IN_STRTAB for module in modules):
        raise BitcodeError("the bitcode's module is of a version before 2, LLVM 4 or older")
    raise BitcodeError(f"the bitcode has no {GLOBAL}: it is not NVSHMEM's device library")


def _read_module(bits: Bits, block: Block) -> _Module:
    module = _Module()
    for item in content(bits, block):
        if isinstance(item, Block):
            if item.id == CONSTANTS_BLOCK:
                records = (r for r in content(bits, item) if isinstance(r, Record))
                module.values += [record for record in records if record.code != SETTYPE]
        elif item.code == VERSION and item.operands:
            module.version = item.operands[0]
        elif item.code in (GLOBALVAR, FUNCTION, ALIAS_OLD, ALIAS, IFUNC):
            # No constant's code may be taken for a variable's: values of a module have code -1.
            module.values.append(Record(-1, []))
            if item.code == GLOBALVAR:
                module.variables.append(item)
    return module


def _strings(bits: Bits, block: Block) -> bytes:
    records = (r for r in content(bits, block) if isinstance(r, Record))
    return next((record.blob for record in records if record.code == STRTAB_BLOB), b"")


def _find(module: _Module, strings: bytes) -> Record | None:
    """Return the variable: offset and size of its name, type, constancy, initializer + 1, ..."""
    if module.version < NAMES_IN_STRTAB:
        return None
    wanted = GLOBAL.encode()
    for variable in module.variables:
        if len(variable.operands) >= 5:
            offset, size = variable.operands[:2]
            if strings[offset : offset + size] == wanted:
                return variable
    return None


def _version(module: _Module, variable: Record) -> str:
    number = variable.operands[4]
    if not number:
        raise BitcodeError(f"the bitcode declares {GLOBAL} and does not define it")
    value = _value(module, number - 1)
    if value.code == NULL:
        parts = [0] * PARTS
    elif value.code == DATA:
        parts = value.operands
    elif value.code == AGGREGATE:
        parts = [_integer(_value(module, operand)) for operand in value.operands]
    else:
        raise BitcodeError(f"the bitcode's {GLOBAL} is no struct of constants")
    if len(parts) != PARTS or not all(0 <= part <= LARGEST for part in parts):
        raise BitcodeError(f"the bitcode's {GLOBAL} is no version: {parts[:8]}")
    return ".".join(str(part) for part in parts)


def _value(module: _Module, number: int) -> Record:
    if number >= len(module.values):
        raise BitcodeError(f"the bitcode is damaged: there is no value {number}")
    return module.values[number]


def _integer(value: Record) -> int:
    if value.code == NULL:
        return 0
    if value.code != INTEGER or not value.operands:
        raise BitcodeError(f"a part of the bitcode's {GLOBAL} is no integer")
    # The sign is the lowest bit.
    rotated = value.operands[0]
    return -(rotated >> 1) if rotated & 1 else rotated >> 1
