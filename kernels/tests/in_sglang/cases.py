"""What the plug-in does inside SGLang: every `case_` runs on both ranks, in this order."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import configs
import tiny
import torch
import torch.distributed as dist
from sglang.srt import runtime_context
from sglang.srt.layers.layer_boundary.stage import StageBoundary
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.plugins import hook_registry, load_plugins

from gemm_allreduce.integrations.sglang import arm as arming
from gemm_allreduce.integrations.sglang import facts, plugin
from gemm_allreduce.integrations.sglang.boundary import HalfAppliedError, boundary_class
from gemm_allreduce.integrations.sglang.conditions import EXCLUSIONS
from gemm_allreduce.integrations.sglang.counters import Counters
from gemm_allreduce.integrations.sglang.settings import Settings

PASSES = 1 + configs.STEPS
NATIVE_SUMS = PASSES * (2 * configs.LAYERS + 1)  # o_proj and down_proj of each layer; embeddings
FUSED_SUMS = PASSES
STAGES = 2 * configs.LAYERS


@dataclass
class Here:
    """This rank, and what earlier cases left."""

    rank: int
    port: int
    folder: Path
    native: dict[str, tiny.Passes] = field(default_factory=dict)

    def load(self, name: str) -> ModelRunner:
        return tiny.load(tiny.server_args(self.folder, name), self.rank, self.port)

    def unarmed(self, name: str = "qwen2") -> ModelRunner:
        settings, plugin.STATE.settings = plugin.STATE.settings, None
        try:
            return self.load(name)
        finally:
            plugin.STATE.settings = settings


def stages(runner: ModelRunner) -> list[facts.Found]:
    return list(facts.read_stages(runner.model))


def require_untouched(runner: ModelRunner) -> None:
    for found in stages(runner):
        assert type(found.boundary) is StageBoundary, found.stage.name
        assert "fused" not in vars(found.boundary) and "forward" not in vars(found.projection)


def require_like(passes: tiny.Passes, native: tiny.Passes) -> None:
    """The same but for the order of float32 sums within a product of at most 64 terms."""
    for ours, theirs in zip(passes.logits, native.logits, strict=True):
        bound = 2.0**-7 * theirs.abs().max().item()
        difference = (ours - theirs).abs().max().item()
        assert difference <= bound, f"differs by {difference}, allowed {bound}"
    assert passes.tokens == native.tokens


def require_same_on_all_ranks(passes: tiny.Passes) -> None:
    mine = [step.contiguous().view(torch.uint8).numpy().tobytes() for step in passes.logits]
    theirs: list[Any] = [None] * configs.WORLD
    dist.all_gather_object(theirs, mine)
    assert all(other == mine for other in theirs), "the ranks' bits differ"


@contextmanager
def set_to(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def log_of(name: str = "gemm_allreduce") -> Iterator[list[str]]:
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(f"{record.levelname} {record.getMessage()}")

    logger, listener = logging.getLogger(name), Listener()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    try:
        yield told
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def require_raises(error: type[Exception], words: str, attempt: Callable[[], object]) -> None:
    try:
        attempt()
    except error as caught:
        assert words in str(caught), caught
    else:
        raise AssertionError(f"not raised: {words}")


def case_native_models_sum_after_each_projection(here: Here) -> None:
    """Before plug-ins are loaded: what the others are compared with."""
    for name in configs.MODELS:
        passes = here.native[name] = tiny.run(here.load(name))
        assert passes.all_reduces == NATIVE_SUMS, passes.all_reduces


def case_sglang_finds_the_plugin(here: Here) -> None:
    assert not hasattr(ModelRunner.initialize, "__wrapped__")
    load_plugins()
    assert ModelRunner.initialize.__wrapped__ is not None
    assert plugin.STATE.problem == "" and plugin.STATE.settings == Settings()


def _case_fused(here: Here, name: str) -> None:
    assert plugin.STATE.counters is not None
    plugin.STATE.counters.fused.clear()
    with log_of() as told:
        runner = here.load(name)
    outcome = plugin.STATE.outcome
    assert outcome is not None and len(outcome.armed) == STAGES and outcome.why_not == ""
    assert outcome.symmetric_bytes > 0
    passes = tiny.run(runner)
    assert passes.all_reduces == FUSED_SUMS, f"{passes.all_reduces} sums are left"
    of_kind = PASSES * configs.LAYERS
    assert plugin.STATE.counters.fused == {"attention": of_kind, "ffn": of_kind}
    assert not plugin.STATE.counters.native
    require_like(passes, here.native[name])
    require_same_on_all_ranks(passes)
    lines = [line for line in told if "armed" in line]
    assert len(lines) == (here.rank == 0), told
    if lines:
        assert "armed for 3 down_proj, 3 o_proj on 2 ranks, 1 to " in lines[0], lines
        assert lines[0].startswith("INFO") and lines[0].endswith("; declined: nothing")


def case_qwen2_is_fused(here: Here) -> None:
    _case_fused(here, "qwen2")


def case_qwen3_is_fused(here: Here) -> None:
    _case_fused(here, "qwen3")


def case_llama_with_bias_is_fused(here: Here) -> None:
    _case_fused(here, "llama")


def hidden_states(runner: ModelRunner) -> list[list[torch.Tensor]]:
    """By pass: the input of every layer, as EAGLE3 captures it, and the last norm's output."""
    inner, seen = runner.model.model, []
    native = inner.forward

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        hidden, captured = native(*args, **kwargs)
        seen.append([*(layer.clone() for layer in captured), hidden.clone()])
        return hidden

    inner.layers_to_capture, inner.forward = list(range(configs.LAYERS)), watched
    tiny.run(runner)
    return seen


