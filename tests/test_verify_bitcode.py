"""The version in NVSHMEM's device bitcode: written in every way LLVM may, damaged, and real."""

from __future__ import annotations

import contextlib
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.lock.model import Lock
from tdstack.stack import best_wheel
from tdstack.verify.nvshmem.bitcode import BitcodeError, device_version, version_in
from tdstack.verify.nvshmem.bitstream import Record, blocks, content, open_stream
from tdstack.workspace import Workspace
from tests.bitstreams import (
    AGGREGATE,
    CSTRING,
    DATA,
    INTEGER,
    MAGIC,
    NULL,
    SETTYPE,
    STRTAB,
    STRTAB_ABBREV,
    UNDEF,
    Module,
    Writer,
    device_bitcode,
    rotated,
    wrapped,
)

GOOD = device_bitcode("3.6.5")
THREE, SIX, FIVE = ((INTEGER, rotated(part)) for part in (3, 6, 5))
STRUCT = (AGGREGATE, "#0", "#1", "#2")
WAYS: dict[str, tuple[Module, str]] = {
    "integers, then the struct": (Module([THREE, SIX, FIVE, STRUCT], 3), "3.6.5"),
    "the struct before its integers": (
        Module([(SETTYPE, 2), (AGGREGATE, "#1", "#2", "#3"), (SETTYPE, 1), THREE, SIX, FIVE], 0),
        "3.6.5",
    ),
    "one integer in two places": (Module([THREE, (AGGREGATE, "#0", "#0", "#0")], 1), "3.3.3"),
    "zero is null": (Module([THREE, SIX, (NULL,), STRUCT], 3), "3.6.0"),
    "all is null": (Module([(NULL,)], 0), "0.0.0"),
    "packed data": (Module([(DATA, 3, 6, 5)], 0), "3.6.5"),
    "other constants between": (
        Module(
            [(UNDEF,), THREE, (CSTRING, *b"a_text"), SIX, FIVE, (AGGREGATE, "#1", "#3", "#4")], 5
        ),
        "3.6.5",
    ),
    "types between count for nothing": (
        Module([(SETTYPE, 1), THREE, (SETTYPE, 2), SIX, (SETTYPE, 3), FIVE, STRUCT], 3),
        "3.6.5",
    ),
    "two blocks of constants": (Module([THREE, SIX, FIVE, STRUCT], 3, split=2), "3.6.5"),
    "nothing declared around it": (
        Module([THREE, SIX, FIVE, STRUCT], 3, before=(), after=()),
        "3.6.5",
    ),
    "its name begins another's": (
        Module([THREE, SIX, FIVE, STRUCT], 3, before=("g" + "x" * 28, "nvshmemi_device_lib_v")),
        "3.6.5",
    ),
}


@pytest.mark.parametrize("abbreviate", ["none", "blockinfo", "local"])
@pytest.mark.parametrize("way", WAYS)
def test_the_version_is_read_however_it_is_written(way: str, abbreviate: str) -> None:
    module, version = WAYS[way]
    module.abbreviate = abbreviate  # type: ignore[assignment]
    assert version_in(module.tobytes()) == version


@pytest.mark.parametrize("offset", [20, 22, 64])
def test_a_wrapper_is_looked_into(offset: int) -> None:
    assert version_in(wrapped(GOOD, offset)) == "3.6.5"


@pytest.mark.parametrize("padding", [b"", b"\0" * 4, b"\n"])
def test_a_file_is_read_as_its_bytes_are(tmp_path: Path, padding: bytes) -> None:
    (tmp_path / "x.bc").write_bytes(GOOD + padding)
    assert device_version(tmp_path / "x.bc") == "3.6.5"


def with_block(width: int, name: int = 8) -> bytes:
    """Bitcode of one block whose abbreviation ids have `width` bits."""
    writer = Writer()
    for byte in MAGIC:
        writer.fixed(byte, 8)
    with writer.block(name, width):
        writer.fixed(0, 32)
    return writer.tobytes()


def with_words(words: int, *fields: tuple[int, int]) -> bytes:
    """Bitcode of a module of `words` words that holds `fields`: values and their widths in bits.

    Zeros follow.
    """
    writer = Writer()
    for byte in MAGIC:
        writer.fixed(byte, 8)
    for value, width in [(1, 2), (8, 8), (3, 4), (0, 18), (words, 32), *fields, (0, 512)]:
        writer.fixed(value, width)
    return writer.tobytes()


