"""The multimem form of two-shot in Triton's interpreter, with a switch that is made up here.

The interpreter has no inline assembly: what stands in its place reads and writes the heaps of all
ranks as the instructions do. This shows addresses, order and the packing of elements; what a real
switch does, nobody has run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
import triton.language as tl
from interpreter_rank import (
    FEATURES,
    HALF,
    HEALTHY,
    Kind,
    OneRank,
    exact_partial,
    integers,
    kinds_of,
    sum_in_rank_order,
)
from triton.runtime.interpreter import TensorHandle

from gemm_allreduce import gemm_allreduce
from gemm_allreduce import jit as just_in_time
from gemm_allreduce.dispatch import Choice
from gemm_allreduce.launch import Grid, Operands, Ranks
from gemm_allreduce.transports.virtual import VirtualTransport
from gemm_allreduce.variants import MULTIMEM_ELEMENTS, Variant
from gemm_allreduce.workspace import Workspace

MULTICAST = 2**60
"""The made-up address; reading there by any other way ends the process."""


def block(values: numpy.ndarray[Any, Any]) -> tl.tensor:
    """int32 values as a tensor of the interpreter."""
    return tl.tensor(TensorHandle(values, tl.int32), tl.block_type(tl.int32, list(values.shape)))


class Switch:
    """Does multimem instructions on the heaps of a rank, and writes down what was done."""

    def __init__(self, heaps: torch.Tensor) -> None:
        self._heaps = heaps
        self.done: list[str] = []

    def __call__(self, code: Any, constraints: str, args: list[Any], **_: Any) -> Any:
        asm = str(getattr(code, "value", code))
        data = [argument.handle.data for argument in args]
        if "fence.proxy.alias" in asm:
            self.done.append("fence")
            return None
        if "multimem.ld_reduce" in asm:
            self.done.append("sum")
            return self._sum(*data)
        assert "multimem.st" in asm, asm
        self.done.append("send")
        return self._send(*data)

    def _pieces(self, address: int) -> slice:
        first = (int(address) - MULTICAST) // HALF.itemsize
        assert first * HALF.itemsize % 16 == 0, "not aligned"
        return slice(first, first + MULTIMEM_ELEMENTS)

    def _sum(self, addresses: Any, keep: Any) -> tuple[tl.tensor, ...]:
        words = numpy.zeros((*addresses.shape, 4), dtype=numpy.int32)
        for place in zip(*keep.nonzero(), strict=True):
            parts = self._heaps[:, self._pieces(addresses[place])].float()
            words[place] = parts.sum(0).to(HALF).view(torch.int32).numpy()
        return tuple(block(words[..., word].copy()) for word in range(4))

    def _send(self, addresses: Any, *words_and_keep: Any) -> None:
        *words, keep = words_and_keep
        packed = torch.from_numpy(numpy.stack(words, -1).astype(numpy.int32)).view(HALF)
        for place in zip(*keep.nonzero(), strict=True):
            self._heaps[:, self._pieces(addresses[place])] = packed[place]


class SwitchedRank(OneRank):
    """A rank whose peers keep their partials, for the switch to sum."""

    def __init__(self, variant: Variant, rank: int, max_features: int) -> None:
        super().__init__(variant, rank, max_features=max_features)
        table = torch.cat([self.ranks.table, torch.tensor([MULTICAST])])
        self.ranks = dataclasses.replace(self.ranks, table=table)

    def deliver_partial(self, source: int, to: int, partial: torch.Tensor, epoch: int) -> None:
        units = self.to_units(partial)[to :: self.world_size]
        self.receive(source)[to][: units.numel()] = units.reshape(-1)
        self.partial_flags(to)[: len(units), source] = epoch

    @contextmanager
    def switch(self) -> Iterator[Switch]:
        """Compile MULTIMEM into what `launch` launches, which would refuse it, and emulate it."""
        switch = Switch(self.heaps)
        asm, constexprs = tl.inline_asm_elementwise, just_in_time.constexprs
        tl.inline_asm_elementwise = switch
        just_in_time.constexprs = lambda *a, **k: constexprs(*a, **k) | {"MULTIMEM": True}
        try:
            yield switch
        finally:
            tl.inline_asm_elementwise, just_in_time.constexprs = asm, constexprs


def two_shots(world_size: int) -> list[Kind]:
    return [kind for kind in kinds_of(world_size) if kind.variant.algorithm == "two_shot"]


def case_the_switch_sums_and_sends() -> None:
    """Exact on integers, with tails, bias and residual; each unit in every heap, once."""
    for world_size, tokens, features in ((2, 1, 8), (2, 49, 136), (4, 33, 200), (4, 64, 512)):
        for number, kind in enumerate(two_shots(world_size)):
            me = number % world_size
            x = integers(1, world_size, tokens, 24)
            weight = integers(2, world_size, features, 24)
            extras = {"bias": integers(3, features), "residual": integers(4, tokens, features)}
            partials = [exact_partial(a, b) for a, b in zip(x, weight, strict=True)]
            expected = sum_in_rank_order(partials, **extras)
            rank = SwitchedRank(kind.variant, me, features)
            rank.deliver_peers(partials, expected, 1)
            what = f"{kind}, rank {me}, M {tokens}, N {features}"
            with rank.switch() as switch:
                y = rank(x[me], weight[me], comm_ctas=kind.comm_ctas, **extras)
            assert torch.equal(y, expected), what
            assert rank.status(me) == HEALTHY, what
            check_heaps(rank, partials[me], expected, what)
            owned = len(rank.to_units(expected)[me::world_size])
            assert switch.done == ["fence", "sum", "send", "fence"] * owned, what


def check_heaps(rank: SwitchedRank, partial: torch.Tensor, y: torch.Tensor, what: str) -> None:
    """The rank's partials lie in its own heap, its results in every heap, and flags say so."""
    me, split = rank.rank, rank.variant.split
    columns = rank.variant.tile.block_n
    rows = torch.ones(y.shape[0], -(-y.shape[1] // columns) * columns, dtype=HALF)
    exists = ~rank.to_units(rows).isnan()
    units, results = rank.to_units(partial), rank.to_units(y)
    for peer in range(rank.world_size):
        owned = slice(peer, None, rank.world_size)
        kept = rank.receive(me)[peer][: units[owned].numel()].view(units[owned].shape)
        known = exists[owned] & ~units[owned].isnan()
        assert torch.equal(kept[known], units[owned][known]), f"{what}: partials for {peer}"
        assert kept[~exists[owned]].isnan().all(), f"{what}: rows beyond M were kept"
        assert (rank.partial_flags(peer)[: len(units[owned]), me] == 1).all(), what
        sent = rank.result(peer)[: results.numel()].view(results.shape)[me :: rank.world_size]
        mine = results[me :: rank.world_size]
        known = exists[me :: rank.world_size] & ~mine.isnan()
        assert torch.equal(sent[known], mine[known]), f"{what}: results at {peer}"
        assert sent[~exists[me :: rank.world_size]].isnan().all(), f"{what}: rows beyond M"
        flags = rank.result_flags(peer)[: len(results)][me :: rank.world_size]
        assert (flags == 1).all(), f"{what}, split {split}"


def case_an_absent_peer_is_not_summed() -> None:
    """A partial that never comes: no sum is read and no result sent; y is NaN."""
    for kind in two_shots(2):
        rank = SwitchedRank(kind.variant, 0, FEATURES)
        with rank.switch() as switch:
            x, weight = integers(5, 17, 16), integers(6, FEATURES, 16)
            y = rank(x, weight, ctas=1, comm_ctas=kind.comm_ctas, spin_limit=3)
        assert y.isnan().all() and rank.status(0)["source"] == 1, rank.status(0)
        assert switch.done == [] and rank.result(1).isnan().all()


def case_launch_refuses_it() -> None:
    """By itself, and where a dispatch of the caller's own asks for it; nothing runs."""
    for plain in two_shots(2):
        variant = dataclasses.replace(plain.variant, multimem=True)
        rank = OneRank(plain.variant)
        before = rank.heaps.clone()
        workspace = Workspace(
            VirtualTransport(2, "cpu"),
            max_tokens=64,
            max_features=FEATURES,
            dtype=HALF,
            dispatch=lambda shape, variant=variant: Choice(variant),
        )
        x, weight = integers(7, 2, 4, 16), integers(8, 2, FEATURES, 16)
        attempts = (
            functools.partial(launch_plainly, variant, rank.ranks, x[0], weight[0]),
            functools.partial(gemm_allreduce, x, weight, workspace),
        )
        for attempt in attempts:
            try:
                attempt()
            except RuntimeError as error:
                assert "a multicast address of all heaps, which no transport has" in str(error)
                assert variant.name in str(error)
            else:
                raise AssertionError("not refused")
        assert torch.equal(rank.heaps.view(torch.int16), before.view(torch.int16))
        assert workspace.epochs() == [0, 0], "something ran"


def launch_plainly(variant: Variant, ranks: Ranks, x: torch.Tensor, weight: torch.Tensor) -> None:
    out = torch.empty(x.shape[0], weight.shape[0], dtype=HALF)
    just_in_time.JitKernels().launch(variant, ranks, Operands(x, weight, out), Grid(1, 1, 0), 3)
