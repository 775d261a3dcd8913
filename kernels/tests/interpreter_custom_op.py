"""The torch custom op with one rank, in Triton's interpreter: schema, fakes, compiled, refusals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from interpreter_rank import FEATURES, HALF, exact_partial, integers
from interpreter_workspace import OneProcess, require, workspace_of_one
from torch._subclasses.fake_tensor import FakeTensorMode

from gemm_allreduce import Workspace
from gemm_allreduce.custom_op import gemm_allreduce, register, unregister, workspace_of

DEPTH = 24


@contextmanager
def one_process(name: str = "one") -> Iterator[Workspace]:
    made = Workspace(OneProcess(1, "cpu"), max_tokens=64, max_features=FEATURES, dtype=HALF)
    register(made, name)
    yield made
    unregister(name)
    made.close()


def operands(tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, bias, residual."""
    return (
        integers(1, tokens, DEPTH).clone(),
        integers(2, FEATURES, DEPTH).clone(),
        integers(3, FEATURES).clone(),
        integers(4, tokens, FEATURES).clone(),
    )


def case_the_op_is_what_torch_expects_of_one() -> None:
    """opcheck: nothing is mutated or aliased, the fake agrees, also with symbolic shapes."""
    with one_process():
        x, weight, bias, residual = operands()
        for extras in ((), (bias,), (None, residual), (bias, residual)):
            torch.library.opcheck(gemm_allreduce, (x, weight, "one", *extras))
        scale, scales = torch.full((5,), 0.5), torch.full((FEATURES,), 2.0)
        eight = (x.to(torch.int8).repeat(1, 2), weight.to(torch.int8).repeat(1, 2))
        torch.library.opcheck(gemm_allreduce, (*eight, "one", None, None, scale, scales))
        torch.library.opcheck(gemm_allreduce, (x[:0], weight, "one"))


def case_the_op_is_the_operator() -> None:
    with one_process():
        x, weight, bias, residual = operands()
        want = (exact_partial(x, weight).float() + bias + residual).to(HALF)
        y = torch.ops.gemm_allreduce.gemm_allreduce(x, weight, "one", bias, residual)
        assert torch.equal(y, want)
    with workspace_of_one() as workspace:
        virtual = gemm_allreduce(x[None], weight[None], register(workspace))
        assert torch.equal(virtual[0], exact_partial(x, weight))


def case_a_result_is_memory_of_its_own() -> None:
    """An engine adds into it: neither an argument, the heap nor a later result may change."""
    with one_process() as workspace:
        x, weight, _, residual = operands()
        before = [t.clone() for t in (x, weight, residual)]
        first = gemm_allreduce(x, weight, "one", None, residual)
        want = first.clone()
        second = gemm_allreduce(x, weight, "one", None, residual)
        owners = [x, weight, residual, workspace.words(), second]
        assert first.untyped_storage().data_ptr() not in {
            t.untyped_storage().data_ptr() for t in owners
        }
        second.fill_(7)
        assert torch.equal(first, want)
        third = gemm_allreduce(x, weight, "one", None, residual)
        assert torch.equal(third, want)
        assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, residual), strict=True))


def case_a_layout_that_a_compiler_chose_is_taken() -> None:
    with one_process():
        x, weight, _, residual = operands()
        turned = x.T.contiguous().T
        assert not turned.is_contiguous()
        y = gemm_allreduce(turned, weight, "one", None, residual.T.contiguous().T)
        want = gemm_allreduce(x, weight, "one", None, residual)
        assert torch.equal(y, want)
        apart = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        assert apart.data_ptr() % 16
        assert torch.equal(gemm_allreduce(apart, weight, "one", None, residual), want)


def case_fake_tensors_have_shape_and_type_and_launch_nothing() -> None:
    with one_process() as workspace:
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in operands()]
            y = gemm_allreduce(fake[0], fake[1], "one", fake[2])
            assert (y.shape, y.dtype, y.device) == ((5, FEATURES), HALF, fake[0].device)
            eight = [t.to(torch.int8) for t in fake[:2]]
            assert gemm_allreduce(*eight, "one").dtype == HALF
            three = gemm_allreduce(fake[0][None], fake[1][None], "one")
            assert three.shape == (1, 5, FEATURES)
            x, weight = fake[:2]
            require(ValueError, "x must be", lambda: gemm_allreduce(x[None], weight, "one"))
            require(ValueError, "weight 16", lambda: gemm_allreduce(x, weight[:, :16], "one"))
            require(LookupError, "'other'", lambda: gemm_allreduce(x, weight, "other"))
        assert workspace.epochs() == [0]


