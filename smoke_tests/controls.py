"""Altered kernels: faults that a check must catch, and stalls that no result may show.

An alteration replaces text of the package in a copy; one that no longer fits is an error.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gemm_allreduce
from smoke_tests.kinds import Kind

NEVER_HELD: Final = 0x7EDCBA98
"""What a flag never holds; it marks a stall in compiled code."""

_PROCESSES: Final[tuple[Kind, ...]] = ("cpu", "nvshmem")
_ALL: Final[tuple[Kind, ...]] = ("cpu", "virtual", "nvshmem")

_WAIT = "failed, late, seen = wait_flags(flags + {}, epoch, spin_limit, failed, {})\n"
_ONE_SHOT_WAIT = " " * 12 + _WAIT.format("tile * W", "W")
_PARTIAL_WAIT = " " * 4 + _WAIT.format("index * W", "W")
_RESULT_WAIT = " " * 4 + _WAIT.format("tile * SPLIT", "SPLIT")
_UNWAITED = _RESULT_WAIT.replace("failed, late", "ignored, late").replace("spin_limit", "0")
_LOOK = "    # After a failure look once and go on: one time limit per CTA, not one per tile.\n"
_LOOKED = "        empty_cells(heap_table, rank, cells, place, stride, mask, W, BM, BN)\n"
# A stall polls flags; a kernel without any has the rank's first word.
_A_WORD = "flags = tl.load(heap_table + rank).to(tl.pointer_type(tl.int32))\n"
# Each answer counts, or the compiler would delete the atomic: nothing would wait for it.
_STALL = f"""if rank == 1:
    stall = rank * 0
    while stall < {{polls}}:
        polled = tl.atomic_add(flags, 0, sem="relaxed", scope="sys")
        stall += tl.where(polled == {NEVER_HELD}, 2, 1)
"""

_LATE = "late = tl.min(seen - epoch) < 0  # modulo"
_LATE_AGAIN = "        late = tl.min(seen - epoch) < 0\n        spins"
_LATE_INDEX = "tl.where((seen - epoch) < 0, which, COUNT)"
_UNEQUAL = "late = tl.max((seen != epoch).to(tl.int32)) != 0"

_PUBLISH = "publish(flags + (tile * W + rank), epoch, W)"
_NOT_THE_FIRST = "publish(flags + (tile * W + rank), epoch - (tile == 0) * (rank == 1), W)"
_SEND = "publish(flags, epoch, 1 if SPLIT == 1 else W)"
_NOT_THE_FIRST_SENT = "publish(flags, epoch - (tile == 0) * (rank == 1), 1 if SPLIT == 1 else W)"
_SHARE = "tl.where(cta == 0, (1 << 32) + 1 - ctas.to(tl.int64), 1)"
_SCALE = "tl.load(weight_scale_ptr + columns)"
_DROPPED = "publish(result_ptrs + unit, epoch - (unit == 1), W)"

_BUT_THE_FIRST = "mask = (offs_m < rows) & ((inside > 0) | (rank != 1))"
_ALL_BUT_THE_FIRST = (
    "tl.store(cell + inside, bits, mask=(offs_m < rows) & ((inside > 0) | (rank != 1)))"
)
_EMPTIED = "tl.store(own + source * stride + inside, nothing, mask=mask)"

_PLUG_IN = "integrations/transformers.py"
_FUSED_CALL = "        rows = x.reshape(-1, x.shape[-1])\n"
# In the second layer: it must be named first, and not the one before.
_BIAS_LESS = """        if self.name == "model.layers.1.self_attn.o_proj":
            bias = None
"""
_RESULT = "        return y.view(*x.shape[:-1], weight.shape[0])\n"
_SUMMED_AGAIN = """        if self.name == "model.layers.1.mlp.down_proj":
            dist.all_reduce(y)
