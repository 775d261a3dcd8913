"""Variants, heap layout, ELF header: pure functions."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

import gemm_allreduce
from gemm_allreduce.elf import cubin_sm
from gemm_allreduce.layout import (
    ARRIVALS_WORD,
    CONTROL_BYTES,
    EPOCH_WORD,
    STATUS_FIELDS,
    STATUS_WORD,
    HeapLayout,
)
from gemm_allreduce.variants import (
    DTYPES,
    QUICK_VARIANT,
    VARIANTS,
    WORLD_SIZES,
    Variant,
    find_variant,
    select_variants,
    variant_names,
)

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent


def test_light_modules_import_neither_torch_nor_triton() -> None:
    code = (
        "import sys, gemm_allreduce, gemm_allreduce.variants, gemm_allreduce.layout,"
        " gemm_allreduce.elf, gemm_allreduce.compile, gemm_allreduce.virtual_ranks;"
        "loaded = {'torch', 'triton', 'numpy'} & set(sys.modules); assert not loaded, loaded;"
        "print(gemm_allreduce.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"


def test_table_has_each_dtype_and_world_size_once() -> None:
    keys = [(variant.dtype, variant.world_size) for variant in VARIANTS]
    assert sorted(keys) == sorted((d, w) for d in DTYPES for w in WORLD_SIZES)
    assert len(set(variant_names())) == len(VARIANTS)
    assert {variant.block_m for variant in VARIANTS} == {16}
    assert (QUICK_VARIANT.dtype, QUICK_VARIANT.world_size) == ("bf16", 8)


def test_find_variant() -> None:
    assert find_variant("fp16", 4) in VARIANTS
    with pytest.raises(LookupError, match="world sizes 1, 2, 4, 8"):
        find_variant("fp16", 3)


def test_select_variants_keeps_table_order_and_names_valid_ones() -> None:
    names = variant_names()
    assert select_variants([names[2], names[0], names[2]]) == (VARIANTS[0], VARIANTS[2])
    with pytest.raises(LookupError, match=f"unknown variant nope; valid: {names[0]}"):
        select_variants([names[0], "nope"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fp32", 8, 16, 64, 64, 3, 4), "dtype"),
        (("bf16", 3, 16, 64, 64, 3, 4), "world_size"),
        (("bf16", 0, 16, 64, 64, 3, 4), "world_size"),
        (("bf16", 8, 8, 64, 64, 3, 4), "block_m must be at least 16"),
        (("bf16", 8, 16, 96, 64, 3, 4), "block_n must be a power of two"),
        (("bf16", 8, 16, 64, 64, 0, 4), "num_stages"),
        (("bf16", 8, 16, 64, 64, 3, 5), "num_warps"),
    ],
)
def test_variant_refuses(arguments: tuple[str, int, int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant(*arguments)


def test_layout_regions_do_not_overlap() -> None:
    layout = HeapLayout(8, 64, 8192, 16, 128)
    assert layout.max_tiles == 4 * 64
    assert EPOCH_WORD < ARRIVALS_WORD < STATUS_WORD
    assert (STATUS_WORD + len(STATUS_FIELDS)) * 4 <= CONTROL_BYTES == layout.flags_offset
    assert layout.slots_offset >= layout.flags_offset + 256 * 8 * 4
    assert layout.total_bytes == layout.slots_offset + 2 * 8 * 64 * 8192 * 2
    for value in (layout.slots_offset, layout.source_stride, layout.row_stride):
        assert value % 16 == 0


def test_layout_rounds_tiles_up_and_strides_ignore_the_call() -> None:
    layout = HeapLayout(2, 17, 128, 16, 64)
    assert layout.max_tiles == 2 * 2
    assert layout.source_stride == 17 * 128
    assert layout.total_bytes % 256 == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 64, 8192, 16, 64), "world_size"),
        ((8, 0, 8192, 16, 64), "max_tokens"),
        ((8, 64, 100, 16, 64), "max_features"),
        ((8, 64, 8192, 16, 64, 4), "element_bytes"),
    ],
)
def test_layout_refuses(arguments: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeapLayout(*arguments)


def _header(abi_version: int, flags: int, machine: int = 190) -> bytes:
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    header[8] = abi_version
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<I", header, 48, flags)
    return bytes(header)


@pytest.mark.parametrize(
    ("abi_version", "flags", "sm"),
    [
        # Written by ptxas 12.4, 12.8 and 12.9.
        (7, 0x500550, 80),
        (7, 0x5A0D5A, 90),
        (8, 0x600640A, 100),
        (8, 0x600670A, 103),
        (8, 0x600780A, 120),
        (8, 0x600790A, 121),
        # Written by ptxas 13.0.
        (8, 0x6005004, 80),
        (8, 0x6005A04, 90),
        (8, 0x6006402, 100),
    ],
)
def test_cubin_sm(abi_version: int, flags: int, sm: int) -> None:
    assert cubin_sm(_header(abi_version, flags)) == sm


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a 64-bit"),
        (b"\x7fELF\x01\x01" + bytes(60), "not a 64-bit"),
        (_header(7, 0x500550, machine=62), "e_machine is 62"),
        (_header(9, 0x500550), "unknown ABI version 9"),
    ],
)
def test_cubin_sm_refuses(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cubin_sm(data)
