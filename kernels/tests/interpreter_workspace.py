"""The layers above the kernels with a single rank, in Triton's interpreter: refusals, splitting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from interpreter_rank import FEATURES, HALF, exact_partial, integers, one_shot, two_shot

from gemm_allreduce import PeerTimeoutError, RowParallelLinear, Workspace, gemm_allreduce
from gemm_allreduce.dispatch import Choice, Shape, choose
from gemm_allreduce.jit import JitKernels
from gemm_allreduce.launch import Grid, Operands, Ranks
from gemm_allreduce.layout import RESULT_LATE, STATUS_WORDS, HeapLayout
from gemm_allreduce.transports import Heap
from gemm_allreduce.transports.virtual import VirtualTransport
from gemm_allreduce.variants import Tile, Variant


class OneProcess(VirtualTransport):
    """One rank that is not virtual: operands without a leading dimension."""

    virtual = False

    def allocate(self, nbytes: int) -> Heap:
        heap = super().allocate(nbytes)
        return Heap(heap.own[0], heap.addresses)


def workspace_of_one(**options: object) -> Workspace:
    settings = {"max_tokens": 64, "max_features": FEATURES, "dtype": HALF} | options
    return Workspace(VirtualTransport(1, "cpu"), **settings)  # type: ignore[arg-type]


def require(error: type[Exception], words: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except error as caught:
        assert words in str(caught), caught
    else:
        raise AssertionError(f"not refused: {words}")


def case_what_the_interpreter_cannot_run() -> None:
    """Each would end in garbage or hang; none is launched."""
    for variant, virtual, words in (
        (Variant("one_shot", "bf16", "bf16", 1, Tile(16, 64, 32, 1, 4)), True, "use fp16"),
        (Variant("one_shot", "bf16", "int8", 1, Tile(16, 64, 32, 1, 4)), True, "use fp16"),
        (Variant("two_shot", "fp16", "fp8e4m3", 1, Tile(64, 64, 32, 1, 4)), True, "use fp16"),
        (one_shot(2), True, "use one process per rank"),
    ):
        layout = HeapLayout(variant.world_size, 64, FEATURES)
        heaps = torch.zeros(variant.world_size, layout.total_bytes, dtype=torch.uint8)
        table = torch.tensor([heap.data_ptr() for heap in heaps], dtype=torch.int64)
        status = torch.zeros(variant.world_size, STATUS_WORDS, dtype=torch.int32)
        scratch = heaps[0, layout.scratch : layout.partial_flags].view(torch.int32)
        ranks = Ranks(layout, table, status, scratch, 0, virtual)
        x, weight = torch.ones(4, 16, dtype=HALF), torch.ones(FEATURES, 16, dtype=HALF)
        operands = Operands(x, weight, torch.empty(4, FEATURES, dtype=HALF))
        require(
            RuntimeError,
            words,
            lambda v=variant, r=ranks, o=operands: JitKernels().launch(v, r, o, Grid(1, 1, 0), 3),
        )
        assert not heaps.any(), "something ran"


def case_a_choice_that_does_not_fit() -> None:
    """A dispatch of the caller's own: what would write beyond its part of the heap is refused."""
    x, weight = integers(1, 1, 65, 16), integers(2, 1, FEATURES, 16)
    tall = Variant("one_shot", "fp16", "fp16", 1, Tile(128, 64, 32, 1, 4))
    for variant, rows, words in (
        (one_shot(1), 65, "for 65 rows; one_shot serves 64"),
        (tall, 4, "one_shot serves 64"),
        (one_shot(2), 4, "dispatch chose one_shot_fp16_w2"),
        (two_shot(1, split=False, operand="int8"), 4, "dispatch chose two_shot_int8"),
    ):
        workspace = workspace_of_one(
            max_tokens=128, dispatch=lambda shape, variant=variant: Choice(variant)
        )
        part = x[:, :rows].contiguous()
        require(ValueError, words, lambda w=workspace, p=part: gemm_allreduce(p, weight, w))
        assert workspace.epochs() == [0]