def with_bits(*fields: tuple[int, int]) -> bytes:
    """Bitcode of a module whose content begins with `fields`."""
    return with_words(10, *fields)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no LLVM bitcode"),
    "an ELF": (b"\x7fELF" + bytes(400), "no LLVM bitcode: it begins with b'\\x7fELF'"),
    "text": (b"BC", "no LLVM bitcode"),
    "the magic number alone": (MAGIC, "holds no module"),
    "half of it": (GOOD[: len(GOOD) // 8 * 4], "cut short"),
    "without its last word": (GOOD[:-4], "cut short"),
    "a wrapper of nothing": (wrapped(b""), "no LLVM bitcode"),
    "a wrapper that names more": (wrapped(GOOD, size=len(GOOD) + 100), "cut short"),
    "another library": (Module([THREE], 0, name="nvshmemi_device_lib_version_x").tobytes(), "no "),
    "another library, padded": (
        Module([THREE], 0, name="nvshmemi_device_lib_version_x").tobytes() + b"\n\0\0\0",
        "it is not NVSHMEM's",
    ),
    "a declaration": (Module([THREE], None).tobytes(), "does not define"),
    "an integer, no struct": (Module([THREE], 0).tobytes(), "no struct"),
    "initialized by itself": (Module([THREE], -2).tobytes(), "no struct"),
    "two parts": (Module([THREE, (AGGREGATE, "#0", "#0")], 1).tobytes(), "no version"),
    "a negative part": (
        Module([(INTEGER, rotated(-3)), (AGGREGATE, "#0", "#0", "#0")], 1).tobytes(),
        "no version",
    ),
    "a part of 64 bits": (
        Module([(INTEGER, 1 << 63), (AGGREGATE, "#0", "#0", "#0")], 1).tobytes(),
        "no version",
    ),
    "an undefined part": (
        Module([(UNDEF,), (AGGREGATE, "#0", "#0", "#0")], 1).tobytes(),
        "no integer",
    ),
    "a part that is a text": (
        Module([(CSTRING, 4, 4), (AGGREGATE, "#0", "#0", "#0")], 1, abbreviate="none").tobytes(),
        "no integer",
    ),
    "a part that is an address": (
        Module([THREE, (AGGREGATE, "#0", "#0", "#-1")], 1).tobytes(),
        "no integer",
    ),
    "no such value": (Module([THREE], 7).tobytes(), "no value"),
    "no such part": (Module([(AGGREGATE, "#9", "#9", "#9")], 0).tobytes(), "no value"),
    "LLVM 4": (Module([THREE, SIX, FIVE, STRUCT], 3, version=1).tobytes(), "before 2"),
    "no module": (with_block(3, name=13), "holds no module"),
    "ids of no bits": (with_block(0), "damaged"),
    "no block at the top": (MAGIC + b"\xff" * 40, "should begin"),
    # DEFINE_ABBREV, then a count of operands, ...
    "an empty abbreviation": (with_bits((2, 3), (0, 5)), "damaged"),
    "a blob for a code": (with_bits((2, 3), (1, 5), (0, 1), (5, 3)), "misordered"),
    "an array of blobs": (
        with_bits((2, 3), (3, 5), (1, 1), (5, 8), (0, 1), (3, 3), (0, 1), (5, 3)),
        "no bits",
    ),
    "an array of literals": (
        with_bits((2, 3), (3, 5), (1, 1), (5, 8), (0, 1), (3, 3), (1, 1), (5, 8)),
        "no bits",
    ),
    "numbers of one bit that never end": (
        with_bits((2, 3), (1, 5), (0, 1), (2, 3), (1, 5)),
        "encoding 2 of 1 bits",
    ),
    "an abbreviation that nobody defined": (with_bits((7, 3)), "not defined"),
    # Two UNABBREV_RECORDs of 11 operands together are three words: nothing is left for END_BLOCK.
    "a block without an end": (
        with_words(
            3, *[(3, 3), (1, 6), (10, 6)], *[(7, 6)] * 10, *[(3, 3), (1, 6), (1, 6), (7, 6)]
        ),
        "no end",
    ),
    # UNABBREV_RECORD with a code and 2**29 operands: five chunks of five bits that go on, one not.
    "a record larger than the file": (
        with_bits((3, 3), (1, 6), *[(32, 6)] * 5, (16, 6)),
        "past its end",
    ),
    "a number that never ends": (with_bits((3, 3), *[(63, 6)] * 40), "more than 64 bits"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(BitcodeError, match="bitcode") as caught:
        version_in(data)
    assert message in str(caught.value)


def test_what_follows_a_blob_is_read() -> None:
    writer = Writer()
    for byte in MAGIC:
        writer.fixed(byte, 8)
    with writer.block(STRTAB):
        writer.define(STRTAB_ABBREV)
        writer.abbreviated(0, STRTAB_ABBREV, [1, *b"abcde"])
        writer.record(9, 8, 7)
    bits = open_stream(writer.tobytes())
    (block,) = blocks(bits)
    assert list(content(bits, block)) == [Record(1, [], b"abcde"), Record(9, [8, 7])]


def test_an_empty_file_is_no_bitcode(tmp_path: Path) -> None:
    (tmp_path / "x.bc").touch()
    with pytest.raises(BitcodeError, match="empty"):
        device_version(tmp_path / "x.bc")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        device_version(tmp_path / "x.bc")


NAMES = st.lists(st.sampled_from(["f_a", "g_b", "a_c", "g_" + "d" * 40]), max_size=40)


@given(
    parts=st.tuples(*[st.integers(0, 999)] * 3),
    order=st.permutations(range(4)),
    before=NAMES,
    after=NAMES,
    abbreviate=st.sampled_from(["none", "blockinfo", "local"]),
    types=st.lists(st.integers(0, 4), max_size=4),
    others=st.integers(0, 70),
    split=st.integers(0, 8),
)
def test_any_version_in_any_order_is_read(
    parts: tuple[int, ...],
    order: list[int],
    before: list[str],
    after: list[str],
    abbreviate: str,
    types: list[int],
    others: int,
    split: int,
) -> None:
    # Three integers and their struct, in any order, behind `others` constants.
    at = {what: others + place for place, what in enumerate(order)}
    records: list[tuple[int | str, ...]] = [(UNDEF,)] * others
    for what in order:
        if what == 3:
            records.append((AGGREGATE, *(f"#{at[part]}" for part in range(3))))
        else:
            records.append((INTEGER, rotated(parts[what])))
    for place in types:
        records.insert(place, (SETTYPE, place))
    module = Module(records, at[3], before, after, split=split)
    module.abbreviate = abbreviate  # type: ignore[assignment]
    assert version_in(module.tobytes()) == ".".join(map(str, parts))


def answers(data: bytes) -> None:
    """Whatever the bytes are, the reader answers or says what is wrong, and does so soon."""
    begin = time.monotonic()
    with contextlib.suppress(BitcodeError):
        assert version_in(data).count(".") == 2
    assert time.monotonic() - begin < 2


@settings(max_examples=300)
@given(st.binary(max_size=2000), st.booleans())
def test_arbitrary_bytes_are_refused_soon(data: bytes, magic: bool) -> None:
    answers(MAGIC + data if magic else data)


CHANGES = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6)


@settings(max_examples=500)
@given(CHANGES, st.integers(0, len(GOOD)), st.binary(max_size=40), st.booleans())
def test_mutated_bitcode_never_escapes(
    changes: list[tuple[int, int]], cut: int, insert: bytes, in_wrapper: bool
) -> None:
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    data[cut:cut] = insert
    answers(wrapped(bytes(data)) if in_wrapper else bytes(data))


def test_every_cut_is_noticed() -> None:
    for cut in range(len(GOOD)):
        with pytest.raises(BitcodeError):
            version_in(GOOD[:cut])


@pytest.mark.engine
def test_the_device_library_of_the_lock_says_its_version(lock: Lock, tmp_path: Path) -> None:
    ref = "nvidia-nvshmem-cu12==3.6.5"
    file = best_wheel(ref, lock.packages[ref], "3.12", "linux/amd64", "2.39")
    workspace = Workspace.here()
    workspace.fetch([file])
    with zipfile.ZipFile(workspace.store.path(file)) as archive:
        path = Path(archive.extract("nvidia/nvshmem/lib/libnvshmem_device.bc", tmp_path))
    begin = time.monotonic()
    assert device_version(path) == "3.6.5"
    assert time.monotonic() - begin < 5
