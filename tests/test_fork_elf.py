"""What a compiled library asks for: real libraries, damaged ones, and bytes that are none."""

from __future__ import annotations

import platform
import struct
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tdstack.fork.elf import Needs, NotElfError, compiled_for, needs_of
from tests.triton_wheels import OLDEST, elf, library

# The fields of an ELF64 header (gABI, figure 4-3): offset and struct format.
MACHINE, PHOFF, SHOFF = (18, "<H"), (32, "<Q"), (40, "<Q")
PHNUM, SHENTSIZE, SHNUM = (56, "<H"), (58, "<H"), (60, "<H")
VERNEED = 0x6FFFFFFE


def field(data: bytes, at: tuple[int, str]) -> int:
    (value,) = struct.unpack_from(at[1], data, at[0])
    return int(value)


def patched(data: bytes, at: tuple[int, str], value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(at[1], out, at[0], value)
    return bytes(out)


def verneed() -> int:
    """Where the section header of .gnu.version_r lies."""
    data = elf()
    for n in range(field(data, SHNUM)):
        at = field(data, SHOFF) + n * 64
        if field(data, (at + 4, "<I")) == VERNEED:
            return at
    raise AssertionError("no .gnu.version_r")


def outcome(data: bytes) -> Needs | str:
    try:
        return needs_of(data)
    except NotElfError as error:
        assert str(error), "an error says something"
        return "no ELF"


def test_a_library_of_this_python_needs_this_machine_and_a_glibc_that_runs_here() -> None:
    folder = Path(sysconfig.get_path("stdlib"), "lib-dynload")
    libraries = sorted(folder.glob("*.so"))
    assert libraries
    here = tuple(map(int, platform.libc_ver()[1].split(".")))
    for path in libraries:
        needs = needs_of(path.read_bytes())
        assert needs.machine == platform.machine(), path.name
        assert needs.glibc == "" or tuple(map(int, needs.glibc.split("."))) <= here, path.name
    assert any(needs_of(path.read_bytes()).glibc for path in libraries)


def test_the_newest_version_of_several_is_taken_by_number_not_by_text() -> None:
    folder = Path(sysconfig.get_path("stdlib"), "lib-dynload")
    for path in sorted(folder.glob("*.so")):
        data = path.read_bytes()
        if OLDEST in data and b"GLIBC_2.14\0" in data:
            assert needs_of(data).glibc != "2.2.5"
            return
    pytest.skip("this Python has no library that needs two versions")


@pytest.mark.parametrize("glibc", ["2.9", "2.27", "2.38", "2.99"])
def test_a_library_that_needs_another_glibc_says_so(glibc: str) -> None:
    assert needs_of(library(glibc=glibc)).glibc == glibc


@pytest.mark.parametrize("name", ["PRIVATE", "2..1", ".2", "ABI_DT"])
def test_a_version_that_is_no_number_is_none(name: str) -> None:
    text = f"GLIBC_{name}".encode()[: len(OLDEST) - 1]
    assert needs_of(elf().replace(OLDEST, text.ljust(len(OLDEST), b"\0"))).glibc == ""


@pytest.mark.parametrize(
    ("number", "name"), [(62, "x86_64"), (183, "aarch64"), (243, "EM_RISCV"), (0xFFFF, "65535")]
)
def test_the_machine_is_the_one_of_the_header(number: int, name: str) -> None:
    assert needs_of(patched(elf(), MACHINE, number)).machine == name


@pytest.mark.parametrize("python", ["3.6", "3.9", "3.11", "3.14"])
def test_the_python_that_a_library_was_compiled_for(python: str) -> None:
    assert compiled_for(library(python=python)) == python


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ""),
        (b"\x003.11\x00", "3.11"),
        (b"\x003.11\x003.11\x00", "3.11"),
        (b"\x003.11\x003.12\x00", ""),
        (b"\x003.11\x00x\x003.9\x00", ""),
        (b"\x003.1\x00", ""),
        (b"\x0013.11\x00", ""),
        (b"\x003.11.7\x00", ""),
        (b"3.11", ""),
    ],
)
def test_two_pythons_or_none_are_unclear(data: bytes, expected: str) -> None:
    assert compiled_for(b"module was compiled for Python %s" + data) == expected
    # Elsewhere such a text means nothing.
    assert compiled_for(data) == ""


def test_stock_tritons_library_tells_its_python() -> None:
    found = Path(sysconfig.get_path("platlib"), "triton/_C/libtriton.so")
    if not found.exists():
        pytest.skip("no Triton is installed")
    data = found.read_bytes()
    assert compiled_for(data) == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert needs_of(data).glibcxx.startswith("3.4.")


