"""Inputs from a seed, exact references, and an error bound. Shapes: W ranks, M, N, K."""

from __future__ import annotations

import hashlib

import torch

# 2**-p for a significand of p bits, the hidden one included: 8 for bf16, 11 for fp16.
UNIT_ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SMALLEST = {torch.bfloat16: 2.0**-126, torch.float16: 2.0**-24}


class Source:
    """Tensors that are the same in every process that asks in the same order."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def integers(self, dtype: torch.dtype, *shape: int, limit: int = 4) -> torch.Tensor:
        """Integers from -limit to limit: their products sum exactly in float32, in any order."""
        values = torch.randint(
            -limit, limit + 1, shape, generator=self._generator, device=self._device
        )
        return values.to(dtype)

    def normal(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self._generator, device=self._device).to(dtype)


def partials(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return [W, M, N]: every rank's product, rounded once. Exact for small integers."""
    products = [a.float() @ w.float().T for a, w in zip(x, weight, strict=True)]
    return torch.stack(products).to(dtype)


def sum_in_rank_order(
    parts: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return [M, N]: the float32 sum in rank order, then bias, then residual, rounded once."""
    total = torch.zeros(parts.shape[1:], dtype=torch.float32, device=parts.device)
    for part in parts:
        total += part.float()
    if bias is not None:
        total += bias.float()
    if residual is not None:
        total += residual.float()
    return total.to(parts.dtype)


def expected(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what every rank must get, bit for bit, for integer inputs."""
    return sum_in_rank_order(partials(x, weight, dtype))


def bound(
    x: torch.Tensor,
    weight: torch.Tensor,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float64 result [M, N] and how far a correct one may be from it.

    Per rank: float32 accumulation over K (tensor cores truncate: 2**-23 a term), one rounding of
    the partial. Over ranks: W - 1 float32 additions, one each for bias and residual, and one
    rounding of the sum. Give 8-bit operands multiplied by their scales, in float64: that K is at
    least 16 covers the roundings of the two scales. Derived in docs/kernels.md, Numerics.
    """
    unit = UNIT_ROUNDOFF[dtype]
    exact = torch.zeros(x.shape[1], weight.shape[1], dtype=torch.float64, device=x.device)
    error = torch.zeros_like(exact)
    magnitudes = torch.zeros_like(exact)
    for a, w in zip(x.double(), weight.double(), strict=True):
        product = a @ w.T
        accumulated = (a.abs() @ w.abs().T) * (a.shape[-1] * 2.0**-23)
        partial_error = accumulated + (product.abs() + accumulated) * unit + _SMALLEST[dtype]
        exact += product
        error += partial_error
        magnitudes += product.abs() + partial_error
    additions = len(x)
    for extra in (bias, residual):
        if extra is not None:
            exact += extra.double()
            magnitudes += extra.double().abs()
            additions += 1
    error += magnitudes * (additions * 2.0**-24)
    error += (exact.abs() + error) * unit + _SMALLEST[dtype]
    return exact, error * 1.001


def require_equal(actual: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Compare bit for bit; zeros of either sign are equal."""
    assert actual.shape == wanted.shape, f"{what}: shape {actual.shape}, expected {wanted.shape}"
    different = ~(actual == wanted)
    if bool(different.any()):
        first = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.numel()} elements differ, first at "
            f"{first}: {actual[first].item()}, expected {wanted[first].item()}"
        )


def require_bound(
    actual: torch.Tensor, exact: torch.Tensor, error: torch.Tensor, what: str
) -> float:
    """Compare within the bound; return the largest error as a fraction of its bound."""
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, expected {exact.shape}"
    if not actual.numel():
        return 0.0
    ratio = float(((actual.double() - exact).abs() / error).max())
    assert ratio <= 1, f"{what}: error is {ratio:.3f} of its bound"  # NaN fails too
    return ratio


def fingerprint(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's bits, to compare between processes."""
    data = tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()
