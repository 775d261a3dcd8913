"""The style of transformers on a mesh of one rank, in Triton's interpreter: which way calls take.

Whole models on several ranks are smoke_tests/models/.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import torch
import torch.distributed as dist
from interpreter_rank import FEATURES, HALF, exact_partial, integers
from interpreter_workspace import OneProcess, require
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, apply_tensor_parallelism

from gemm_allreduce import Workspace
from gemm_allreduce.integrations import transformers as fused
from gemm_allreduce.transports.shared import SharedMemoryTransport

DEPTH = 24
PLAN = {"down": fused.STYLE, "wide": fused.STYLE, "odd": fused.STYLE}


@cache
def mesh() -> DeviceMesh:
    folder = tempfile.mkdtemp()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


class Subclass(torch.nn.Linear):
    """What a quantizer puts in place of a linear layer."""


class Model(torch.nn.Module):
    """A layer that can be fused, and one for each reason why not."""

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Linear(DEPTH, FEATURES, dtype=HALF)
        self.down.weight.data = integers(1, FEATURES, DEPTH).clone()
        self.down.bias.data = integers(2, FEATURES).clone()
        self.wide = torch.nn.Linear(DEPTH, 2 * FEATURES, dtype=HALF)
        self.odd = torch.nn.Linear(DEPTH - 4, FEATURES, dtype=HALF)
        self.kind = Subclass(DEPTH, FEATURES, dtype=HALF)
        self.plain = torch.nn.Linear(DEPTH, FEATURES, dtype=HALF)


def model() -> Model:
    made = Model()
    apply_tensor_parallelism(made, mesh(), {**PLAN, "kind": fused.STYLE, "plain": "rowwise"})
    return made


@contextmanager
def workspace() -> Iterator[Workspace]:
    mesh()
    transport = SharedMemoryTransport(dist.group.WORLD)
    with Workspace(transport, max_tokens=64, max_features=FEATURES, dtype=HALF) as made:
        yield made


def batch(*shape: int) -> torch.Tensor:
    return integers(7, *shape, DEPTH).clone()


def case_the_style_is_registered_and_native_without_a_workspace() -> None:
    assert isinstance(ALL_PARALLEL_STYLES[fused.STYLE], fused.FusedRowwise)
    made, x = model(), batch(2, 3)
    with torch.no_grad():
        y = made.down(x)
    want = torch.nn.functional.linear(x, made.down.weight.to_local(), made.down.bias.to_local())
    assert torch.equal(y, want)
    assert fused.calls(made)["down"] == {"no workspace is attached": 1}


def case_layers_are_armed_or_declined_with_a_reason_and_one_line_says_so() -> None:
    made, lines = model(), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("gemm_allreduce")
    with workspace() as one:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            done = fused.attach(made, one)
            with torch.no_grad():
                made.down(batch(2, 3).float().half())
                made.down(batch(0))
                made.down(batch(0))
        finally:
            log.removeHandler(handler)
            log.setLevel(logging.NOTSET)
    assert done.armed == ("down",)
    assert done.declined == {
        "wide": f"N is {2 * FEATURES}, the workspace's max_features {FEATURES}",
        "odd": f"K is {DEPTH - 4}, no multiple of 8 x 1 ranks",
        "kind": "it is a interpreter_transformers.Subclass, not a plain torch.nn.Linear",
    }
    armed = [line for line in lines if "armed" in line]
    assert armed == [f"gemm_allreduce: {done}"]
    assert str(done).startswith("1 of 4 row-parallel layers are armed, for 1 rows or more; wide: N")
    assert [line for line in lines if "native" in line] == [
        "gemm_allreduce: a call of down takes the native path: fewer than 1 rows"
    ], "once for a reason"


def case_an_armed_layer_gives_the_sum_and_the_bias_once() -> None:
    made = model()
    with workspace() as one, torch.no_grad():
        fused.attach(made, one)
        for shape in ((1, 1), (2, 3), (70,)):
            x = batch(*shape)
            want = exact_partial(x.view(-1, DEPTH), made.down.weight.to_local()).float()
            want = (want + made.down.bias.to_local()).to(HALF).view(*shape, FEATURES)
            calls = one.epochs()[0]
            y = made.down(x)
            assert torch.equal(y, want)
            assert one.epochs()[0] > calls, "the kernel was not used"
            y.zero_()
            assert torch.equal(made.down(x), want), "the result is the caller's"
        assert fused.calls(made)["down"] == {"fused": 6}
        # Loaders put other parameters in their places.
        made.down.weight = torch.nn.Parameter(made.down.weight.detach() * 2)
        twice = exact_partial(x, made.down.weight.to_local()) + made.down.bias.to_local()
        assert torch.equal(made.down(x), twice)


def case_a_weight_that_lies_unaligned_is_settled_once() -> None:
    """Weights of mapped files lie as the file has them."""
    made = model()
    weight, bias = made.down.weight.to_local(), made.down.bias.to_local()
    for name, values in (("weight", weight), ("bias", bias)):
        apart = torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
        assert apart.data_ptr() % 16
        setattr(made.down, name, torch.nn.Parameter(apart, requires_grad=False))
    with workspace() as one, torch.no_grad():
        fused.attach(made, one)
        x = batch(3)
        assert torch.equal(made.down(x), exact_partial(x, weight) + bias)
        settled = made.down.weight
        fused.attach(made, one)
        assert made.down.weight is settled


def case_calls_beyond_the_conditions_are_native_and_counted() -> None:
    made = model()
    with workspace() as one:
        fused.attach(made, one, min_tokens=2, max_tokens=6)
        made.down(batch(3))
        with torch.no_grad():
            made.down(batch(1))
            made.down(batch(7))
            made.down(batch(2, 3))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                made.down(batch(3))
            require(RuntimeError, "dtype", lambda: made.down(batch(3).float()))
    counted = fused.calls(made)["down"]
    assert counted == {
        "grad mode is on": 1,
        "fewer than 2 rows": 1,
        "more than 6 rows": 1,
        "fused": 1,
        "autocast is on": 1,
        "x is torch.float32": 1,
    }, counted


def case_columns_of_all_ranks_are_left_to_the_native_forward() -> None:
    made = model()
    with workspace() as one, torch.no_grad():
        fused.attach(made, one)
        site = getattr(made.down, fused._SITE)
        whole = torch.cat([batch(3), batch(3)], dim=-1)
        site.native = lambda x: made.down.weight.to_local() @ x[:, :DEPTH].T
        assert made.down(whole).shape == (FEATURES, 3)
        assert fused.calls(made)["down"] == {"x is not a local shard": 1}


def case_a_closed_workspace_and_a_detached_model_are_native() -> None:
    made = model()
    with torch.no_grad():
        with workspace() as one:
            fused.attach(made, one)
            made.down(batch(3))
            fused.detach(made)
            made.down(batch(3))
            fused.attach(made, one)
        one.close()
        made.down(batch(3))
    assert fused.calls(made)["down"] == {
        "fused": 1,
        "no workspace is attached": 1,
        "the workspace is closed": 1,
    }


def case_ranks_that_would_arm_other_layers_or_calls_arm_nothing() -> None:
    made = model()
    with workspace() as one, torch.no_grad():
        gather = one.transport.gather
        for other in (({"down": ""}, 1, None), None):

            def told(value: tuple[object, ...], other: object = other) -> list[object]:
                return [*gather(value), other or (value[0], 2, None)]

            one.transport.gather = told  # type: ignore[method-assign]
            require(ValueError, "ranks differ", lambda: fused.attach(made, one))
        one.transport.gather = gather  # type: ignore[method-assign]
        made.down(batch(2))
    assert fused.calls(made)["down"] == {"no workspace is attached": 1}


def case_what_cannot_be_attached() -> None:
    made = model()
    with workspace() as one:
        require(ValueError, "no layer was loaded", lambda: fused.attach(torch.nn.Module(), one))
        require(ValueError, "no range", lambda: fused.attach(made, one, min_tokens=0))
        assert not fused.calls(made)["down"]
    with Workspace(OneProcess(1, "cpu"), max_tokens=64, max_features=FEATURES, dtype=HALF) as one:
        done = fused.attach(made, one)
        assert not done.armed
        assert done.declined["down"] == "its ranks are (0,), the workspace's unknown"


def case_an_old_release_is_refused_where_the_style_is_imported() -> None:
    with mock.patch("importlib.metadata.version", lambda _: "5.18.2"):
        require(ImportError, "5.18.2 is installed", lambda: importlib.reload(fused))


def case_a_compiled_layer_is_one_graph_with_the_op_in_it() -> None:
    made, graphs = model(), list[torch.fx.GraphModule]()

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    with workspace() as one, torch.no_grad():
        fused.attach(made, one)
        x = batch(2, 3)
        want = made.down(x)
        compiled = torch.compile(made.down, fullgraph=True, backend=keep)
        assert torch.equal(compiled(x), want)
    (graph,) = graphs
    assert "gemm_allreduce" in graph.code
    assert "all_reduce" not in graph.code.replace("gemm_allreduce", "")