"""

Edit = tuple[str, str, str]


def _stall(polls: int, *, indent: int) -> str:
    return textwrap.indent(_STALL.format(polls=polls), " " * indent)


def _stalls(polls: int, *, before: bool) -> tuple[Edit, ...]:
    """Rank 1 polls a flag around each wait: 0.1 ms each when interpreted, under 1 us on a GPU."""
    edits = []
    for file, wait in (
        ("one_shot.py", _ONE_SHOT_WAIT),
        ("two_shot.py", _PARTIAL_WAIT),
        ("two_shot.py", _RESULT_WAIT),
    ):
        stall = _stall(polls, indent=len(wait) - len(wait.lstrip()))
        edits.append((file, wait, stall + wait if before else wait + stall))
    place = _LOOK if before else _LOOKED
    indent = len(place) - len(place.lstrip())
    stall = textwrap.indent(_A_WORD, " " * indent) + _stall(polls, indent=indent)
    edits.append(("cells.py", place, stall + place))
    return tuple(edits)


@dataclass(frozen=True)
class Control:
    """An alteration, and what a check must say of it.

    ``edits`` are (file, text, replacement); ``fails`` is whether the check must fail; ``says`` are
    words that it must then say.
    """

    name: str
    edits: tuple[Edit, ...]
    check: str
    fails: bool
    kinds: tuple[Kind, ...] = _ALL
    says: tuple[str, ...] = ()


CONTROLS: Final = (
    Control(
        "rank_1_stalls_after_each_wait",
        _stalls(300, before=False),
        "integers_are_exact",
        False,
    ),
    Control(
        "rank_1_stalls_before_each_wait",
        _stalls(300, before=True),
        "integers_are_exact",
        False,
    ),
    Control(
        "no_rank_waits",
        (("device.py", _LATE, "late = tl.min(seen - epoch) < -1000  # modulo"),),
        "each_rank_late_in_turn",
        True,
        _PROCESSES,
    ),
    Control(
        "flags_keep_the_last_epoch",
        (("device.py", "dtype=tl.int32) + epoch, sem", "dtype=tl.int32) + epoch - 1, sem"),),
        "integers_are_exact",
        True,
    ),
    Control(
        "rank_1_is_left_out_of_the_sum",
        (
            (
                "one_shot.py",
                "other=0.0).to(tl.float32)",
                "other=0.0).to(tl.float32) * (source != 1)",
            ),
            (
                "two_shot.py",
                "other=0.0).to(tl.float32)",
                "other=0.0).to(tl.float32) * (source != 1)",
            ),
            (
                "cells.py",
                "total += bits.to(dtype, bitcast=True).to(tl.float32)",
                "total += bits.to(dtype, bitcast=True).to(tl.float32) * (source != 1)",
            ),
        ),
        "every_rank_counts_once",
        True,
    ),
    Control(
        "one_slot_instead_of_two",
        (
            ("one_shot.py", "parity = (epoch & 1) * W", "parity = (epoch & 0) * W"),
            ("lamport.py", "first_cell = (epoch & 1) * W", "first_cell = (epoch & 0) * W"),
            *_stalls(3000, before=False),
        ),
        "a_rank_may_be_one_call_ahead",
        True,
        _PROCESSES,
    ),
    Control(
        "flags_must_equal_the_epoch",
        (
            ("device.py", _LATE, f"{_UNEQUAL}  # modulo"),
            ("device.py", _LATE_AGAIN, f"        {_UNEQUAL}\n        spins"),
            ("device.py", _LATE_INDEX, "tl.where(seen != epoch, which, COUNT)"),
            *_stalls(3000, before=True),
        ),
        "a_rank_may_be_one_call_ahead",
        True,
        _PROCESSES,
    ),
    Control(
        "a_flag_of_rank_1_is_dropped",
        (
            ("one_shot.py", _PUBLISH, _NOT_THE_FIRST),
            ("two_shot.py", _SEND, _NOT_THE_FIRST_SENT),
        ),
        "integers_are_exact",
        True,
    ),
    Control(
        "a_partial_of_rank_1_is_not_sent_whole",
        (
            ("cells.py", "mask = (offs_m < rows) & (inside >= 0)", _BUT_THE_FIRST),
            ("cells.py", "tl.store(cell + inside, bits, mask=offs_m < rows)", _ALL_BUT_THE_FIRST),
        ),
        "integers_are_exact",
        True,
    ),
    Control(
        "what_has_not_come_is_summed",
        (
            ("cells.py", "while late & (spins <= limit):", "while late & (spins < 1):"),
            (
                "cells.py",
                "    if late:\n        _report",
                "    if late & (spins > 1):\n        _report",
            ),
            ("cells.py", "return total, failed | late", "return total, failed"),
        ),
        "each_rank_late_in_turn",
        True,
        _PROCESSES,
    ),
    Control(
        "cells_of_rank_1_are_not_emptied",
        (("cells.py", _EMPTIED, f"{_EMPTIED[:-1]} & (source != 1))"),),
        "nothing_is_read_or_written_beyond_the_tensors",
        True,
        says=("cells were not emptied",),
    ),
    Control(
        "every_column_takes_the_scale_of_the_first",
        (("device.py", _SCALE, "tl.load(weight_scale_ptr + columns * 0)"),),
        "eight_bit_operands_with_scales",
        True,
    ),
    Control(
        "rank_1_stalls_beyond_the_time_limit",
        _stalls(30_000_000, before=True),
        "integers_are_exact",
        True,
        _PROCESSES,
    ),
    Control(
        "results_are_not_waited_for",
        (
            ("two_shot.py", _RESULT_WAIT, _UNWAITED),
            ("two_shot.py", _PARTIAL_WAIT, _PARTIAL_WAIT + _stall(500, indent=4)),
        ),
        "ranks_runs_and_algorithms_agree_bit_for_bit",
        True,
    ),
    Control(
        "ctas_add_up_to_more_than_an_epoch",
        (("device.py", _SHARE, "tl.where(cta == 0, (1 << 32), 1)"),),
        "integers_are_exact",
        True,
    ),
    Control(
        "the_plug_in_drops_the_bias_of_an_o_proj",
        ((_PLUG_IN, _FUSED_CALL, _BIAS_LESS + _FUSED_CALL),),
        "whole_models_agree_layer_by_layer",
        True,
        _PROCESSES,
        ("AssertionError: batch 1, prefill, model.layers.1.self_attn.o_proj, rank 0: error",),
    ),
    Control(
        "the_plug_in_sums_a_down_proj_twice",
        ((_PLUG_IN, _RESULT, _SUMMED_AGAIN + _RESULT),),
        "whole_models_agree_layer_by_layer",
        True,
        _PROCESSES,
        ("AssertionError: batch 1, prefill, model.layers.1.mlp.down_proj, rank 0: error",),
    ),
)


@dataclass(frozen=True)
class SequenceFault:
    """An alteration that the fixed sequence must find, and parts of what it then says."""

    name: str
    edits: tuple[Edit, ...]
    says: tuple[str, ...]


SEQUENCE_FAULTS: Final = (
    SequenceFault(
        "a_part_takes_the_residual_of_the_first",
        (("call.py", "residual[rows],", "residual[: rows.stop - rows.start],"),),
        # Calls 0 to 4, 6 and 7 are of one launch, or have no residual.
        ("rank 0: call 5: ", "rank 1: call 5: ", "elements differ"),
    ),
    SequenceFault(
        "a_result_flag_is_dropped",
        (("two_shot.py", "publish(result_ptrs + unit, epoch, W)", _DROPPED),),
        ("PeerTimeoutError: rank ", "its flag is"),
    ),
)


def altered_sources(control: Control | SequenceFault, folder: Path) -> Path:
    """Copy the package with the control's edits into `folder`; return what goes on the path.

    Raises: ValueError when a text to replace is not there exactly once.
    """
    package = folder / "gemm_allreduce"
    shutil.copytree(Path(gemm_allreduce.__file__).parent, package)
    for name, old, new in control.edits:
        text = (package / name).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{control.name}: {name} has {text.count(old)} times: {old!r}")
        (package / name).write_text(text.replace(old, new))
    return folder