def case_calls_larger_than_the_workspace() -> None:
    """More rows than max_tokens become several launches; the results do not show it."""
    shapes = []

    def recording(shape: Shape) -> Choice:
        shapes.append(shape.tokens)
        return choose(shape)

    workspace = workspace_of_one(max_tokens=16, dispatch=recording)
    x, weight = integers(3, 1, 35, 24), integers(4, 1, FEATURES, 24)
    bias, residual = integers(5, FEATURES), integers(6, 35, FEATURES)
    expected = (exact_partial(x[0], weight[0]).float() + bias.float() + residual.float()).to(HALF)
    y = gemm_allreduce(x, weight, workspace, bias, residual)
    workspace.check()
    assert torch.equal(y[0], expected)
    assert shapes == [16, 16, 3] and workspace.epochs() == [3] and workspace.arrivals() == [0]
    assert gemm_allreduce(x[:, :0], weight, workspace).shape == (1, 0, FEATURES)
    assert workspace.epochs() == [3], "no rows, no launch"


def case_out_in_place_of_other_operands() -> None:
    """The residual itself may be overwritten; parts of it, or of anything else, may not."""
    workspace = Workspace(OneProcess(1, "cpu"), max_tokens=64, max_features=FEATURES, dtype=HALF)
    x, weight = integers(7, FEATURES, FEATURES), integers(8, FEATURES, FEATURES)
    both = integers(9, 2 * FEATURES, FEATURES)
    residual, shifted = both[:FEATURES], both[8 : FEATURES + 8]
    expected = (exact_partial(x, weight).float() + residual.float()).to(HALF)
    for name, out, others in (
        ("x", x, {}),
        ("weight", weight, {}),
        ("residual", shifted, {"residual": residual}),
        ("bias", residual, {"bias": residual[3]}),
    ):
        require(
            ValueError,
            f"out overlaps {name}",
            lambda o=out, k=others: gemm_allreduce(x, weight, workspace, out=o, **k),
        )
    assert workspace.epochs() == [0]
    y = gemm_allreduce(x, weight, workspace, residual=residual, out=residual)
    assert y.data_ptr() == residual.data_ptr() and torch.equal(residual, expected)


def case_a_failure_is_raised() -> None:
    """A status record becomes an error, in check() and at the next call, until the end."""
    workspace = workspace_of_one(time_limit_s=2.5)
    x, weight = integers(10, 1, 4, 16), integers(11, 1, FEATURES, 16)
    gemm_allreduce(x, weight, workspace)
    workspace.check()
    workspace._ranks.status[0, :6] = torch.tensor([RESULT_LATE, 0, 7, 1, 4, 5])
    words = "rank 0 gave up waiting for the result of rank 1 at tile 7: its flag is 4, expected 5"
    for use in (workspace.check, lambda: gemm_allreduce(x, weight, workspace), workspace.check):
        require(PeerTimeoutError, words, use)
        require(PeerTimeoutError, "(time limit 2.5 s)", use)
    assert workspace.epochs() == [1], "a failed workspace was used"
    workspace.close()
    workspace.close()
    require(RuntimeError, "closed", workspace.check)


