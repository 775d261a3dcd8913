"""Reads PTX and says where it breaks the rules that the protocol between ranks rests on.

A pure function of text: it needs no Triton, so it can look at the output of any.

Order
    1. Every release is at system scope, and the access before it in its basic block is a barrier
       of the whole CTA: other warps' stores are then older than the flag.
    2. Every acquire is a poll of flags at system scope, and on every path from it a barrier comes
       before any access but the rest of the same poll: other warps' loads are then younger than
       the flag.
    3. As many releases and acquires as the source has: compilers delete accesses whose result is
       unused, and a flag must not be set twice.
    4. No tile is read from the heap without an acquire since the kernel began, since the last
       release and since y was last stored; and only behind the last acquire of each poll.
    5. The counter of launches is read once, and added to once, by a relaxed 64-bit atomic: behind
       a barrier, where the kernel has read its epoch from it. Nothing else is ordered by it.

Cells
    8. Without flags, what is sent is stored relaxed at system scope, and looked at by volatile
       loads, which are that too.
    9. What has been read is emptied behind a barrier, so that no warp still reads it.

Multimem
    6. Without it no access to multicast memory; with it, both kinds, as often as the unit has
       pieces for each thread: with more, two threads would read one sum, which may differ.
    7. Multicast and plain addresses are two proxies, which only a proxy fence orders: one comes
       after every acquire before a sum is read, and after every multicast store before a release.

Width
    Tiles move 16 bytes at a time. What may be narrower, and why, is NARROW below; and a tile, or
    a unit of one, that has no 16 bytes for each thread: of it each thread moves one piece.

Bulk copies
    10. Only where the tile says so, only loads, and only with descriptors of x and weight: what
       peers write is never read, and nothing is stored, by a proxy that no flag orders.
    11. A descriptor is fenced by the thread that wrote it, and a barrier comes before its use.

Early starts
    12. Only an early kernel runs beside the one before it. It waits once for that one to end, all
        threads do, and before that it touches nothing: it may only ask for weights. Then it lets
        the next one start.

Nothing else may touch global memory: an access that this file does not know, or whose pointer it
cannot follow back to an argument, is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

WIDE: Final = 16

NARROW: Final[dict[tuple[str, str], tuple[int, ...]]] = {
    # One row for the whole tile: a CTA has more threads than the row has 16-byte pieces.
    ("ld", "bias_ptr"): (2, 4, 8),
    # One value per row or column of the tile, spread as the product's accumulator is.
    ("ld", "x_scale_ptr"): (4, 8),
    ("ld", "weight_scale_ptr"): (4, 8),
    # Addresses, one each.
    ("ld", "heap_table"): (8,),
    # Control words; how many of them is checked too.
    ("st", "heap"): (4,),
    ("st", "status_ptr"): (4,),
}
"""Widths in bytes below 16 of loads and stores, by what the pointer points to."""

TILES: Final = {
    "ld": (
        *("x_ptr", "weight_ptr", "residual_ptr", "bias_ptr", "x_scale_ptr", "weight_scale_ptr"),
        *("heap", "heap_table"),
    ),
    "st": ("y_ptr", "heap"),
}
"""What may be loaded and stored 16 bytes at a time."""

EMPTY: Final = str(0x80008000 - 2**32)
"""Two elements that have not come, as the compiler writes them down."""
LANES: Final = 256
"""Flags that a poll reads, each thread one or more."""
POLLS: Final = 2
"""Of each wait: a first look, and one in a loop."""
REFRESHES: Final = 1
"""Places that look at a flag which may be old, and replace it."""
REPORT_STORES: Final = 5
"""Words that follow the status record's code. The host's copy has the code as one more."""


@dataclass(frozen=True)
class Expected:
    """What the source of a kernel has.

    Attributes:
        releases: calls of `publish`.
        waits: calls of `wait_flags`.
        threads: of a CTA.
        scaled: x and weight come with scales.
        ranks: partials of a unit; 0 where there is no protocol at all.
        tile_width: bytes that each thread moves at a time of a tile.
        tile_pieces: how many times it does, for a whole tile.
        unit_width: the same of a part of a unit that is summed; in one-shot that of the tile.
        cells: partials say by themselves that they have come; no flag does.
        empties: what has been read of partials is emptied.
        bulk: x and weight come by bulk copies.
        early: the kernel starts before the one before it has ended.
        multimem: multimem loads, and as many stores, of each thread and unit; 0 for none.
        element: bf16 or f16, what these move.
    """

    releases: int
    waits: int
    threads: int
    scaled: bool
    ranks: int
    tile_width: int = WIDE
    tile_pieces: int = 1
    unit_width: int = WIDE
    cells: bool = False
    empties: bool = False
    bulk: bool = False
    early: bool = False
    multimem: int = 0
    element: str = "bf16"

    @property
    def tile_bytes(self) -> int:
        """Bytes of each thread's part of a tile of y."""
        return self.tile_pieces * self.tile_width

    @property
    def reports(self) -> int:
        """Places where a wait that gave up is recorded."""
        return self.waits + self.cells

    @property
    def poll(self) -> int:
        """Instructions of one poll."""
        return max(1, LANES // self.threads)


@dataclass(frozen=True)
class Instruction:
    """One line of PTX. ``index`` counts instructions, ``block`` basic blocks."""

    index: int
    line: int
    block: int
    predicate: str
    op: str
    operands: str

    @property
    def parts(self) -> list[str]:
        """The opcode's parts, ``ld``, ``global``, ..."""
        return self.op.split(".")

    @property
    def order(self) -> str:
        """``acquire``, ``release``, ``acq_rel``, ``relaxed``, ``volatile``; empty for none."""
        names = ("acquire", "release", "acq_rel", "relaxed", "volatile")
        return next((name for name in names if name in self.parts), "")

    @property
    def is_barrier(self) -> bool:
        """Whether all threads of the CTA wait for each other here."""
        named = re.match(r"(bar|barrier)(\.cta)?\.sync(\.aligned)?$", self.op)
        return bool(named) and not self.predicate and self.operands == "0"

    @property
    def is_global(self) -> bool:
        """Whether it touches global memory, or may."""
        if self.parts[0] in ("atom", "red", "multimem"):
            return "shared" not in self.op
        if self.parts[0] in ("ld", "ldu", "st"):
            return not re.search(r"\.(param|shared|const|local)\b", self.op)
        if self.parts[0] == "cp" and not self.is_prefetch:
            return not re.search(r"(commit|wait)_(group|all)|^cp\.async\.mbarrier", self.op)
        return False

    @property
    def is_prefetch(self) -> bool:
        """Whether it asks for memory to be brought into the L2 cache, and reads nothing."""
        return self.op == "cp.async.bulk.prefetch.L2.global"

    @property
    def is_bulk_load(self) -> bool:
        """Whether it copies a tile, by a descriptor, into shared memory."""
        loads = r"cp\.async\.bulk\.tensor\.\dd\.shared::\w+\.global\.mbarrier::"
        return bool(re.match(loads, self.op))

    @property
    def is_descriptor(self) -> bool:
        """Whether it writes a descriptor to memory."""
        return self.op.startswith("tensormap.cp_fenceproxy.")

    @property
    def is_descriptor_fence(self) -> bool:
        """Whether bulk copies of this thread find descriptors that were written before."""
        return self.op.startswith("fence.proxy.tensormap::generic.acquire.")

    @property
    def is_proxy_fence(self) -> bool:
        """Whether it orders this thread's plain and multicast accesses."""
        return self.op == "fence.proxy.alias" and not self.predicate

    @property
    def width(self) -> int:
        """Bytes that one thread moves."""
        if self.parts[0] == "cp":
            sizes = re.findall(r"(?<=, )(?:0x[0-9a-f]+|\d+)\b", self.operands)
            return int(sizes[0], 0) if sizes else 0
        vector = next((int(p[1:]) for p in self.parts if re.fullmatch(r"v[248]", p)), 1)
        if self.parts[-1] in ("bf16x2", "f16x2"):
            return vector * 4
        bits = re.fullmatch(r"[bsuf](8|16|32|64|128)", self.parts[-1])
        return vector * int(bits[1]) // 8 if bits else 0

    @property
    def address(self) -> str:
        """The register in the brackets; for a copy, that of its source or of its descriptor."""
        found = re.findall(r"\[\s*(%\w+)", self.operands)
        if self.is_bulk_load:
            return found[1] if len(found) == 3 else ""
        if self.is_descriptor:
            return found[0] if found else ""
        return found[-1] if found else ""

    @property
    def written(self) -> list[str]:
        """Registers that it sets, as far as addresses are made of them."""
        first = re.match(r"\{([^}]*)\}|([^,\[]*)", self.operands)
        return re.findall(r"%\w+", first[0]) if first else []

    def __str__(self) -> str:
        text = " ".join(filter(None, (self.predicate, self.op, self.operands)))
        return f"line {self.line} ({text[:90]})"


class Program:
    """The one kernel in a PTX file: instructions, control flow, and where addresses come from.

    Raises: ValueError when there is no kernel, or a branch to nowhere.
    """

    _LINE = re.compile(r"(?:(@!?[%\w]+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;")

    def __init__(self, ptx: str, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.code: list[Instruction] = []
        self._labels: dict[str, list[int]] = {}
        block = 0
        for number, raw in enumerate(ptx.splitlines(), 1):
            text = raw.split("//")[0].strip()
            if label := re.fullmatch(r"([$\w]+):", text):
                block += 1
                self._labels.setdefault(label[1], []).append(len(self.code))
            elif match := self._LINE.match(text):
                predicate, op, operands = match.groups()
                self.code.append(
                    Instruction(len(self.code), number, block, predicate or "", op, operands)
                )
                if op in ("bra", "bra.uni", "ret", "exit"):
                    block += 1
        if not self.code or self.code[-1].op not in ("ret", "exit", "trap", "bra.uni", "bra"):
            raise ValueError("no kernel in this PTX")
        self._followers = [list(self._following(at)) for at in self.code]

    def _following(self, at: Instruction) -> Iterator[int]:
        jumps = at.op in ("bra", "bra.uni")
        if jumps:
            # Inline assembly repeats its labels, each in braces of its own, and jumps back.
            places = self._labels.get(at.operands, [])
            if not places:
                raise ValueError(f"no label for {at}")
            yield max((p for p in places if p <= at.index), default=places[0])
        if (not jumps and at.op not in ("ret", "exit", "trap")) or at.predicate:
            yield at.index + 1

    def first_met(self, start: int, stop: Callable[[Instruction], bool]) -> Iterator[Instruction]:
        """Walk every path from `start`; yield what `stop` accepts first on each."""
        seen: set[int] = set()
        to_visit = [start]
        while to_visit:
            index = to_visit.pop()
            if index in seen or index >= len(self.code):
                continue
            seen.add(index)
            if stop(self.code[index]):
                yield self.code[index]
            else:
                to_visit += self._followers[index]

    def after(self, at: Instruction, stop: Callable[[Instruction], bool]) -> list[Instruction]:
        """What `stop` accepts first on the paths behind `at`."""
        return [
            found
            for follower in self._followers[at.index]
            for found in self.first_met(follower, stop)
        ]

    def before(self, at: Instruction) -> Instruction | None:
        """The access or barrier before `at` in its basic block, or None."""
        for index in range(at.index - 1, -1, -1):
            found = self.code[index]
            if found.block != at.block:
                return None
            if found.is_global or found.is_barrier:
                return found
        return None

    @cached_property
    def _writers(self) -> dict[str, list[Instruction]]:
        writers: dict[str, list[Instruction]] = {}
        for at in self.code:
            for register in at.written:
                writers.setdefault(register, []).append(at)
        return writers

    @cached_property
    def _empty(self) -> set[str]:
        return {at.written[0] for at in self.code if at.op == "mov.b32" and EMPTY in at.operands}

    def empties(self, at: Instruction) -> bool:
        """Whether all that it stores is EMPTY."""
        values = re.search(r"\{([^}]*)\}", at.operands)
        found = set(re.findall(r"%\w+", values[1])) if values else set()
        return at.op.startswith("st.global.") and bool(found) and found <= self._empty

    def value_origin(self, at: Instruction) -> str:
        """The argument that the last operand comes from, as `origin` of a pointer."""
        return self._origin_of((re.findall(r"%\w+", at.operands) or [""])[-1])

    def origin(self, at: Instruction) -> str:
        """The argument that an access's pointer comes from; ``heap`` for one out of the table."""
        return self._origin_of(at.address)

    def _origin_of(self, register: str) -> str:
        found: set[str] = set()
        seen: set[str] = set()
        to_visit = [register]
        while to_visit:
            register = to_visit.pop()
            if register in seen:
                continue
            seen.add(register)
            for writer in self._writers.get(register, ()):
                if parameter := re.search(r"\[\w+_param_(\d+)\]", writer.operands):
                    if not writer.op.endswith("64"):
                        continue  # a size, widened
                    number = int(parameter[1])
                    known = number < len(self.arguments)
                    found.add(self.arguments[number] if known else f"parameter {number}")
                elif writer.is_global:
                    found.add("heap" if self.origin(writer) == "heap_table" else "loaded pointer")
                elif writer.parts[0] == "ld":
                    found.add("pointer through shared memory")
                else:  # only 64-bit registers hold pointers
                    to_visit += re.findall(r"%rd\d+", writer.operands)
        return " or ".join(sorted(found)) or "unknown pointer"


def lint(ptx: str, expected: Expected, arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with a kernel, a sentence each; empty when nothing is.

    Args:
        ptx: the text, with one kernel.
        expected: see there.
        arguments: names of the kernel's parameters, in order; what the compiler adds may lack.
    """
    program = Program(ptx, arguments)
    return [
        *_releases(program, expected),
        *_acquires(program, expected),
        *_arrival(program, expected),
        *_cells(program, expected),
        *_bulk(program, expected),
        *_early(program, expected),
        *_multimem(program, expected),
        *_accesses(program, expected),
    ]


def _is_refresh(at: Instruction) -> bool:
    relaxed = at.is_global and {"relaxed", "sys"} < set(at.parts)
    return relaxed and "cas" not in at.parts and at.parts[0] in ("atom", "ld")


def _is_acquire(at: Instruction) -> bool:
    return at.is_global and at.order == "acquire"


def _is_release(at: Instruction) -> bool:
    return at.is_global and at.order == "release"


def _releases(program: Program, expected: Expected) -> Iterator[str]:
    releases = [at for at in program.code if _is_release(at)]
    if len(releases) != expected.releases:
        yield f"{len(releases)} releases, the source has {expected.releases}"
    for at in releases:
        if "sys" not in at.parts:
            yield f"release not at system scope: {at}"
        before = program.before(at)
        if before is None or not before.is_barrier:
            yield f"no barrier immediately before the release: {at}, but {before or 'a branch'}"


def _acquires(program: Program, expected: Expected) -> Iterator[str]:
    acquires = [at for at in program.code if _is_acquire(at)]
    wanted = expected.waits * POLLS * expected.poll
    if len(acquires) != wanted:
        yield f"{len(acquires)} acquires, the source has {wanted}"
    for at in acquires:
        if "sys" not in at.parts or at.parts[0] != "ld":
            yield f"acquire not at system scope: {at}"
        for access in program.after(at, lambda a: a.is_barrier or a.is_global):
            same_poll = _is_acquire(access) and access.block == at.block
            if not access.is_barrier and not same_poll:
                yield f"no barrier between the acquire: {at}, and {access}"

    def reads_tile(at: Instruction) -> bool:
        loads = at.parts[0] in ("ld", "cp") or at.op.startswith("multimem.ld_reduce.")
        wide = loads and at.is_global and at.width >= expected.unit_width
        plain = at.order == "" or at.parts[0] == "multimem"
        return wide and plain and program.origin(at) == "heap"

    def ends_a_tile(at: Instruction) -> bool:
        stores_y = at.is_global and at.parts[0] == "st" and program.origin(at) == "y_ptr"
        return stores_y or _is_release(at)

    # With the acquires taken out of the graph no tile may be within reach.
    starts = [0, *(at.index + 1 for at in program.code if ends_a_tile(at))]
    unordered = {
        met.index: met
        for start in starts
        for met in program.first_met(start, lambda a: _is_acquire(a) or reads_tile(a))
        if reads_tile(met)
    }
    for at in unordered.values():
        yield f"a tile is read without an acquire before it: {at}"
    last = sum(
        any(reads_tile(met) for met in program.after(at, lambda a: _is_acquire(a) or reads_tile(a)))
        for at in acquires
    )
    if last != POLLS * expected.waits:
        yield f"tiles are read behind {last} acquires, the source has {expected.waits} waits"


def _counts_in(at: Instruction) -> bool:
    adds = at.is_global and at.parts[0] in ("atom", "red") and "add" in at.parts
    return adds and at.parts[-1] in ("u64", "s64")


def _arrival(program: Program, expected: Expected) -> Iterator[str]:
    arrivals = [at for at in program.code if _counts_in(at)]
    if len(arrivals) != 1:
        yield f"{len(arrivals)} 64-bit additions, the source has 1: the counter of launches"
    for at in arrivals:
        if at.order != "relaxed" or "gpu" not in at.parts:
            yield f"the counter is not added to relaxed, for the GPU: {at}"
        before = program.before(at)
        while before is not None and program.origin(before) == "heap_table":
            before = program.before(before)
        if expected.reports and (before is None or not before.is_barrier):
            yield f"no barrier before arriving: {at}, but {before or 'a branch'}"
    for at in program.code:
        if at.is_global and at.order == "acq_rel":
            yield f"an order that nothing needs: {at}"


def _is_look(at: Instruction) -> bool:
    return bool(re.match(r"ld\.volatile\.global\.v[24]\.b32$", at.op))


def _is_send(at: Instruction) -> bool:
    return at.op == "st.relaxed.sys.global.v2.b32"


def _cells(program: Program, expected: Expected) -> Iterator[str]:
    looks = [at for at in program.code if _is_look(at)]
    sends = [at for at in program.code if _is_send(at)]
    # Of each rank's partial, and again, to say of which rank it is that elements lack: in a loop,
    # unless the compiler unrolls that.
    pieces, ranks = expected.cells * expected.tile_pieces, expected.ranks
    if len(looks) not in (pieces * (ranks + 1), pieces * 2 * ranks):
        yield f"{len(looks)} looks, the source has {pieces * (ranks + 1)}"
    words = expected.cells * expected.tile_bytes // 8
    if len(sends) != words * ranks:
        yield f"{len(sends)} sends, the source has {words * ranks}"
    for at in (*looks, *sends):
        if (origin := program.origin(at)) != "heap":
            yield f"cells in {origin}: {at}"

    emptying = [at for at in program.code if program.empties(at)]
    stores = expected.empties * expected.tile_pieces * expected.ranks
    if len(emptying) != stores:
        yield f"{len(emptying)} stores that empty, the source has {stores}"
    for at in emptying:
        if (origin := program.origin(at)) != "heap":
            yield f"{origin} is emptied: {at}"

    def reads(at: Instruction) -> bool:
        plain = at.is_global and at.parts[0] == "ld" and at.order in ("", "volatile")
        return plain and at.width >= expected.unit_width and program.origin(at) == "heap"

    for at in program.code if emptying else ():
        if reads(at):
            for met in program.after(at, lambda a: a.is_barrier or program.empties(a)):
                if not met.is_barrier:
                    yield f"no barrier between a read: {at}, and {met}"


def _bulk(program: Program, expected: Expected) -> Iterator[str]:
    loads = [at for at in program.code if at.is_bulk_load]
    if not expected.bulk:
        for at in loads:
            yield f"a bulk copy, the source has none: {at}"
        return
    if not loads:
        yield "no bulk load of x and weight"
    own = f"parameter {len(program.arguments)}"
    for at in (*loads, *(at for at in program.code if at.is_descriptor)):
        if (origin := program.origin(at)) != own:
            yield f"a descriptor in {origin}, expected {own}: {at}"
    described = sorted(
        program.value_origin(at) for at in program.code if ".global_address." in at.op
    )
    if described != ["weight_ptr", "x_ptr"]:
        yield f"descriptors of {', '.join(described) or 'nothing'}, expected x_ptr, weight_ptr"
    for at in program.code:
        if not at.is_descriptor:
            continue
        for met in program.after(at, lambda a: a.is_descriptor_fence or a.is_barrier):
            if not met.is_descriptor_fence:
                yield f"no fence behind the descriptor: {at}, but {met}"
        for met in program.after(at, lambda a: a.is_bulk_load or a.is_barrier):
            if not met.is_barrier:
                yield f"no barrier between the descriptor: {at}, and {met}"


WAIT: Final = "griddepcontrol.wait"
START_NEXT: Final = "griddepcontrol.launch_dependents"


def _early(program: Program, expected: Expected) -> Iterator[str]:
    for op in (WAIT, START_NEXT):
        found = [at for at in program.code if at.op == op]
        if len(found) != expected.early:
            yield f"{len(found)} times {op}, the source has {int(expected.early)}"
        for at in found:
            if at.predicate:
                yield f"only some threads: {at}"
    for at in program.code:
        if at.is_prefetch and (origin := program.origin(at)) != "weight_ptr":
            yield f"{origin} is asked for ahead: {at}"
        if at.is_prefetch and not expected.early:
            yield f"asked for ahead, the source does not: {at}"
    if expected.early:
        touched = program.first_met(0, lambda a: a.op == WAIT or a.is_global or a.op == START_NEXT)
        for at in touched:
            if at.op != WAIT:
                yield f"before the kernel before it has ended: {at}"


def _multimem(program: Program, expected: Expected) -> Iterator[str]:
    if not expected.multimem:
        return  # any is then an unknown access
    sums = f"multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.{expected.element}x2"
    stores = f"multimem.st.relaxed.sys.global.v4.{expected.element}x2"
    for op in (sums, stores):
        found = [at for at in program.code if at.op == op]
        if len(found) != expected.multimem:
            yield f"{len(found)} times {op}, the unit has {expected.multimem} pieces a thread"
        for at in found:
            if program.origin(at) != "heap":
                yield f"multimem on {program.origin(at)}: {at}"
    for at in program.code:
        if _is_acquire(at):
            first = program.after(at, lambda a: a.is_proxy_fence or a.op == sums)
        elif at.op == stores:
            first = program.after(at, lambda a: a.is_proxy_fence or a.order == "release")
        else:
            continue
        for met in first:
            if not met.is_proxy_fence:
                yield f"no proxy fence between: {at}, and {met}"


def _accesses(program: Program, expected: Expected) -> Iterator[str]:
    counts: dict[tuple[str, str, bool], int] = {}

    def count(move: str, origin: str, wide: bool = False) -> None:
        counts[move, origin, wide] = counts.get((move, origin, wide), 0) + 1

    for at in program.code:
        if re.match(r"(ld|st)\.local", at.op):
            yield f"local memory: {at}"
        if not at.is_global or at.is_bulk_load:
            continue
        kind = at.parts[0]
        if expected.multimem and re.match(r"multimem\.(ld_reduce|st)\.", at.op):
            if at.width != WIDE or expected.element not in at.op.replace("x2", "").split("."):
                yield f"not a piece of {expected.element}: {at}"
            continue
        origin = program.origin(at)
        if re.match(r"ld\.volatile\.global\.b(32|64)$", at.op) and origin == "heap":
            count("volatile ld", f"heap, {at.width} bytes")
            continue
        if expected.cells and (_is_look(at) or _is_send(at)):
            continue  # see _cells
        if kind in ("atom", "red", "ld") and at.order in ("release", "acquire", "relaxed"):
            if origin != "heap":
                yield f"atomic on {origin}: {at}"
            if "cas" in at.parts:
                count("cas", "sys" if "sys" in at.parts else "gpu")
            elif _is_refresh(at):
                count("look", "sys")
            elif "exch" in at.parts and at.order == "relaxed":
                count("mark", "gpu" if "gpu" in at.parts else "sys")
            elif at.order == "relaxed" and not _counts_in(at):
                yield f"unknown access to global memory: {at}"
            continue
        if not re.match(r"(ld|st)\.global\.|cp\.async\.c[ag]\.shared(::cta)?\.global", at.op):
            yield f"unknown access to global memory: {at}"
            continue
        move = "st" if kind == "st" else "ld"
        scale = origin in ("x_scale_ptr", "weight_scale_ptr")
        wide = at.width == WIDE and origin in TILES[move]
        part = origin in ("heap", "residual_ptr") and at.width == expected.unit_width
        part = part or (origin == "y_ptr" and at.width == expected.tile_width)
        narrow = kind != "cp" and at.width in NARROW.get((move, origin), ())
        if not (wide or part or narrow):
            yield f"{at.width} bytes at a time, {move} of {origin}: {at}"
        if scale and not expected.scaled:
            yield f"a scale is read, the source reads none: {at}"
        count(move, origin, wide)

    protocol = bool(expected.ranks)
    parts = expected.ranks if expected.unit_width < WIDE else 0
    for (move, origin), wanted in {
        ("volatile ld", "heap, 8 bytes"): protocol,  # the counter
        ("volatile ld", "heap, 4 bytes"): protocol,  # the mark of a rank that gave up
        ("ld", "heap"): 0 if expected.cells else parts,
        ("st", "heap"): REPORT_STORES * expected.reports
        + parts * (expected.empties + (not expected.cells)),
        ("st", "status_ptr"): (REPORT_STORES + 1) * expected.reports,
        ("cas", "gpu"): expected.reports,
        ("mark", "gpu"): expected.reports,  # that the rank gave up
        ("cas", "sys"): REFRESHES * protocol,
        ("look", "sys"): REFRESHES * protocol,
    }.items():
        found = counts.get((move, origin, False), 0)
        if found != wanted:
            yield f"{found} words, {move} of {origin}, the source has {int(wanted)}"
    small = expected.tile_width < WIDE
    heap = [("ld", "heap"), ("st", "heap")][expected.cells :] if protocol and not small else []
    operands = [] if expected.bulk else [("ld", "x_ptr"), ("ld", "weight_ptr")]
    residual = [("ld", "residual_ptr")] if not parts else []
    for move, origin in (*operands, *residual, *heap):
        if not counts.get((move, origin, True)):
            yield f"no 16-byte {move} of {origin}"
    if not counts.get(("st", "y_ptr", not small)):
        yield f"no {expected.tile_width}-byte st of y_ptr"
    for origin in ("x_ptr", "weight_ptr"):
        if expected.bulk and counts.get(("ld", origin, True)):
            yield f"{origin} is read without its descriptor"
    if parts and not counts.get(("ld", "residual_ptr", False)):
        yield "no load of residual_ptr"
    if not protocol and any(origin == "heap" and move != "red" for move, origin, _ in counts):
        yield "the heap is used, the source has nothing there but the counter"
    if expected.scaled and not any(origin == "x_scale_ptr" for _, origin, _ in counts):
        yield "no load of x_scale_ptr"
