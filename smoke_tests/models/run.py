"""One run of a model: prefill, then decode with a KV cache; what every layer gave is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

_LAYER: Final = re.compile(r"model\.layers\.\d+")
_PROJECTION: Final = re.compile(r"model\.layers\.\d+\.(self_attn\.o_proj|mlp\.down_proj)")


def projections(model: Any) -> dict[str, Any]:
    """Return the row-parallel layers by name."""
    return {name: m for name, m in model.named_modules() if _PROJECTION.fullmatch(name)}


@dataclass(frozen=True)
class Product:
    """A call of a row-parallel layer: x [M, K of this rank] and y [M, N]."""

    name: str
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Step:
    """A forward pass.

    Attributes:
        name: ``prefill``, or ``decode`` with its number.
        hidden: after every layer, by its name, [batch, tokens, hidden].
        logits: of the last position, [batch, vocabulary].
        products: of the row-parallel layers, in order.
    """

    name: str
    hidden: dict[str, torch.Tensor]
    logits: torch.Tensor
    products: tuple[Product, ...]

    @property
    def greedy(self) -> torch.Tensor:
        """The token that is taken next, [batch]."""
        return self.logits.argmax(-1)


def run(
    model: Any, prompts: torch.Tensor, count: int, tokens: Sequence[torch.Tensor] = ()
) -> list[Step]:
    """Run the prompts [batch, tokens], then decode `count` times.

    What is decoded are the run's own greedy tokens, or the given ones: runs that are compared must
    go on alike where two tokens are as good as each other.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache, steps, ids = DynamicCache(config=model.config), list[Step](), prompts
    with _watched(model) as (hidden, products):
        for number in range(count + 1):
            hidden.clear()
            products.clear()
            out = model(
                input_ids=ids.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            name = f"decode {number}" if number else "prefill"
            steps.append(Step(name, dict(hidden), out.logits[:, -1], tuple(products)))
            ids = (tokens[number] if tokens else steps[-1].greedy)[:, None]
    return steps


@contextmanager
def _watched(model: Any) -> Iterator[tuple[dict[str, torch.Tensor], list[Product]]]:
    """Keep what layers and projections give, as long as the context lasts."""
    hidden, products, hooks = dict[str, torch.Tensor](), list[Product](), list[Any]()

    def keep_layer(name: str) -> Any:
        def keep(_: Any, inputs: Any, output: torch.Tensor) -> None:
            hidden[name] = output

        return keep

    def keep_product(name: str) -> Any:
        def keep(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            x, y = (t.detach().flatten(0, -2).clone() for t in (inputs[0], output))
            products.append(Product(name, x, y))

        return keep

    for name, module in model.named_modules():
        if _LAYER.fullmatch(name):
            hooks.append(module.register_forward_hook(keep_layer(name)))
    for name, module in projections(model).items():
        hooks.append(module.register_forward_hook(keep_product(name)))
    try:
        yield hidden, products
    finally:
        for hook in hooks:
            hook.remove()