class Block(torch.nn.Module):
    """Two calls in a row, with plain operations around them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(integers(5, FEATURES, DEPTH).clone(), requires_grad=False)
        self.down = torch.nn.Parameter(integers(6, DEPTH, FEATURES).clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = gemm_allreduce(x, self.up, "one")
        wide.relu_()
        return x + gemm_allreduce(wide * 0.125, self.down, "one", None, x)


def case_compiled_as_one_graph() -> None:
    """Once for a shape, and with M as a symbol: the same bits as eager code, call for call."""
    block = Block()
    with one_process() as workspace, torch.no_grad():
        for backend in ("eager", "aot_eager"):
            torch._dynamo.reset()
            compiled = torch.compile(block, fullgraph=True, backend=backend)
            for tokens in (5, 3, 8, 17):
                x = integers(tokens, tokens, DEPTH).clone()
                want, calls = block(x), workspace.epochs()[0]
                assert torch.equal(compiled(x), want), (backend, tokens)
                assert workspace.epochs()[0] == calls + 2, "not the two calls of the block"


def case_a_graph_holds_the_handle_and_nothing_else_of_the_workspace() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    with one_process(), torch.no_grad():
        torch._dynamo.reset()
        torch.compile(Block(), fullgraph=True, backend=keep)(integers(1, 4, DEPTH).clone())
    (graph,) = graphs
    calls = [n for n in graph.graph.nodes if "gemm_allreduce" in str(n.target)]
    assert [call.args[2] for call in calls] == ["one", "one"]
    # The same graph with another workspace, as a process does that loads it.
    with one_process(), torch.no_grad():
        x = integers(9, 4, DEPTH).clone()
        block = Block()
        assert torch.equal(torch.compile(block, fullgraph=True, backend=keep)(x), block(x))


def case_gradients_are_refused() -> None:
    words = "no backward pass: call it under torch.no_grad()"
    with one_process():
        x, weight, _, _ = operands()
        x.requires_grad_()
        require(RuntimeError, words, lambda: gemm_allreduce(x, weight, "one"))
        with torch.no_grad():
            assert not gemm_allreduce(x, weight, "one").requires_grad


def case_handles() -> None:
    x, weight, _, _ = operands()
    with one_process() as first, one_process("two") as second:
        assert workspace_of("one") is first
        assert register(first, "one") == "one", "again is nothing new"
        require(ValueError, "'one' is the handle of another", lambda: register(second, "one"))
        names = register(first), register(second)
        assert len(set(names)) == 2
        assert workspace_of(names[1]) is second
        words = "no workspace is registered as 'three' in this process (registered: 'one', 'two'"
        require(LookupError, words, lambda: gemm_allreduce(x, weight, "three"))
    gone = Workspace(OneProcess(1, "cpu"), max_tokens=64, max_features=FEATURES, dtype=HALF)
    name = register(gone)
    gone.close()
    require(RuntimeError, "closed", lambda: gemm_allreduce(x, weight, name))
    del gone
    gc.collect()
    require(LookupError, name, lambda: gemm_allreduce(x, weight, name))


def case_bad_input_is_refused_as_by_the_operator() -> None:
    with one_process():
        x, weight, bias, _ = operands()
        for words, arguments in (
            ("bias must have shape", (x, weight, "one", bias[:8])),
            ("x must be torch.float16", (x.float(), weight.float(), "one")),
            ("K must be a multiple of 8", (x[:, :12].contiguous(), weight[:, :12].contiguous())),
            ("weight must be contiguous", (x, weight.T.contiguous().T, "one")),
        ):
            call = (*arguments, "one")[:4] if len(arguments) == 2 else arguments
            require(ValueError, words, lambda call=call: gemm_allreduce(*call))  # type: ignore[misc]
        assert torch.equal(gemm_allreduce(x, weight, "one"), exact_partial(x, weight))
