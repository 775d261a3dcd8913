"""Makes cubins without a compiler: what readers and checks look at, and nothing behind it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from gemm_allreduce.arguments import ARGUMENTS, POINTERS
from gemm_allreduce.checks import expected_traffic
from gemm_allreduce.variants import WARP, Variant

_CODES = {
    **{"load": 0x981, "store": 0x986, "copy": 0xFAE, "local": 0x983, "generic": 0x980},
    **{"bulk load": 0x5B4, "bulk": 0x3B5},
}
_WIDTHS = {0: 0, 1: 0, 2: 2, 4: 4, 8: 5, 16: 6}


def attribute(number: int, value: bytes | int, form: int = 4) -> bytes:
    """Return one attribute of a .nv.info section."""
    if isinstance(value, int):
        return struct.pack("<BBH", form, number, value)
    return struct.pack("<BBH", form, number, len(value)) + value


def parameter(ordinal: int, offset: int, size: int) -> bytes:
    """Return the attribute of a kernel's argument."""
    return attribute(0x17, struct.pack("<IHHI", 0, ordinal, offset, size << 18 | 0x1F000))


def parameters(sizes: Iterable[int]) -> bytes:
    """Return the attributes of a kernel's arguments, aligned, the last one first as ptxas does."""
    found: list[bytes] = []
    end = 0
    for ordinal, size in enumerate(sizes):
        offset = -(-end // size) * size
        found.insert(0, parameter(ordinal, offset, size))
        end = offset + size
    return b"".join(found) + attribute(0x19, end, form=3)


def instructions(sm: int, counts: dict[tuple[str, int], int]) -> bytes:
    """Return machine code with so many accesses of each kind and width, and one other."""
    code = bytes(16)
    for (kind, width), count in counts.items():
        bits = _WIDTHS[width] << 9
        if kind == "copy" and sm >= 100:
            bits = (width // 8) << 10
        code += struct.pack("<QQ", _CODES[kind], bits) * count
    return code


@dataclass
class Maker:
    """Makes a cubin with one kernel `k`, as ptxas 12.8 does for sm_90, or with something wrong.

    ``general`` and ``own`` are the attributes of all kernels and of this one; ``more`` further
    sections: type and bytes.
    """

    flags: int = 0x5A0D5A
    abi: int = 7
    name: str = "k"
    code: bytes = bytes(32)
    kernels: tuple[tuple[str, int], ...] | None = None
    general: bytes = attribute(0x2F, struct.pack("<II", 1, 80)) + attribute(
        0x11, struct.pack("<II", 1, 16)
    )
    own: bytes = b"".join(
        (
            attribute(0x37, struct.pack("<I", 128)),
            parameter(1, 8, 4),
            parameter(0, 0, 8),
            attribute(0x50, 0, form=3),
            attribute(0x19, 12, form=3),
            attribute(0x10, struct.pack("<III", 64, 2, 1)),
        )
    )
    shared: int = 1024
    more: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def cubin(self) -> bytes:
        """Return the bytes."""
        kernels = ((self.name, 0x10),) if self.kernels is None else self.kernels
        names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in kernels)
        symbols = bytes(24)
        for name, other in kernels:
            start = names.index(b"\0" + name.encode() + b"\0") + 1
            symbols += struct.pack("<IBBHQQ", start, 0x12, other, 5, 0, len(self.code))
        shared = f".nv.shared.{self.name}"
        sections: dict[str, tuple[int, bytes]] = {
            ".strtab": (3, names),
            ".symtab": (2, symbols),
            ".nv.info": (0x70000000, self.general),
            f".nv.info.{self.name}": (0x70000000, self.own),
            f".text.{self.name}": (1, self.code),
            **self.more,
        }
        titles = [".shstrtab", *sections, shared]
        texts = b"\0" + b"".join(title.encode() + b"\0" for title in titles)
        starts = {title: texts.index(b"\0" + title.encode() + b"\0") + 1 for title in titles}
        body = bytearray(64)
        headers = [bytes(64)]
        for title, (kind, data) in {".shstrtab": (3, texts), **sections}.items():
            link = 2 if kind == 2 else 0  # the symbols' names are in .strtab
            header = (starts[title], kind, 0, 0, len(body), len(data), link, 0, 1, 0)
            headers.append(struct.pack("<IIQQQQIIQQ", *header))
            body += data
        header = (starts[shared], 8, 0, 0, len(body), self.shared, 0, 0, 16, 0)
        headers.append(struct.pack("<IIQQQQIIQQ", *header))
        body[:6] = b"\x7fELF\x02\x01"
        body[8] = self.abi
        head = (2, 190, 128, 0, 0, len(body), self.flags, 64, 56, 0, 64, len(headers), 1)
        struct.pack_into("<HHIQQQIHHHHHH", body, 16, *head)
        return bytes(body) + b"".join(headers)


def maker_for(variant: Variant, arch: str) -> Maker:
    """Return what makes a cubin that passes for a variant's."""
    sm = int(arch.removeprefix("sm_"))
    traffic = expected_traffic(variant)
    counts = {
        ("bulk load", 0) if variant.tile.bulk else ("copy", 16): 6,
        ("load", 2): 1,
        ("load", 4): 20,
        ("load", 8): 9,
        ("load", 16): traffic.loads + 1,
        ("store", 4): traffic.words,
        ("store", 16): traffic.stores,
    }
    sizes = [8 if name in POINTERS else 4 for name in ARGUMENTS]
    threads = attribute(0x10, struct.pack("<III", WARP * variant.tile.num_warps, 1, 1))
    return Maker(
        abi=8,
        flags=0x6000002 | sm << 8,
        name=f"gemm_allreduce_{variant.algorithm}",
        code=instructions(sm, counts),
        general=attribute(0x2F, struct.pack("<II", 1, 128))
        + attribute(0x11, struct.pack("<II", 1, 0)),
        own=parameters([*sizes, 8]) + threads,
        shared=1024 if sm >= 90 else 0,
    )
