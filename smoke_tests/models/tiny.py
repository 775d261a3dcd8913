"""Small models with the ratios of large ones, as checkpoints that transformers loads for real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

VOCABULARY: Final = 128
POSITIONS: Final = 64
_SEED: Final = 20260701
_ODD: Final = {2: 57, 4: 29, 8: 15}
WHOLE: Final = "smoke_whole"
"""The style of a layer that every rank has whole."""


@dataclass(frozen=True)
class Tiny:
    """Sizes in elements. ``output_bias``: o_proj has a bias, as in Llama with attention_bias."""

    name: str
    layers: int
    hidden: int
    heads: int
    key_heads: int
    intermediate: int
    output_bias: bool = False

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.key_heads:
            raise ValueError(f"{self.name}: heads do not divide {self.hidden}")


def qwen2(ranks: int) -> Tiny:
    """Return a Qwen2 for so many ranks: 2, 4 or 8.

    Qwen2.5-72B has hidden 8192, intermediate 29568 and 64 heads, of which 8 are keys'; K of o_proj
    is the hidden size, and down_proj has K 3696 on each of 8 ranks, no multiple of 32. Here the
    heads are as many, and intermediate is 3.6 to 3.8 times the hidden size, so that K of down_proj
    is 8 times an odd number on each rank. q, k and v have biases, o_proj and down_proj have none.
    """
    return Tiny("Qwen2", 3, 256, 64, 8, ranks * _ODD[ranks] * 8)


def llama(ranks: int) -> Tiny:
    """Return a Llama of the same sizes with a bias of o_proj: to be added once, not W times."""
    return Tiny("Llama", 2, 256, 64, 8, ranks * _ODD[ranks] * 8, output_bias=True)


def config_of(tiny: Tiny) -> Any:
    """Return the configuration that transformers takes."""
    from transformers import LlamaConfig, Qwen2Config

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.key_heads,
        "max_position_embeddings": POSITIONS,
    }
    return LlamaConfig(**common, attention_bias=True) if tiny.output_bias else Qwen2Config(**common)


def save(tiny: Tiny, dtype: torch.dtype, folder: Path) -> None:
    """Write a checkpoint with random weights of `dtype`; the same for the same model and type.

    Weights are scaled so that every layer adds about as much as there is: an error in one shows.
    Biases are as large as what they are added to.
    """
    model = _class_of(tiny)(config_of(tiny))
    source = torch.Generator().manual_seed(_SEED)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=source)
        if "norm" in name:
            values = 1 + 0.1 * values
        elif parameter.dim() == 2 and "embed" not in name:
            values = values / parameter.shape[1] ** 0.5
        parameter.data.copy_(values)
    with _quiet():
        model.to(dtype).save_pretrained(folder)


def load_whole(tiny: Tiny, folder: Path) -> Any:
    """Return the model of a checkpoint in float32, in this process, on the CPU."""
    with _quiet():
        return _class_of(tiny).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )


def load_split(
    tiny: Tiny, folder: Path, dtype: torch.dtype, ranks: int, device: torch.device, plan: Any
) -> Any:
    """Return this rank's part of a checkpoint. Collective: all ranks of the default group.

    ``plan`` is put over the model's own. lm_head is not split: over gloo, which is all that several
    ranks on one GPU have, tensors of a GPU cannot be gathered.
    """
    from transformers.distributed import DistributedConfig
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

    ALL_PARALLEL_STYLES.register(WHOLE, TensorParallelLayer())
    config = DistributedConfig(tp_size=ranks, tp_plan={"lm_head": WHOLE, **plan})
    # transformers takes the GPU of this number; the ranks may share one.
    with _quiet(), _variable("LOCAL_RANK", str(device.index or 0)):
        return _class_of(tiny).from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", distributed_config=config
        )


def _class_of(tiny: Tiny) -> Any:
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    return LlamaForCausalLM if tiny.output_bias else Qwen2ForCausalLM


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
