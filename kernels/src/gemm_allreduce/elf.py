"""Reads from a cubin which GPU architecture it was made for. Needs no CUDA."""

from __future__ import annotations

import struct
from typing import Final

_EM_CUDA: Final = 190
_EI_ABIVERSION: Final = 8
_E_MACHINE_OFFSET: Final = 18
_E_FLAGS_OFFSET: Final = 48
_HEADER_BYTES: Final = 64


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
