"""What does not agree between runs of a model, in words that name the layer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smoke_tests.models.roundings import MARGIN, SINGLE, Reference
from smoke_tests.models.run import Product, Step
from smoke_tests.reference import UNIT_ROUNDOFF, bound, fingerprint


@dataclass(frozen=True)
class Agreement:
    """What a comparison found: ``findings`` is empty where all agrees.

    ``worst`` is the largest error, as a fraction of what is allowed.
    """

    findings: tuple[str, ...]
    worst: float


@dataclass(frozen=True)
class Weights:
    """Of a row-parallel layer: [W, N, K of a rank], and [N] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def with_reference(
    what: str, steps: Sequence[Step], reference: Reference, dtype: torch.dtype
) -> Agreement:
    """Compare hidden states and logits of a run with those in float32."""
    allowed = MARGIN * UNIT_ROUNDOFF[dtype]
    return _compare(f"{what} is", "from float32", steps, reference.steps, reference, allowed)


def with_native(
    fused: Sequence[Step], native: Sequence[Step], reference: Reference, dtype: torch.dtype
) -> Agreement:
    """Compare two runs of one type."""
    allowed = 2**0.5 * MARGIN * UNIT_ROUNDOFF[dtype]
    return _compare("fused is", "from native", fused, native, reference, allowed)


def _compare(
    what: str,
    whence: str,
    steps: Sequence[Step],
    others: Sequence[Step],
    reference: Reference,
    allowed: float,
) -> Agreement:
    findings, worst = list[str](), 0.0
    for step, other, spread in zip(steps, others, reference.spread, strict=True):
        for name, s in spread.items():
            got, wanted = _of(step, name), _of(other, name)
            error = (got - wanted).flatten(1).norm(dim=1) / (allowed * s.double())
            prompt = int(error.nan_to_num(torch.inf).argmax())
            ratio = float(error[prompt])
            if not ratio <= 1:  # NaN too
                findings.append(
                    f"{step.name}, {name}: {what} {ratio:.2f} times as far {whence} as rounding "
                    f"explains (prompt {prompt} of {len(error)})"
                )
            worst = max(worst, ratio)
    return Agreement(tuple(findings), worst)


def _of(step: Step, name: str) -> torch.Tensor:
    return (step.logits if name == "logits" else step.hidden[name]).double().cpu()


def greedy_tokens(
    what: str, steps: Sequence[Step], reference: Reference, dtype: torch.dtype
) -> tuple[Agreement, int, int]:
    """Compare the tokens that are taken; return also how many were decided, and of how many.

    Where the two best tokens are nearer to each other than rounding explains, either may be taken.
    """
    findings, decided, count = list[str](), 0, 0
    for step, other, (gap, s) in zip(steps, reference.steps, reference.gaps, strict=True):
        clear = gap > SINGLE * UNIT_ROUNDOFF[dtype] * s
        taken = step.greedy.cpu()
        for prompt in torch.nonzero(clear & (taken != other.greedy)).flatten().tolist():
            findings.append(
                f"{step.name}, prompt {prompt}: {what} takes token {int(taken[prompt])}, float32 "
                f"{int(other.greedy[prompt])}"
            )
        decided, count = decided + int(clear.sum()), count + len(clear)
    if not 2 * decided > count:
        findings.append(f"only {decided} of {count} tokens are decided: this compares nothing")
    return Agreement(tuple(findings), 0.0), decided, count


def products(
    name: str, of_ranks: Sequence[Sequence[Product]], weights: dict[str, Weights]
) -> Agreement:
    """Check every call of a row-parallel layer by itself, on the inputs that it really had.

    ``of_ranks`` are every rank's calls, in order. The bound is that of one call (reference.bound),
    and holds for each element; so the layer where something goes wrong is named, and no other.
    """
    findings, worst = list[str](), 0.0
    for calls in zip(*of_ranks, strict=True):
        layer = calls[0].name
        assert {call.name for call in calls} == {layer}, [call.name for call in calls]
        if len({fingerprint(call.y) for call in calls}) > 1:
            findings.append(f"{name}, {layer}: ranks differ in bits")
        x, w = torch.stack([call.x for call in calls]), weights[layer]
        exact, error = bound(x, w.weight, x.dtype, w.bias)
        for rank, call in enumerate(calls):
            ratio = float(((call.y.double() - exact).abs() / error).max())
            if not ratio <= 1:  # NaN too
                findings.append(f"{name}, {layer}, rank {rank}: error is {ratio:.3g} of its bound")
            worst = max(worst, ratio)
    return Agreement(tuple(findings), worst)