def case_every_layers_hidden_states_are_like_the_native_ones(here: Here) -> None:
    ours, theirs = hidden_states(here.load("qwen2")), hidden_states(here.unarmed())
    assert len(ours) == len(theirs) == PASSES
    for number, (fused, native) in enumerate(zip(ours, theirs, strict=True)):
        assert len(fused) == len(native) == configs.LAYERS + 1
        assert torch.equal(fused[0], native[0]), "the first layer's input is the embedding"
        for layer, (one, other) in enumerate(zip(fused, native, strict=True)):
            difference = (one - other).abs().max().item()
            bound = 2.0**-7 * other.abs().max().item()
            assert difference <= bound, f"pass {number}, layer {layer}: {difference} over {bound}"


def case_the_workspace_comes_before_the_kv_cache(here: Here) -> None:
    """SGLang measures free memory in alloc_memory_pool; the workspace is there by then."""
    seen: list[tuple[bool, bool]] = []
    native = ModelRunner.alloc_memory_pool

    def watched(runner: ModelRunner, *args: Any, **kwargs: Any) -> Any:
        armed = all(type(found.boundary) is boundary_class() for found in stages(runner))
        seen.append((armed, getattr(runner, "token_to_kv_pool", None) is None))
        return native(runner, *args, **kwargs)

    with set_to(ModelRunner, "alloc_memory_pool", watched):
        here.load("qwen2")
    assert seen == [(True, True)], seen


def case_weights_are_read_at_every_call(here: Here) -> None:
    runner = here.load("qwen2")
    for found in stages(runner):
        found.projection.weight = torch.nn.Parameter(
            found.projection.weight.data * 0, requires_grad=False
        )
    ours = tiny.run(runner)
    plain = here.unarmed()
    for found in stages(plain):
        found.projection.weight.data.zero_()
    require_like(ours, tiny.run(plain))


def case_a_cpu_without_the_interpreter_declines(here: Here) -> None:
    runner = here.unarmed()
    before = os.environ.pop("TRITON_INTERPRET")
    try:
        outcome = arming.arm(runner, Settings(), Counters())
    finally:
        os.environ["TRITON_INTERPRET"] = before
    words = "the device is no NVIDIA GPU, nor a CPU in Triton's interpreter"
    assert outcome == arming.Outcome((), words)


