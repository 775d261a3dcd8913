"""Drawn sequences of calls: whatever is called in whatever order, every result is right.

Ranks are processes in Triton's interpreter. What each sequence is compared with: replay.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, get_args

import pytest

pytest.importorskip("hypothesis", reason="draws the sequences")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smoke_tests.drawn import ALGORITHMS, TILES, Algorithm, Call, Layer, Out, Sequence, fixed
from smoke_tests.pool import Pool

WAIT_S = 10.0
"""For a rank to wait for a peer: a sequence that hangs is shrunk too, so it must end soon."""
TIER = "cpu"
LIMIT_S = 120.0
IN_CI = {1: 6, 2: 8, 4: 3, 8: 1}
"""Sequences for each number of ranks beside the fixed one: 1, 2 and 4 take 40 s on two cores."""
EPOCHS = (0, 2**31 - 2, -2)
"""The first one, and some whose sequences pass the end of int32 or zero."""
KERNELS: Final[list[tuple[Algorithm, tuple[int, int]]]] = [
    (algorithm, tile)
    for algorithm in ALGORITHMS
    for tile in ((TILES[1],) if algorithm == "table" else TILES)
    if algorithm in ("one_shot", "lamport") or tile != TILES[0]
]
EXTRAS: Final[list[tuple[bool, bool, Out]]] = [
    (bias, residual, out)
    for residual in (False, True)
    for bias in (False, True)
    for out in get_args(Out)
    if residual or out != "residual"
]
"""bias, residual, out."""


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """N from 8 to 136, K from 8 or 16 on: below, at and above what a tile has."""
    operand = draw(st.sampled_from(("fp16", "int8")))
    step = 8 if operand == "fp16" else 16
    return Layer(
        features=8 * draw(st.integers(1, 17)),
        depth=step * draw(st.integers(1, 80 // step)),
        operand=operand,  # type: ignore[arg-type] # one of two
        exact=draw(st.booleans()),
    )


def calls(world_size: int, max_tokens: int) -> st.SearchStrategy[Call]:
    """M from 0 to a little over twice what one launch takes, its edges more often.

    Four choices and the list's own make a call: hypothesis drops at most five in one step, and
    with more of them no failure would lose the calls that it does not need.
    """
    edges = (1, max_tokens, max_tokens + 1, 2 * max_tokens + 1, 0)
    return st.builds(
        _call,
        st.sampled_from(KERNELS),
        st.sampled_from((*edges * 8, *range(2 * max_tokens + 2))),
        st.sampled_from(EXTRAS),
        st.sampled_from([(layer, late) for late in range(-1, world_size) for layer in (0, 1)]),
    )


def _call(
    kernel: tuple[Algorithm, tuple[int, int]],
    tokens: int,
    extras: tuple[bool, bool, Out],
    who: tuple[int, int],
) -> Call:
    (algorithm, tile), (bias, residual, out), (layer, late) = kernel, extras, who
    return Call(layer, tokens, algorithm, tile, bias, residual, out, late)


@st.composite
def sequences(draw: st.DrawFn, world_size: int) -> Sequence:
    """Up to six calls of two layers on one workspace."""
    max_tokens = draw(st.sampled_from((16, 40)))
    return Sequence(
        world_size=world_size,
        max_tokens=max_tokens,
        first_epoch=draw(st.sampled_from(EPOCHS)),
        seed=draw(st.integers(0, 2**16)),
        layers=(draw(layers()), draw(layers())),
        calls=tuple(draw(st.lists(calls(world_size, max_tokens), min_size=1, max_size=6))),
    )


@pytest.fixture(scope="module")
def drawn_pool_of() -> Iterator[Callable[[int], Pool]]:
    """Give a pool of so many ranks, a new one where the last is gone or another."""
    current: list[Pool] = []

    def give(world_size: int) -> Pool:
        if not current or current[0].world_size != world_size or not current[0].usable:
            while current:
                current.pop().close()
            current.append(Pool("cpu", world_size, time_limit_s=WAIT_S))
        return current[0]

    yield give
    for pool in current:
        pool.close()


def test_drawn_sequences(
    world_size: int, drawn_pool_of: Callable[[int], Pool], request: pytest.FixtureRequest
) -> None:
    """Right, the same bits on all ranks, and the same as on a fresh workspace."""
    from smoke_tests.replay import play

    def run(sequence: Sequence) -> None:
        outcomes = drawn_pool_of(world_size).run(partial(play, sequence), LIMIT_S)
        bad = [f"rank {o.rank} {o.state}: {o.detail}" for o in outcomes if o.state != "passed"]
        if bad:
            again = f"pytest smoke_tests/test_drawn.py --replay='{sequence.to_json()}'"
            pytest.fail("\n".join([bad[0], str(sequence), "again:", again]), pytrace=False)

    config = request.config
    if replay := config.getoption("--replay"):
        run(Sequence.from_json(replay))
        return
    chosen = settings(
        max_examples=config.getoption("--sequences") or IN_CI[world_size],
        # The same in every run, unless a seed is asked for.
        derandomize=config.getoption("--hypothesis-seed", None) is None,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    chosen(example(fixed(world_size))(given(sequences(world_size))(run)))()
