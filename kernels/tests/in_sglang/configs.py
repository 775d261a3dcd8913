"""Configurations of tiny models, as files that SGLang reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORLD = 2
LAYERS = 3
PROMPT = 5
STEPS = 3
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 2 * 8 * 5,  # K of a rank is 40, no multiple of 32
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 10240,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "dtype": "float16",
    "hidden_act": "silu",
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "head_dim": 16,
    },
}


def write_models(folder: Path) -> None:
    """Write the configurations; `--load-format dummy` needs nothing else."""
    for name, own in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG | own))