def case_a_draft_model_is_left_alone(here: Here) -> None:
    runner, before = here.unarmed(), plugin.STATE.outcome
    with set_to(runner, "is_draft_worker", True):
        plugin.after_initialize(None, runner)
    require_untouched(runner)
    assert plugin.STATE.outcome is before


SWITCHES: dict[str, tuple[str, object]] = {
    "chunked prompts of any size": ("schedule.chunked_prefill_size", 16),
    "LoRA": ("lora.enable_lora", True),
    "deterministic": ("exec.deterministic.enable_deterministic_inference", True),
    "deterministic for RL": ("exec.deterministic.rl_on_policy_target", "fsdp"),
    "two batches": ("exec.overlap.enable_two_batch_overlap", True),
    "single batch": ("exec.overlap.enable_single_batch_overlap", True),
    "pdmux": ("disagg.enable_pdmux", True),
    "MoE": ("exec.moe.moe_a2a_backend", "deepep"),
    "elastic": ("exec.moe.elastic_ep_backend", "mooncake"),
    "quantized": ("exec.comm.enable_quant_communications", True),
    "symmetric": ("exec.comm.enable_symm_mem", True),
    "compile": ("exec.graph.enable_torch_compile", True),
    "megakernel": ("exec.kernel.enable_nvidia_megakernel", True),
    "sequence parallel": ("parallel.enable_layernorm_sp", True),
    "device": ("device.device", "xpu"),
}


def case_every_switch_of_sglang_declines(here: Here) -> None:
    """Each in SGLang's own published configuration; reasons, and a model that stays as it is."""
    runner = here.unarmed()
    reasons = set()
    for name, (source, value) in SWITCHES.items():
        namespace, *path = source.split(".")
        bag = getattr(runtime_context, f"get_{namespace}")()
        for part in path[:-1]:
            bag = getattr(bag, part)
        with bag.override(**{path[-1]: value}):
            outcome = arming.arm(runner, Settings(), Counters())
        if name == "chunked prompts of any size":
            assert len(outcome.armed) == STAGES and outcome.most == 16, outcome
            runner = here.unarmed()
            continue
        assert outcome.armed == (), name
        reason = outcome.why_not
        assert reason in {e.reason for e in EXCLUSIONS}, f"{name}: {reason}"
        reasons.add(reason)
        require_untouched(runner)
    untested = {e.reason for e in EXCLUSIONS} - reasons
    assert untested == {
        # Other sizes of the world than this one; test_sglang_conditions.py has them.
        "tensor parallelism is not over 2, 4, 8 ranks",
        "pipeline parallelism is untested",
        "the ranks are on several hosts",
        "attention is data parallel",
        "attention is context parallel",
    }, untested
    require_like(tiny.run(runner), here.native["qwen2"])


class OtherMethod(UnquantizedLinearMethod):
    """Stands for a quantization method."""


def case_a_stage_declines_alone(here: Here) -> None:
    """The first layer's o_proj in another way each time; the five others are fused."""
    for words, change in (
        ("OtherMethod", lambda p: setattr(p, "quant_method", OtherMethod())),
        ("it sums its output itself", lambda p: setattr(p, "reduce_results", True)),
        ("something else has hooked it", lambda p: p.register_forward_hook(lambda *_: None)),
        ("not spread over the tensor-parallel", lambda p: setattr(p, "tp_group", object())),
        ("its bias is added elsewhere", lambda p: setattr(p, "skip_bias_add", True)),
    ):
        runner, counters = here.unarmed(), Counters()
        change(stages(runner)[0].projection)
        outcome = arming.arm(runner, Settings(), counters)
        assert len(outcome.armed) == STAGES - 1, (words, outcome)
        assert outcome.why_not.startswith("model.layers.0.self_attn.o_proj: "), outcome
        assert words in outcome.why_not, (words, outcome.why_not)
        if words == "OtherMethod":  # computes what its base does
            passes = tiny.run(runner)
            assert passes.all_reduces == FUSED_SUMS + PASSES
            require_like(passes, here.native["qwen2"])


