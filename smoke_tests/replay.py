"""Plays a drawn sequence on the ranks, and compares every result with everything it must equal."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass

import torch

from gemm_allreduce import Workspace
from gemm_allreduce.dispatch import Choice, Shape, choose
from gemm_allreduce.layout import ceil_div
from gemm_allreduce.variants import Tile
from smoke_tests.drawn import Call, Layer, Sequence
from smoke_tests.ranks import Ranks
from smoke_tests.reference import (
    Source,
    bound,
    fingerprint,
    partials,
    require_bound,
    require_equal,
    sum_in_rank_order,
)

LATE_S = 0.03
_BLOCK_K = 32
_DTYPE = torch.float16  # the interpreter's bf16 is wrong


@dataclass(frozen=True)
class Operand:
    """x or weight of all ranks: values [W, rows, K], and scales [W, rows] of 8-bit ones."""

    values: torch.Tensor
    scale: torch.Tensor | None

    @property
    def exact(self) -> torch.Tensor:
        """What it stands for, float64."""
        if self.scale is None:
            return self.values.double()
        return self.values.double() * self.scale.double()[:, :, None]


@dataclass(frozen=True)
class Inputs:
    """All tensors of a call. ``bias`` [N], ``residual`` [M, N]."""

    x: Operand
    weight: Operand
    bias: torch.Tensor | None
    residual: torch.Tensor | None


def play(sequence: Sequence, ranks: Ranks) -> str:
    """Make all calls on one workspace, then each on a fresh one; compare.

    Raises: AssertionError on every rank, with what each rank found, so that all can go on.
    """
    assert sequence.world_size == ranks.world_size
    source = Source(ranks.device, sequence.seed)
    weights = [_operand(source, layer, layer.features, ranks) for layer in sequence.layers]
    inputs = [
        _inputs(source, sequence, call, weights[call.layer], ranks) for call in sequence.calls
    ]
    results = _make(sequence, sequence.calls, inputs, ranks)
    alone = [
        _make(sequence, (call,), [given], ranks)[0]
        for call, given in zip(sequence.calls, inputs, strict=True)
    ]
    prints = ranks.gather([fingerprint(result) for result in results])
    problems = []
    for number, call in enumerate(sequence.calls):
        different = [rank for rank, of in enumerate(prints) if of[number] != prints[0][number]]
        if different:
            problems.append(f"call {number}: ranks {different} have other bits than rank 0")
        try:
            what = f"call {number}, the same on a fresh workspace"
            require_equal(results[number], alone[number], what)
            _require_right(results[number], inputs[number], sequence.layers[call.layer], number)
        except AssertionError as error:
            problems.append(str(error))
    _raise_together(problems, ranks)
    return f"{len(sequence.calls)} calls"


def _operand(source: Source, layer: Layer, rows: int, ranks: Ranks) -> Operand:
    shape = ranks.world_size, rows, layer.depth
    if layer.operand == "fp16":
        draw = source.integers if layer.exact else source.normal
        return Operand(draw(_DTYPE, *shape), None)
    values = source.integers(torch.int8, *shape, limit=4 if layer.exact else 127)
    if layer.exact:  # powers of two, so that scales are exact too
        return Operand(values, 2.0 ** source.integers(torch.float32, *shape[:2], limit=2))
    return Operand(values, source.normal(torch.float32, *shape[:2]) / 64)


def _inputs(
    source: Source, sequence: Sequence, call: Call, weight: Operand, ranks: Ranks
) -> Inputs:
    layer = sequence.layers[call.layer]
    draw = source.integers if layer.exact else source.normal
    return Inputs(
        _operand(source, layer, call.tokens, ranks),
        weight,
        draw(_DTYPE, layer.features) if call.bias else None,
        draw(_DTYPE, call.tokens, layer.features) if call.residual else None,
    )


def _make(
    sequence: Sequence, calls: tuple[Call, ...], inputs: list[Inputs], ranks: Ranks
) -> list[torch.Tensor]:
    """Make calls on a new workspace, back to back; return y [M, N] of each.

    Raises: AssertionError on every rank, when any of them failed.
    """
    now: list[Call] = []
    workspace = Workspace(
        ranks.connect(),
        max_tokens=sequence.max_tokens,
        max_features=max(layer.features for layer in sequence.layers),
        dtype=_DTYPE,
        time_limit_s=ranks.time_limit_s,
        first_epoch=sequence.first_epoch,
        dispatch=lambda shape: _choice(shape, now[-1], ranks),
    )
    results, problems = [], []
    try:
        for call, given in zip(calls, inputs, strict=True):
            now.append(call)
            if call.late == ranks.rank:
                time.sleep(LATE_S)
            results.append(_call(workspace, call, given, ranks))
        workspace.check()
        launches = sum(ceil_div(call.tokens, sequence.max_tokens) for call in calls)
        epoch = (sequence.first_epoch + launches + 2**31) % 2**32 - 2**31
        state = (workspace.epochs(), workspace.arrivals())
        assert state == ([epoch], [0]), f"epoch and arrivals: {state}, {launches} launches"
    except Exception:
        problems.append(traceback.format_exc())
    _raise_together(problems, ranks, workspace)
    return results


def _raise_together(problems: list[str], ranks: Ranks, workspace: Workspace | None = None) -> None:
    """A rank that went its own way would leave its peers in a collective."""
    found = ranks.gather(problems)
    if workspace is not None:
        workspace.close()
    lines = [f"rank {rank}: {text}" for rank, texts in enumerate(found) for text in texts]
    assert not lines, "\n".join(lines)


def _choice(shape: Shape, call: Call, ranks: Ranks) -> Choice:
    if call.algorithm == "table":
        return choose(shape)
    tile = Tile(*call.tile, _BLOCK_K, 1, 4)
    choices = ranks.choices("fp16", tile, shape.operand)
    if call.algorithm == "lamport":  # absent where its rows are fewer than the tile's
        lamport = choices.get("lamport", choices["one_shot"])
        return lamport if shape.tokens <= ranks.most_tokens(lamport) else choices["one_shot"]
    return choices[call.algorithm]


def _call(workspace: Workspace, call: Call, given: Inputs, ranks: Ranks) -> torch.Tensor:
    residual = None if given.residual is None else given.residual.clone()
    out = None
    if call.out == "given":
        shape = given.x.values.shape[1], given.weight.values.shape[1]
        out = torch.full(shape, float("nan"), dtype=_DTYPE)
    elif call.out == "residual":
        out = residual
    y = ranks.call(
        workspace,
        given.x.values,
        given.weight.values,
        out=None if out is None else out[None],
        bias=given.bias,
        residual=residual,
        x_scale=given.x.scale,
        weight_scale=given.weight.scale,
    )[0]
    assert out is None or y.data_ptr() == out.data_ptr(), "y is not out"
    return y


def _require_right(y: torch.Tensor, given: Inputs, layer: Layer, number: int) -> None:
    """Compare with the float64 reference: bit for bit, or within the bound."""
    x, weight = given.x.exact, given.weight.exact
    extras = {"bias": given.bias, "residual": given.residual}
    if layer.exact:
        wanted = sum_in_rank_order(partials(x, weight, _DTYPE), **extras)
        require_equal(y, wanted, f"call {number}")
    else:
        require_bound(y, *bound(x, weight, _DTYPE, **extras), f"call {number}")
