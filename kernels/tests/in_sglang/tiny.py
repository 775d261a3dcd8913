"""Tiny models in SGLang's own ModelRunner on a CPU: weights, passes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from configs import PROMPT, STEPS, WORLD
from sglang.benchmark import one_batch
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import bootstrap
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
from sglang.srt.server_args import ServerArgs


def server_args(folder: Path, name: str, **more: Any) -> ServerArgs:
    settings = {
        "model_path": str(folder / name),
        "device": "cpu",
        "load_format": "dummy",
        "attention_backend": "torch_native",
        "skip_tokenizer_init": True,
        "dtype": "float16",
        "tp_size": WORLD,
        "max_total_tokens": 256,
        "max_running_requests": 4,
        "mem_fraction_static": 0.3,
        "log_level": "warning",
    }
    return ServerArgs(**settings | more)


def start(arguments: ServerArgs, rank: int, port: int) -> None:
    """Publish the configuration and build the groups: once in a process."""
    publish_for(arguments, rank)
    one_batch._init_process_global_configs()
    bootstrap.init_parallel_runtime(server_args=arguments, device="cpu", dist_port=port)


def publish_for(arguments: ServerArgs, rank: int) -> None:
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank, gpu_id=rank))


def load(arguments: ServerArgs, rank: int, port: int) -> ModelRunner:
    """Return a ModelRunner with random weights, the same whoever asks, ready for passes."""
    publish_for(arguments, rank)
    config = ModelConfig.from_server_args(arguments)
    bootstrap.init_layer_runtime(model_config=config)
    runner = ModelRunner(
        model_config=config,
        mem_fraction_static=arguments.mem_fraction_static,
        gpu_id=rank,
        nccl_port=port,
        server_args=arguments,
    )
    fill(runner.model, rank)
    runner.alloc_memory_pool()
    runner.init_attention_backends()
    runner.init_cuda_graphs()
    return runner


def fill(model: torch.nn.Module, rank: int) -> None:
    """Overwrite the weights: what is spread over ranks differs by rank, what is not does not."""
    for name, parameter in model.named_parameters():
        whole = "norm" in name or name.endswith("o_proj.bias")
        seed = zlib.crc32(f"{name}/{0 if whole else rank}".encode())
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        scale = 0.5 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter.data.copy_(values * scale + ("norm" in name))


@dataclass
class Passes:
    """What a prompt and some decoding steps gave: logits by pass, and who summed how often."""

    logits: list[torch.Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    all_reduces: int = 0


def run(runner: ModelRunner, prompt: int = PROMPT, steps: int = STEPS) -> Passes:
    """Prefill and decode greedily, counting the calls of the group's all-reduce."""
    passes, group = Passes(), get_parallel().tp_group
    native = group.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        passes.all_reduces += 1
        return native(tensor, *args, **kwargs)

    group.all_reduce = counted
    try:
        bench = one_batch._TorchBenchRunner(runner)
        bench.clear()
        ids = [[(7 * i + 3) % 1000 for i in range(prompt)]]
        requests = one_batch.prepare_synthetic_inputs_for_latency_test(1, prompt, ids)
        token, logits, batch = bench.extend(requests)
        passes.logits.append(logits.clone())
        for _ in range(steps):
            token, logits = bench.decode(token, batch)
            passes.logits.append(logits.clone())
            passes.tokens.append(int(token[0]))
    finally:
        del group.all_reduce
    return passes


def end() -> None:
    """Take down the groups, as SGLang does."""
    one_batch.destroy_model_parallel()
    one_batch.destroy_distributed_environment()