def case_calls_outside_the_range_are_native(here: Here) -> None:
    runner = here.unarmed()
    counters = Counters()
    outcome = arming.arm(runner, Settings(most=configs.PROMPT - 1), counters)
    assert outcome.most == configs.PROMPT - 1
    passes = tiny.run(runner)
    assert passes.all_reduces == FUSED_SUMS + STAGES
    assert counters.native == {f"more than {configs.PROMPT - 1} rows": STAGES}
    require_like(passes, here.native["qwen2"])
    runner, counters = here.unarmed(), Counters()
    arming.arm(runner, Settings(least=2), counters)
    passes = tiny.run(runner)
    assert counters.native == {"fewer than 2 rows": STAGES * configs.STEPS}
    assert counters.fused == {"attention": configs.LAYERS, "ffn": configs.LAYERS}
    require_like(passes, here.native["qwen2"])


def case_sglangs_own_fusion_goes_first(here: Here) -> None:
    runner, counters = here.load("qwen2"), plugin.STATE.counters
    assert counters is not None
    counters.fused.clear(), counters.native.clear()
    for found in stages(runner):
        found.boundary.fused._fused_norm = lambda rows: rows == 1
    passes = tiny.run(runner)
    assert counters.native == {"SGLang's own fused all-reduce takes it": STAGES * configs.STEPS}
    require_like(passes, here.native["qwen2"])
    counters.native.clear()


def case_a_half_applied_hook_raises(here: Here) -> None:
    """A lost forward, an output that changed on the way, a stage that ends another way."""
    runner = here.load("qwen2")
    found = stages(runner)[2]
    lost = vars(found.projection).pop("forward")
    words = "model.layers.1.self_attn.o_proj was to be fused, but its forward was not called"
    require_raises(HalfAppliedError, words, lambda: tiny.run(runner))
    found.projection.forward = lambda x, *a, **k: ((y := lost(x, *a, **k))[0] + 0, y[1])
    require_raises(HalfAppliedError, "was changed before", lambda: tiny.run(runner))
    found.projection.forward = lambda x, *a, **k: lost(x[:0], *a, **k)
    require_raises(HalfAppliedError, "expected [5, 32] alone", lambda: tiny.run(runner))
    fused = found.boundary.fused
    fused.begin(torch.zeros(3, 64), "ORDINARY")
    require_raises(HalfAppliedError, "exit", lambda: found.boundary.exit(None))
    fused.begin(torch.zeros(3, 64), "ORDINARY")
    again = lambda: found.boundary.complete_now(None, None)  # noqa: E731
    require_raises(HalfAppliedError, "complete_now would sum it again", again)


def case_stages_that_cannot_be_changed_are_as_before(here: Here) -> None:
    runner = here.unarmed()
    last = stages(runner)[-1].projection

    class Stubborn(type(last)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: object) -> None:
            if name != "forward":
                super().__setattr__(name, value)

    found = stages(runner)
    last.__class__ = Stubborn
    with set_to(arming, "read_stages", lambda _model: found):
        words = "the forward of model.layers.2.mlp.down_proj was not changed"
        attempt = lambda: arming.arm(runner, Settings(), Counters())  # noqa: E731
        require_raises(HalfAppliedError, words, attempt)
    require_untouched(runner)
    require_like(tiny.run(runner), here.native["qwen2"])