def test_a_library_that_is_cut_anywhere_is_none() -> None:
    data = elf()
    table = field(data, SHOFF)
    edges = {0, 1, 4, 15, 16, 63, 64, 65, verneed(), verneed() + 1, table, table + 63, table + 64}
    for end in sorted({*edges, *range(0, len(data), 97), len(data) - 1}):
        assert outcome(data[:end]) == "no ELF", f"{end} of {len(data)} bytes"


def headers_first() -> bytes:
    """The same library with its section headers before everything else, as some tools write it."""
    data = elf()
    count, table = field(data, SHNUM), field(data, SHOFF)
    shift = 64 * count
    out = patched(data[:64], SHOFF, 64)
    out = patched(out, PHOFF, field(data, PHOFF) + shift)
    for at in range(table, table + shift, 64):
        header = data[at : at + 64]
        out += patched(header, (24, "<Q"), field(header, (24, "<Q")) + shift)
    out += data[64:table]
    for n in range(field(data, PHNUM)):
        offset = (field(out, PHOFF) + 56 * n + 8, "<Q")
        out = patched(out, offset, field(out, offset) + shift)
    return out


def test_a_library_whose_headers_come_first_is_whole_only_to_its_last_section() -> None:
    data = headers_first()
    assert needs_of(data) == needs_of(elf())
    for share in (0.3, 0.6, 0.9, 0.999):
        assert outcome(data[: int(len(data) * share)]) == "no ELF"


def test_a_segment_past_the_end_is_no_library() -> None:
    data = elf()
    size = (field(data, PHOFF) + 32, "<Q")  # p_filesz of the first
    assert outcome(patched(data, size, len(data) + 1)) == "no ELF"


def test_a_library_that_was_filled_with_zeros_is_none() -> None:
    data = elf()
    for share in (0.1, 0.5, 0.9):
        kept = int(len(data) * share)
        assert outcome(data[:kept] + bytes(len(data) - kept)) == "no ELF"


@pytest.mark.parametrize(
    ("offset", "kind", "value"),
    [(20, "<I", 0), (24, "<Q", 1 << 40), (28, "<I", 0), (32, "<Q", 1 << 63), (40, "<I", 0xFFFF),
     (44, "<I", 0xFFFFFFFF)],
)  # fmt: skip
def test_counters_that_lie_end_soon(offset: int, kind: str, value: int) -> None:
    outcome(patched(elf(), (verneed() + offset, kind), value))


def test_versions_that_go_round_in_circles_are_no_library() -> None:
    data = elf()
    first = field(data, (verneed() + 24, "<Q"))
    many = patched(data, (verneed() + 44, "<I"), 0xFFFFFFFF)  # sh_info: how many there are
    circle = patched(patched(many, (first + 12, "<I"), 0), (first + 2, "<H"), 0xFFFF)
    assert outcome(circle) == "no ELF"


@pytest.mark.parametrize("size", [0, 1, 32, 63])
def test_section_headers_that_overlap_are_no_library(size: int) -> None:
    assert outcome(patched(elf(), SHENTSIZE, size)) == "no ELF"


def test_bytes_after_the_end_change_nothing() -> None:
    assert needs_of(elf() + b"x" * 1000) == needs_of(elf())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4096))
@example(b"\x7fELF")
@example(b"\x7fELF stock")
@example(b"\x7fELF\x02\x01\x01" + bytes(57))
@example(b"\x7fELF\x01\x02\x01" + b"\xff" * 100)
@example(b"\x7fELF\x02\x01\x01" + b"\xff" * 200)
def test_random_bytes_are_no_library(data: bytes) -> None:
    outcome(data)
    outcome(b"\x7fELF\x02\x01\x01" + data)
    assert compiled_for(data) in {"", *(f"3.{n}" for n in range(6, 100))}


def _places() -> st.SearchStrategy[int]:
    data = elf()
    table = field(data, SHOFF)
    needs = field(data, (verneed() + 24, "<Q"))
    return st.one_of(
        st.integers(0, 63), st.integers(table, len(data) - 1), st.integers(needs, needs + 64),
        st.integers(0, len(data) - 1),
    )  # fmt: skip


@settings(max_examples=400, deadline=2000)
@given(st.dictionaries(_places(), st.integers(0, 255), min_size=1, max_size=8))
def test_a_damaged_library_is_read_or_refused_and_soon(damage: dict[int, int]) -> None:
    data = bytearray(elf())
    for place, value in damage.items():
        data[place] = value
    outcome(bytes(data))