class Stream:
    """Stands for a torch.cuda.Stream."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


def case_following_a_stream() -> None:
    """Only a move from another stream is one: it waits for the device."""
    workspace = workspace_of_one()
    waits: list[int] = []
    workspace._synchronize = lambda: waits.append(1)  # type: ignore[method-assign]
    assert not workspace.follow(Stream(7)), "the first call chooses its stream by itself"
    workspace._stream = 7
    assert not workspace.follow(Stream(7)) and not waits
    assert workspace.follow(Stream(8)) and workspace._stream == 8 and len(waits) == 1
    workspace.close()
    require(RuntimeError, "closed", lambda: workspace.follow(Stream(9)))


class Prepared:
    """Kernels that note what they are asked to load."""

    identity = "for tests"

    def __init__(self) -> None:
        self.names: list[str] = []

    def prepare(self, variant: Variant, ranks: Ranks) -> bool:
        self.names.append(variant.name)
        return variant.tile.bulk


def case_warmup_loads_what_the_layers_need() -> None:
    workspace = workspace_of_one(max_tokens=4096, max_features=8192)
    workspace.kernels = kernels = Prepared()  # type: ignore[assignment]
    done = workspace.warmup([(8192, 64), (8192, 128)])
    needed = {choose(Shape(m, 8192, 64, 1, "sm_90", "fp16")).variant.name for m in range(1, 4097)}
    assert set(done.variants) == needed and len(done.variants) == len(needed) >= 3
    assert kernels.names == list(done.variants)
    assert done.loaded == tuple(name for name in done.variants if name.endswith("_bulk"))
    assert 0 < len(done.loaded) < len(needed)
    words = f"{len(needed)} kernels are ready, {len(done.loaded)} of them loaded now, in "
    assert str(done).startswith(words)
    few = workspace.warmup([(8192, 64)], tokens=[1, 2], operands=[torch.int8])
    assert few.variants == (choose(Shape(1, 8192, 64, 1, "sm_90", "fp16", "int8")).variant.name,)
    require(ValueError, "tokens must be at least 1", lambda: workspace.warmup([(8, 8)], tokens=[0]))
    workspace.close()
    require(RuntimeError, "closed", lambda: workspace.warmup([(8, 8)]))


def case_warmup_asks_another_table_for_every_m() -> None:
    asked: list[int] = []

    def dispatch(shape: Shape) -> Choice:
        asked.append(shape.tokens)
        return choose(shape)

    workspace = workspace_of_one(dispatch=dispatch)
    assert workspace.warmup([(64, 64)]).loaded == ()  # interpreted: there is nothing to load
    assert asked == list(range(1, 65))


class Differing(OneProcess):
    """Two ranks, of which the other one tells what this one does, but for some settings."""

    def __init__(self, **settings: object) -> None:
        super().__init__(2, "cpu")
        self._settings = settings

    def gather(self, value: object) -> list[object]:
        other = value | self._settings if isinstance(value, dict) else value
        return [value, other]


def case_ranks_of_unequal_multiprocessors_are_refused() -> None:
    """They would choose different kernels, and wait for each other."""
    options = {"max_tokens": 64, "max_features": FEATURES, "dtype": HALF}
    words = "multiprocessors differs between ranks: [132, 66]"
    require(ValueError, words, lambda: Workspace(Differing(multiprocessors=66), **options))
    words = "architecture differs between ranks: ['sm_90', 'sm_80']"
    require(ValueError, words, lambda: Workspace(Differing(architecture="sm_80"), **options))


def case_dispatch_is_told_the_multiprocessors_of_a_rank() -> None:
    """Virtual ranks share those of the GPU; what sm_margin leaves free counts as theirs."""
    for ranks, each in ((1, 132), (2, 66), (4, 33), (8, 16)):
        shapes: list[Shape] = []

        def dispatch(shape: Shape, shapes: list[Shape] = shapes) -> Choice:
            shapes.append(shape)
            return choose(shape)

        workspace = Workspace(
            VirtualTransport(ranks, "cpu"),
            max_tokens=64,
            max_features=FEATURES,
            dtype=HALF,
            dispatch=dispatch,
        )
        workspace.kernels = Prepared()  # type: ignore[assignment]
        workspace.warmup([(FEATURES, 64)], tokens=[1])
        assert [shape.processors for shape in shapes] == [each]


def case_rows_of_8_elements_in_the_interpreter() -> None:
    """Triton 3.4's interpreter refuses descriptors of such rows: bulk kernels run without them."""
    for depth in (24, 32):
        workspace = workspace_of_one(max_tokens=128, max_features=264)
        assert workspace._choose(workspace._shape(70, 264, depth, "fp16")).variant.tile.bulk
        x, weight = integers(1, 1, 70, depth), integers(2, 1, 264, depth)
        y = gemm_allreduce(x, weight, workspace)
        assert torch.equal(y[0], exact_partial(x[0], weight[0])), depth


def case_linear() -> None:
    """The layer's leading dimensions, bias and residual, also with no rows at all."""
    workspace = Workspace(OneProcess(1, "cpu"), max_tokens=4, max_features=FEATURES, dtype=HALF)
    layer = RowParallelLinear(workspace, 16, FEATURES, bias=True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert layer.bias is not None
    layer.weight.copy_(integers(12, FEATURES, 16))
    layer.bias.copy_(integers(13, FEATURES))
    for shape in ((3,), (2, 3), (2, 0), ()):
        x, residual = integers(14, *shape, 16), integers(15, *shape, FEATURES)
        expected = (exact_partial(x, layer.weight).float() + layer.bias.float()).to(HALF)
        assert torch.equal(layer(x), expected), shape
        expected = (expected.float() + residual.float()).to(HALF)  # small integers: exact
        assert torch.equal(layer(x, residual), expected), shape
    workspace.check()
