"""How far a run of a model in a 2-byte type may be from one in float32: by type and depth.

Let u be the unit roundoff (2^-8 bf16, 2^-11 fp16). In the 2-byte run the result v_s of each
operation s has the relative error e_s, at most u in every element. To first order that moves a
result h, which lies behind it, by J_s (v_s e_s), with J_s the derivative of h by v_s. All of them
together, for errors that are independent of each other and zero on average, which is how rounding
to nearest is modelled (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis,
2019):

    E |h' - h|^2  =  sum_s E |J_s (v_s e_s)|^2  <=  u^2 S^2,     S^2 = sum_s |J_s diag(v_s)|_F^2

S is computed, not guessed: for a random z of signs, E |diag(v_s) J_s^T z|^2 is the norm in the
sum, and J_s^T z is what reverse-mode differentiation of <z, h> gives, for all s at once. So depth
comes in by itself: every layer adds its operations, and every J_s holds what the layers behind
make of an error. Norms are over the positions and features of one prompt.

Operations are those of the model as it is split over W ranks: the W partial products of a
row-parallel layer are rounded each, then their sums. Counted too much: RMSNorm, softmax and rotary
angles are computed in float32, and counted as if they were not; the worst case u is taken for the
spread of e_s, which is u / sqrt(3) or less. Left out: errors of float32 accumulation, K 2^-24 of
each product's terms, and of second order. `MARGIN` times u S is allowed, as |h' - h|, a norm of
hundreds of values with thousands of errors behind each, stays near its mean; a single number does
not, and gets `SINGLE` times. Two runs with roundings of their own are sqrt(2) as far from each
other as either is from float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from smoke_tests.models.run import Step, projections, run

MARGIN: Final = 2.0
SINGLE: Final = 4.0
PROBES: Final = 6
_MOVES: Final = frozenset(
    {"cat", "contiguous", "clone", "expand", "reshape", "view", "transpose", "repeat_interleave"}
)
"""Operations that copy: they round nothing."""


@dataclass(frozen=True)
class Reference:
    """A run in float32, and S of what it gave.

    Attributes:
        steps: the run.
        spread: for each step S of every layer, by its name, and of ``logits``: [batch].
        gaps: for each step the best logit less the second, [batch], and S of that difference.
    """

    steps: list[Step]
    spread: list[dict[str, torch.Tensor]]
    gaps: list[tuple[torch.Tensor, torch.Tensor]]


class _Operations(TorchFunctionMode):
    """Keeps the result of every operation that computes floating-point values."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, torch.Tensor)
            and out.requires_grad
            and not out.is_leaf
            and getattr(func, "__name__", "") not in _MOVES
            and not _is_view(out, args)
        ):
            self.results.append(out)
        return out


def _is_view(out: torch.Tensor, args: tuple[Any, ...]) -> bool:
    with torch._C.DisableTorchFunction():
        place = out.untyped_storage().data_ptr()
        return any(
            isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() == place for a in args
        )


def reference(model: Any, prompts: torch.Tensor, count: int, ranks: int) -> Reference:
    """Run a model in float32, its row-parallel layers in `ranks` parts, and compute S."""
    with torch.enable_grad(), _in_parts(model, ranks), _Operations() as operations:
        steps = run(model, prompts, count)
    probe = torch.Generator().manual_seed(1)
    spread: list[dict[str, torch.Tensor]] = []
    gaps: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in steps:
        found = {}
        for name, h in {**step.hidden, "logits": step.logits}.items():
            total = torch.zeros(len(prompts))
            for _ in range(PROBES):
                z = torch.randint(0, 2, h.shape, generator=probe) * 2.0 - 1.0
                total += _squares(h, z, operations.results, len(prompts))
            found[name] = (total / PROBES).sqrt()
        spread.append(found)
        with torch.enable_grad():
            best = step.logits.topk(2).values
            difference = best[:, 0] - best[:, 1]
        square = _squares(difference, torch.ones(len(prompts)), operations.results, len(prompts))
        gaps.append((difference.detach(), square.sqrt()))
    return Reference([_without_graph(step) for step in steps], spread, gaps)


def _squares(
    h: torch.Tensor, z: torch.Tensor, results: list[torch.Tensor], batch: int
) -> torch.Tensor:
    """Return sum over s of |diag(v_s) J_s^T z|^2 for each prompt, [batch]."""
    total = torch.zeros(batch)
    gradients = torch.autograd.grad(h, results, z, retain_graph=True, allow_unused=True)
    for v, gradient in zip(results, gradients, strict=True):
        if gradient is None:
            continue
        square = (gradient * v.detach()).square()
        # What all prompts share, as the rotary angles, counts in full for each.
        total += square.flatten(1).sum(1) if len(v) == batch else square.sum()
    return total


@contextmanager
def _in_parts(model: Any, ranks: int) -> Iterator[None]:
    """Compute row-parallel layers as ranks do, so that partial products are operations."""
    changed = projections(model).values()

    def in_parts(layer: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            weights, parts = layer.weight.chunk(ranks, 1), x.chunk(ranks, -1)
            y = torch.nn.functional.linear(parts[0], weights[0])
            for part, weight in zip(parts[1:], weights[1:], strict=True):
                y = y + torch.nn.functional.linear(part, weight)
            return y if layer.bias is None else y + layer.bias

        return forward

    for layer in changed:
        layer.forward = in_parts(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _without_graph(step: Step) -> Step:
    hidden = {name: h.detach() for name, h in step.hidden.items()}
    return Step(step.name, hidden, step.logits.detach(), step.products)
