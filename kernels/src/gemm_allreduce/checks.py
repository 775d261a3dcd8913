"""What must hold for a cubin and for a bundle, as pure functions. Needs no GPU, torch or Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .arguments import ARGUMENTS, POINTERS
from .bundle import Record
from .limits import ctas_per_sm, limits
from .resources import Kernel, read_kernel
from .sass import Access, Accesses, count_accesses
from .variants import CELL_ELEMENTS, MULTIMEM_ELEMENTS, MULTIMEM_ROWS, SUM_AREA, Variant

WIDE: Final = 16
"""Bytes that a thread moves at a time where a tile is concerned."""

_WORD: Final = 4

_REPORT_STORES: Final = 12
"""Words that a CTA stores for a wait that failed: six in the heap, six in the host's copy."""


@dataclass(frozen=True)
class Finding:
    """Something that does not hold.

    ``check`` names the rule, ``arch`` and ``variant`` the cubin (empty for a whole bundle);
    ``code`` is the exit code that it stands for: 1, or 4 for bytes that are not the manifest's.
    """

    check: str
    arch: str
    variant: str
    what: str
    expected: str
    got: str
    code: int = 1

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.arch, self.variant)))
        told = f"{self.what} ({self.check}): expected {self.expected}, got {self.got}"
        return f"{where}: {told}" if where else told


def check_cubin(variant: Variant, record: Record, data: bytes) -> list[Finding]:
    """Check one cubin against its variant, its record, and the limits.

    Args:
        variant: what it must be.
        record: what the manifest says of it. That the bytes are the manifest's is not checked.
        data: the cubin.
    """

    def finding(check: str, what: str, expected: object, got: object) -> Finding:
        return Finding(check, record.arch, record.name, what, str(expected), str(got))

    try:
        kernel = read_kernel(data)
        accesses = count_accesses(kernel.code, kernel.sm)
    except ValueError as error:
        return [finding("cubin", "the cubin cannot be read", "a cubin of one kernel", error)]
    found = [
        finding(*problem)
        for problem in (
            *_as_recorded(variant, record, kernel),
            *_parameters(record, kernel),
            *_resident(variant, record, kernel),
            *_width(variant, accesses),
        )
    ]
    allowed = limits().local_bytes(record.name)
    if kernel.local_bytes > allowed:
        what = "registers are spilled to local memory, bytes per thread"
        found.append(finding("local", what, f"at most {allowed}", kernel.local_bytes))
    if not kernel.local_bytes and accesses.of("local"):
        what = "instructions on local memory without a stack frame"
        found.append(finding("local", what, 0, accesses.of("local")))
    return found


def check_size(arch: str, size: int) -> list[Finding]:
    """Check the bytes of all cubins of an architecture against its budget."""
    budget = limits().archs[arch].bundle_bytes
    if size <= budget:
        return []
    return [Finding("size", arch, "", "bytes of all cubins", f"at most {budget}", str(size))]


Problem = tuple[str, str, object, object]
"""Check, what, expected, got."""


def _as_recorded(variant: Variant, record: Record, kernel: Kernel) -> Iterator[Problem]:
    entry = f"gemm_allreduce_{variant.algorithm}"
    warps, threads = variant.tile.num_warps, variant.threads
    for check, what, expected, got in (
        ("arch", "architecture of the cubin", record.arch, f"sm_{kernel.sm}"),
        ("entry", "name of the kernel", entry, kernel.entry),
        ("entry", "name of the kernel in the manifest", entry, record.entry),
        ("threads", "threads per CTA", threads, kernel.threads),
        ("threads", "warps in the manifest", warps, record.num_warps),
        ("registers", "registers in the manifest", kernel.registers, record.registers),
        ("local", "local bytes in the manifest", kernel.local_bytes, record.local_bytes),
        ("shared", "static shared memory, bytes", 0, kernel.static_shared),
    ):
        if expected != got:
            yield check, what, expected, got
    if not record.cooperative:
        yield "cooperative", "launch in the manifest", "cooperative", "not cooperative"


def _parameters(record: Record, kernel: Kernel) -> Iterator[Problem]:
    sizes = [8 if name in POINTERS else 4 for name in ARGUMENTS] + [8] * record.scratch
    got = [parameter.size for parameter in kernel.parameters]
    if len(sizes) != len(got):
        what = f"arguments, with {record.scratch} null pointers of Triton's behind them"
        yield "parameters", what, len(sizes), len(got)
    elif sizes != got:
        wrong = [name for name, a, b in zip(ARGUMENTS, sizes, got, strict=False) if a != b]
        what = f"sizes of arguments, first different: {wrong[0] if wrong else 'the last ones'}"
        yield "parameters", what, sizes, got


