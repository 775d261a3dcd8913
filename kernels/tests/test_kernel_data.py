"""Heap layout, variants, status record, ELF header: pure functions."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gemm_allreduce
from gemm_allreduce.dispatch import ARCHS, reachable_variants
from gemm_allreduce.elf import cubin_sm
from gemm_allreduce.layout import (
    ARRIVALS_WORD,
    CELL_LATE,
    DESCRIPTOR_BYTES,
    ELEMENT_BYTES,
    EPOCH_WORD,
    GAVE_UP_WORD,
    MOST_CTAS,
    PAGE,
    PARTIAL_LATE,
    REFRESH_CALLS,
    RESULT_LATE,
    SLOTS,
    STATUS_FIELDS,
    STATUS_WORD,
    STATUS_WORDS,
    HeapLayout,
    ceil_div,
    describe_status,
)
from gemm_allreduce.variants import Tile, Variant

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
MIB = 2**20


def test_light_modules_import_neither_torch_nor_triton() -> None:
    modules = ["", ".call", ".check", ".compile", ".dispatch", ".elf", ".launch", ".layout"]
    modules += [".limits", ".signature", ".transports", ".variants", ".workspace"]
    modules += [f".transports.{name}" for name in ("nvshmem", "shared", "symmetric", "virtual")]
    code = (
        f"import sys, {', '.join('gemm_allreduce' + name for name in modules)};"
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
    assert done.stdout.strip() == gemm_allreduce.__version__


# ------------------------------------------------------------------ layout


def parts(layout: HeapLayout) -> list[tuple[int, int]]:
    """Start and size in bytes of every part, from what the kernels may write into it."""
    flags = layout.max_tiles * layout.world_size * 4
    return [
        (0, (GAVE_UP_WORD + 1) * 4),
        (layout.table, layout.world_size * 8),
        (layout.scratch, MOST_CTAS * DESCRIPTOR_BYTES),
        (layout.partial_flags, flags),
        (layout.result_flags, flags),
        (layout.slots, SLOTS * layout.world_size * layout.small_area * ELEMENT_BYTES),
        (layout.receive, layout.world_size * layout.owned_area * ELEMENT_BYTES),
        (layout.result, layout.large_area * ELEMENT_BYTES),
        (layout.total_bytes, 0),
    ]


@st.composite
def layouts(draw: st.DrawFn) -> HeapLayout:
    max_tokens, max_features = draw(st.integers(1, 2**20)), draw(st.integers(1, 2**20))
    assume(max_tokens * max_features <= 2**28)
    return HeapLayout(draw(st.sampled_from([1, 2, 4, 8, 16, 32])), max_tokens, max_features)


@given(layouts())
def test_parts_are_aligned_and_do_not_overlap(layout: HeapLayout) -> None:
    for (start, size), (following, _) in itertools.pairwise(parts(layout)):
        assert start % PAGE == 0
        assert start + size <= following, "parts overlap"
    assert layout.total_bytes % PAGE == 0
    # Strides between sources reach the kernels in units of 128 elements, offsets in pages.
    assert layout.small_area % 128 == 0
    # The cells end where their slots do.
    assert layout.cells % PAGE == 0 and layout.cells >= layout.slots
    end = layout.slots + layout.small_area * ELEMENT_BYTES
    assert layout.cells + layout.cell_area * ELEMENT_BYTES == end
    assert layout.owned_area % 128 == 0
    assert layout.total_bytes // PAGE < 2**31
    # Inside a part the kernels count in 32 bits.
    assert layout.owned_area < 2**31
    assert layout.max_tiles * layout.world_size < 2**31
    # One word in REFRESH_CALLS calls: twice round, which is the longest that a word can wait for
    # its turn, in 2**30.
    assert layout.max_tiles * layout.world_size * 2 * REFRESH_CALLS <= 2**29


def test_control_words_keep_apart() -> None:
    """One aligned 64-bit counter, whose upper half is the epoch; what failed is told elsewhere."""
    assert ARRIVALS_WORD % 2 == 0 and EPOCH_WORD == ARRIVALS_WORD + 1
    line = 64 // 4
    assert STATUS_WORD // line != EPOCH_WORD // line
    record = range(STATUS_WORD, STATUS_WORD + len(STATUS_FIELDS))
    assert GAVE_UP_WORD not in record and GAVE_UP_WORD // line != EPOCH_WORD // line
    assert GAVE_UP_WORD < PAGE // 4
    assert len(STATUS_FIELDS) <= STATUS_WORDS


@pytest.mark.parametrize(
    ("arguments", "mebibytes"), [((8, 8192, 8192), 275), ((2, 8192, 8192), 275), ((1, 64, 64), 1)]
)
def test_total(arguments: tuple[int, int, int], mebibytes: int) -> None:
    layout = HeapLayout(*arguments)
    assert layout.total_bytes <= mebibytes * MIB
    # Nothing smaller would do: receive and result take one y each, in elements of two bytes.
    assert layout.total_bytes >= 2 * layout.max_tokens * layout.max_features * ELEMENT_BYTES


@pytest.mark.parametrize(
    ("world_size", "tokens", "cell_tokens"),
    [(1, 64, 32), (2, 256, 64), (4, 128, 32), (8, 64, 16), (64, 16, 16)],
)
def test_small_tokens(world_size: int, tokens: int, cell_tokens: int) -> None:
    layout = HeapLayout(world_size, 1, 1)
    assert layout.small_tokens == layout.most_tokens("one_shot") == tokens
    assert layout.cell_tokens == layout.most_tokens("lamport") == cell_tokens
    assert layout.most_tokens("two_shot") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 64, 8192), "world_size must be at least 1, got 0"),
        ((3, 64, 8192), "world_size must be a power of two, got 3"),
        ((8, 0, 8192), "max_tokens must be at least 1, got 0"),
        ((8, 64, -8), "max_features must be at least 1, got -8"),
        ((1, 2**18, 2**13), "max_tokens 262144 x max_features 8192 is too large"),
        ((8, 2**17 + 1, 2**14), "max_tokens 131073 x max_features 16384 is too large"),
    ],
)
def test_layout_refuses(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeapLayout(*arguments)


def test_the_largest_layouts() -> None:
    assert HeapLayout(1, 2**18 - 128, 2**13).owned_area < 2**31
    assert HeapLayout(8, 2**17, 2**14).total_bytes > 2**33


def assert_fits(layout: HeapLayout, variant: Variant, tokens: int, features: int) -> None:
    """Check every index that the kernels compute against the part that it goes to.

    Written down from the kernels' sources: tiles and units lie one after another at their full
    size, also those that M and N cut off.
    """
    tile, ranks = variant.tile, variant.world_size
    tiles = ceil_div(tokens, tile.block_m) * ceil_div(features, tile.block_n)
    if variant.algorithm == "direct":
        return  # neither flags nor slots
    assert tiles <= layout.max_tiles
    if variant.algorithm in ("one_shot", "lamport"):
        area = {"one_shot": layout.small_area, "lamport": layout.cell_area}[variant.algorithm]
        assert tiles * tile.area <= area, "a slot or a cell is too small"
        return
    units = tiles * variant.split
    unit = tile.area // variant.split
    owned = ceil_div(units, ranks)
    assert owned * unit <= layout.owned_area, "the receive part is too small"
    assert owned * ranks <= layout.max_tiles * ranks, "too few partial flags"
    assert units <= layout.max_tiles * ranks, "too few result flags"
    assert units * unit <= layout.large_area, "the result part is too small"


REACHABLE = tuple(dict.fromkeys(v for arch in ARCHS for v in reachable_variants(arch)))


@pytest.mark.parametrize("variant", REACHABLE, ids=lambda variant: variant.name)
def test_heap_holds_every_call_of_a_reachable_variant(variant: Variant) -> None:
    layout = HeapLayout(variant.world_size, 8192, 8192)
    most = layout.most_tokens(variant.algorithm) or layout.max_tokens
    for tokens in {1, 15, 16, 17, 63, 64, 65, 127, 129, most // 2 + 1, most - 1, most}:
        for features in (8, 64, 72, 4104, 8184, 8192):
            assert_fits(layout, variant, min(tokens, most), features)


@st.composite
def variants(draw: st.DrawFn, algorithm: str) -> Variant:
    ranks = draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    block_m, block_n = (
        draw(st.sampled_from([16, 32, 64, 128])),
        draw(st.sampled_from([16, 64, 256])),
    )
    tile = Tile(block_m, block_n, 64, 3, 4)
    split = draw(st.sampled_from([1, ranks])) if algorithm == "two_shot" else 1
    assume(block_m >= split)
    assume(tile.area >= (4096 if algorithm == "two_shot" else 1024))
    return Variant(algorithm, "bf16", "bf16", ranks, tile, split)  # type: ignore[arg-type]


@settings(max_examples=400)
@given(variants("two_shot"), st.integers(1, 20_000), st.integers(1, 20_000), st.data())
def test_heap_holds_every_two_shot(
    variant: Variant, max_tokens: int, max_features: int, data: st.DataObject
) -> None:
    layout = HeapLayout(variant.world_size, max_tokens, max_features)
    tokens = data.draw(st.integers(1, max_tokens) | st.just(max_tokens))
    features = data.draw(st.integers(1, max_features) | st.just(max_features))
    assert_fits(layout, variant, tokens, features)


@settings(max_examples=400)
@given(variants("one_shot") | variants("lamport"), st.integers(1, 20_000), st.data())
def test_heap_holds_every_one_shot_and_lamport(
    variant: Variant, max_features: int, data: st.DataObject
) -> None:
    layout = HeapLayout(variant.world_size, 8192, max_features)
    most = layout.most_tokens(variant.algorithm)
    assert most is not None
    # What parse_rules and Workspace check: a taller tile would reach beyond its slot or cell.
    assume(variant.tile.block_m <= most)
    tokens = data.draw(st.integers(1, most) | st.just(most))
    features = data.draw(st.integers(1, max_features) | st.just(max_features))
    assert_fits(layout, variant, tokens, features)


# ------------------------------------------------------------------ tiles and variants


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 64, 64, 3, 4), "block_m must be from 16 to 128, got 8"),
        ((256, 64, 64, 3, 4), "block_m must be from 16 to 128, got 256"),
        ((16, 96, 64, 3, 4), "block_n must be a power of two, got 96"),
        ((16, 512, 64, 3, 4), "block_n must be from 16 to 256, got 512"),
        ((16, 64, 8, 3, 4), "block_k must be from 16 to 1024, got 8"),
        ((16, 64, 0, 3, 4), "block_k must be a power of two, got 0"),
        ((16, 64, 64, 0, 4), "num_stages must be at least 1, got 0"),
        ((16, 64, 64, 3, 5), "num_warps must be a power of two, got 5"),
    ],
)
def test_tile_refuses(arguments: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tile(*arguments)


SMALL, LARGE = Tile(16, 64, 64, 3, 4), Tile(64, 128, 64, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ring", "bf16", "bf16", 8, LARGE), "algorithm must be one of direct, one_shot, lampo"),
        (("one_shot", "fp32", "fp32", 8, LARGE), "dtype must be one of bf16, fp16, got 'fp32'"),
        (("one_shot", "bf16", "fp32", 8, LARGE), "operand must be one of bf16, fp16, fp8e4m3, i"),
        (("one_shot", "bf16", "fp16", 8, LARGE), "operand fp16 needs dtype fp16"),
        (("one_shot", "bf16", "bf16", 6, LARGE), "world_size must be a power of two, got 6"),
        (("one_shot", "bf16", "bf16", 0, LARGE), "world_size must be a power of two, got 0"),
        (("one_shot", "bf16", "bf16", 8, LARGE, 8), "split must be 1"),
        (("lamport", "bf16", "bf16", 8, Tile(16, 64, 64, 3, 16)), "lamport needs 4 elements of a"),
        (("lamport", "bf16", "bf16", 8, Tile(16, 32, 64, 3, 4)), "must have 1024 elements"),
        (("two_shot", "bf16", "bf16", 8, LARGE, 4), "split must be 1, or world_size for two_shot"),
        (("two_shot", "bf16", "bf16", 32, Tile(16, 256, 64, 3, 4), 32), "16 does not split into"),
        (("two_shot", "bf16", "bf16", 8, SMALL), "a tile of two_shot must have 4096 elements"),
        (("one_shot", "bf16", "bf16", 8, Tile(16, 32, 64, 3, 4)), "must have 1024 elements"),
        (("direct", "bf16", "bf16", 2, LARGE), "direct is for one rank, got world_size 2"),
        (("direct", "bf16", "bf16", 1, LARGE, 2), "split must be 1"),
        (("direct", "bf16", "bf16", 1, LARGE, 1, True), "multimem needs two_shot and 2 ranks"),
        (
            ("direct", "bf16", "bf16", 1, LARGE, 1, False, False),
            "direct does nothing but a product",
        ),
        (("one_shot", "bf16", "bf16", 8, LARGE, 1, True), "multimem needs two_shot and 2 ranks"),
        (("two_shot", "bf16", "bf16", 1, LARGE, 1, True), "multimem needs two_shot and 2 ranks"),
        (("two_shot", "bf16", "bf16", 16, LARGE, 16, True), "for each thread: 512 elements, 4 w"),
        (("two_shot", "bf16", "bf16", 8, Tile(128, 64, 64, 3, 32), 1, True), "4096 elements, 32"),
    ],
)
def test_variant_refuses(arguments: tuple[str, str, str, int, Tile], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant(*arguments)  # type: ignore[arg-type]


def test_8_bit_operands_take_as_many_bytes_a_step() -> None:
    whole = Variant("two_shot", "bf16", "bf16", 8, LARGE)
    for operand in ("int8", "fp8e4m3"):
        scaled = Variant("two_shot", "bf16", operand, 8, LARGE)  # type: ignore[arg-type]
        assert scaled.scaled and not whole.scaled
        assert scaled.block_k * scaled.operand_bytes == whole.block_k * whole.operand_bytes


def test_names_are_unique_and_say_what_differs() -> None:
    names = [variant.name for variant in REACHABLE]
    assert len(set(names)) == len(names)
    variant = Variant("two_shot", "bf16", "int8", 8, LARGE, 8)
    assert variant.name == "two_shot_int8_bf16_w8_split_64x128x128_stages3_warps4"
    form = Variant("two_shot", "bf16", "bf16", 8, LARGE, 8, True)
    assert form.name == "two_shot_bf16_w8_split_multimem_64x128x64_stages3_warps4"
    assert Variant("one_shot", "fp16", "fp16", 1, SMALL).name.startswith("one_shot_fp16_w1_16x64x")
    bulk = Variant("direct", "bf16", "bf16", 1, Tile(64, 128, 64, 3, 4, True))
    assert bulk.name == "direct_bf16_w1_64x128x64_stages3_warps4_bulk"
    given_partials = Variant("two_shot", "bf16", "bf16", 8, LARGE, product=False)
    assert given_partials.name == "two_shot_bf16_w8_given_64x128x64_stages3_warps4"


def test_dispatch_chooses_sums_alone_for_operands_that_torch_multiplies() -> None:
    alone = [variant for variant in REACHABLE if not variant.product]
    assert alone
    assert all(variant.operand == variant.dtype for variant in alone)
    assert all(variant.world_size > 1 and not variant.tile.bulk for variant in alone)


def test_only_direct_has_small_tiles() -> None:
    assert Variant("direct", "bf16", "bf16", 1, Tile(16, 16, 64, 3, 4)).tile.area == 256


# ------------------------------------------------------------------ status record


def test_describe_status_names_everything_that_is_known() -> None:
    record = (PARTIAL_LATE, 3, 7, 5, -2147483648, -2147483647)
    status = dict(zip(STATUS_FIELDS, record, strict=True))
    assert describe_status(status) == (
        "rank 3 gave up waiting for the partial sum of rank 5 at tile 7: its flag is -2147483648, "
        "expected -2147483647; rank 5 did not make this call, stopped in it, or gave up itself"
    )
    assert "for the result of rank 5" in describe_status(status | {"code": RESULT_LATE})
    cells = describe_status(status | {"code": CELL_LATE, "seen": 9, "expected": 4})
    assert "for the partial sum of rank 5 at tile 7: 9 elements have not come in call 4" in cells


# ------------------------------------------------------------------ ELF


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