def case_ranks_that_differ_arm_nothing(here: Here) -> None:
    runner = here.unarmed()
    outcome = arming.arm(runner, Settings(most=8 + here.rank), Counters())
    assert outcome == arming.Outcome((), "the ranks differ in what they would fuse")
    require_untouched(runner)
    settings = Settings(least=9000) if here.rank else Settings()
    outcome = arming.arm(runner, settings, Counters())
    assert outcome.why_not.startswith("rank 1: SGL_TP_OVERLAP_MIN_TOKENS is 9000"), outcome
    require_untouched(runner)

    def failing(_model: object) -> list[facts.Found]:
        raise KeyError("of one rank")

    with set_to(arming, "read_stages", failing if here.rank == 0 else facts.read_stages):
        outcome = arming.arm(runner, Settings(), Counters())
    assert outcome.why_not == "rank 0: KeyError: 'of one rank'", outcome
    require_untouched(runner)


def case_no_workspace_means_the_native_path(here: Here) -> None:
    runner = here.unarmed()
    outcome = arming.arm(runner, Settings(most=2**30), Counters())
    assert outcome.armed == () and outcome.why_not.startswith("no workspace: "), outcome
    require_untouched(runner)
    require_like(tiny.run(runner), here.native["qwen2"])


def case_names_that_moved(here: Here) -> None:
    """One message that names them all, and the native path."""
    runner = here.unarmed()
    complete_now = StageBoundary.complete_now
    del StageBoundary.complete_now
    try:
        sources = facts.SOURCES | {"lora": "lora.enable_adapters"}
        with log_of() as told, set_to(facts, "SOURCES", sources):
            plugin.after_initialize(None, runner)
    finally:
        StageBoundary.complete_now = complete_now
    require_untouched(runner)
    moved = "sglang.srt.layers.layer_boundary.stage.StageBoundary.complete_now"
    words = (
        "WARNING SGL_USE_TP_OVERLAP=1, but nothing is fused: SGLang 0.5.23 does not have "
        f"{moved}; this plug-in was tested with 0.5.23"
    )
    assert told == [words][: here.rank == 0], told
    with set_to(facts, "SOURCES", sources):
        outcome = arming.arm(runner, Settings(), Counters())
    assert "does not have the setting lora.enable_adapters;" in outcome.why_not
    native, renamed = StageBoundary.finish, lambda self, hidden, forward_batch: None
    with set_to(StageBoundary, "finish", renamed):
        outcome = arming.arm(runner, Settings(), Counters())
    assert StageBoundary.finish is native
    for name in ("hidden_states", "update_context"):
        assert f"StageBoundary.finish({name})" in outcome.why_not, outcome
    require_like(tiny.run(runner), here.native["qwen2"])


def case_what_sglang_swallows_is_told(here: Here) -> None:
    """SGLang goes on without the hook; the plug-in says what that means."""
    registry = hook_registry.HookRegistry
    state = dataclasses.replace(plugin.STATE)
    registry.reset()
    plugin.STATE.counters = None

    def broken(target: str, hooks: object) -> None:
        raise TypeError("a plug-in that was here before")

    native = registry.__dict__["_apply_target"]
    registry._apply_target = broken
    try:
        with log_of() as told, log_of("sglang.srt.plugins") as theirs:
            plugin.register()
            registry.apply_hooks()
    finally:
        registry._apply_target = native
        vars(plugin.STATE).update(vars(state))
    assert any("Failed to apply hooks" in line for line in theirs)
    words = "this process keeps the native path: SGLang swallowed: Failed to apply hooks to "
    assert any(words in line and "a plug-in that was here" in line for line in told), told


def case_a_hook_target_that_moved(here: Here) -> None:
    state = dataclasses.replace(plugin.STATE)
    registered = dict(hook_registry.HookRegistry._hooks)
    plugin.STATE.counters = None
    moved = plugin.HOOK.replace("initialize", "set_up")
    with log_of() as told, set_to(plugin, "HOOK", moved):
        plugin.register()
    problem = plugin.STATE.problem
    vars(plugin.STATE).update(vars(state))
    assert "SGLang 0.5.23 does not have sglang.srt.model_executor.model_runner." in problem
    assert problem in told[0] and told[0].startswith("ERROR") and len(told) == 1, told
    assert dict(hook_registry.HookRegistry._hooks) == registered