def _resident(variant: Variant, record: Record, kernel: Kernel) -> Iterator[Problem]:
    """As many CTAs as dispatch counts on must fit on a multiprocessor: launches are cooperative."""
    table = limits()
    ctas = ctas_per_sm(variant)
    registers = table.registers_of_thread(variant.tile.num_warps, ctas)
    if kernel.registers > registers:
        what = f"registers per thread, for {ctas} x {variant.tile.num_warps} warps"
        yield "registers", what, f"at most {registers}", kernel.registers
    shared = table.shared_of_cta(record.arch, ctas)
    if record.shared > shared:
        what = f"shared memory per CTA with {ctas} on a multiprocessor, bytes"
        yield "shared", what, f"at most {shared}", record.shared
    threads = table.archs[record.arch].threads
    if variant.threads * ctas > threads:
        what = "threads on a multiprocessor"
        yield "threads", what, f"at most {threads}", variant.threads * ctas


def _width(variant: Variant, accesses: Accesses) -> Iterator[Problem]:
    """Tiles move 16 bytes at a time; what is narrower is counted.

    A kernel that lost a hint of alignment makes of each wide access several narrow ones: it then
    has too few wide ones, or narrow ones that nothing but a tile explains.
    """
    expected = expected_traffic(variant)
    loads, stores = accesses.wide("load", WIDE), accesses.wide("store", WIDE)
    if loads < expected.loads:
        what = "loads of 16 bytes a thread: slots or parts of peers, and results"
        yield "width", what, f"at least {expected.loads}", f"{loads} ({accesses})"
    if stores < expected.stores:
        what = "stores of 16 bytes a thread: partials, results, y"
        yield "width", what, f"at least {expected.stores}", f"{stores} ({accesses})"
    copies: Access = "bulk load" if variant.tile.bulk else "copy"
    if not accesses.of(copies) and variant.product:
        kind = "bulk" if variant.tile.bulk else "asynchronous"
        what = f"{kind} copies of x and weight to shared memory"
        yield "width", what, "some", f"none ({accesses})"
    # The multimem form adds it to a few rows at a time; a branch keeps those loads apart.
    biases = -(-variant.unit_rows // MULTIMEM_ROWS) if variant.multimem else 1
    if variant.algorithm == "direct" and variant.tile.bulk:
        biases = 2  # stored as the product lies in registers, where a thread's columns lie apart
    for what, most, got in (
        ("asynchronous copies below 16 bytes", 0, accesses.narrow("copy", WIDE)),
        ("stores below 16 bytes", expected.words, accesses.narrow("store", WIDE)),
        ("stores below 4 bytes", 0, accesses.narrow("store", _WORD)),
        (
            f"loads below 4 bytes: at most {'one' if biases == 1 else biases} of bias",
            biases,
            accesses.narrow("load", _WORD),
        ),
        ("loads below 2 bytes", 0, accesses.narrow("load", 2)),
        ("accesses to memory of an unknown kind", 0, accesses.of("generic")),
        ("bulk loads", None if variant.tile.bulk else 0, accesses.of("bulk load")),
        ("bulk copies, which no flag of the protocol orders", 0, accesses.of("bulk")),
    ):
        if most is not None and got > most:
            yield "width", what, f"at most {most}", f"{got} ({accesses})"


@dataclass(frozen=True)
class Traffic:
    """Instructions of a kernel that the source asks for: 16-byte loads, 16-byte stores, words, or
    other stores below 16 bytes.
    """

    loads: int = 0
    stores: int = 0
    words: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.loads + other.loads, self.stores + other.stores, self.words + other.words
        )


@dataclass(frozen=True)
class _Pieces:
    """Of a tile or a part of one: 16-byte pieces for each thread; 0: one piece, a smaller one."""

    whole: int

    def loaded(self, times: int) -> Traffic:
        return Traffic(loads=self.whole * times)

    def stored(self, times: int) -> Traffic:
        return Traffic(stores=self.whole * times, words=0 if self.whole else times)


def expected_traffic(variant: Variant) -> Traffic:
    """Return the least 16-byte loads and stores, and the most stores of a word. Pure.

    Written down from the kernels' sources, where loops over ranks are unrolled; bias, residual
    and what the optimiser may add to it come on top.
    """
    ranks = variant.world_size
    tile = _pieces(variant, variant.tile.area)
    if variant.algorithm == "direct":
        return Traffic() + tile.stored(1)
    if variant.algorithm in ("one_shot", "lamport"):
        emptied = Traffic(words=_REPORT_STORES) + tile.stored(ranks)
        sent = tile.stored(ranks)
        if variant.algorithm == "lamport":  # 8 bytes at a time
            sent = Traffic(words=ranks * (variant.tile.area // (CELL_ELEMENTS * variant.threads)))
        return emptied + sent + tile.loaded(ranks) + tile.stored(1)
    unit = variant.unit_rows * variant.tile.block_n
    total = Traffic(words=2 * _REPORT_STORES) + tile.loaded(1) + tile.stored(2)
    if variant.multimem:  # the switch sums, and sends to all
        return total + _pieces(variant, unit).stored(1)
    part = _pieces(variant, min(unit, SUM_AREA))  # in a loop
    return total + part.loaded(ranks) + part.stored(ranks)


def _pieces(variant: Variant, elements: int) -> _Pieces:
    return _Pieces(elements // (MULTIMEM_ELEMENTS * variant.threads))
