"""Are whole models right, whose row-parallel layers are the fused operator?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemm_allreduce import Workspace
from smoke_tests.checks.registry import check
from smoke_tests.ranks import TORCH_DTYPES, Ranks

LIMIT_S = 180.0


@dataclass(frozen=True)
class Scenario:
    """So many prompts, of so many tokens, and so many tokens that are decoded after the first."""

    batch: int
    length: int
    decoded: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"batch {self.batch}"

    def prompts(self, vocabulary: int) -> torch.Tensor:
        """Return the prompts, [batch, length]: the same in every process."""
        source = torch.Generator().manual_seed(100 + self.batch)
        return torch.randint(0, vocabulary, (self.batch, self.length), generator=source)


INTERPRETED = (Scenario(1, 5, 2), Scenario(16, 3, 1))
INTERPRETED_WIDE = (Scenario(16, 3, 1),)
"""For more than two ranks, which take long on few cores: one model, many prompts."""
ON_GPUS = (Scenario(1, 33, 4), Scenario(16, 24, 4))


@check(
    "cpu",
    "nvshmem",
    least_ranks=2,
    needs="transformers",
    time_limit_s=LIMIT_S,
    interpreted_ranks=(2, 4),
)
def whole_models_agree_layer_by_layer(ranks: Ranks) -> str:
    """A Qwen2, and a Llama with a bias of o_proj, against one process in float32 and natively."""
    from smoke_tests.models.tiny import llama, qwen2

    w = ranks.world_size
    if ranks.kind == "cpu" and w > 2:
        return _model(ranks, qwen2(w), INTERPRETED_WIDE)
    scenarios = INTERPRETED if ranks.kind == "cpu" else ON_GPUS
    said = [_model(ranks, llama(w), scenarios[:1]), _model(ranks, qwen2(w), scenarios)]
    return "; ".join(said)


def _model(ranks: Ranks, tiny: Any, scenarios: tuple[Scenario, ...]) -> str:
    from gemm_allreduce.integrations import transformers as fused
    from smoke_tests.models.tiny import load_split, load_whole

    dtype = TORCH_DTYPES[ranks.dtypes[0]]
    with _checkpoint(ranks, tiny, dtype) as folder:
        whole = load_whole(tiny, folder)

        def load(plan: dict[str, str]) -> Any:
            with ranks.step(f"load {tiny.name}"):
                return load_split(tiny, folder, dtype, ranks.world_size, ranks.device, plan)

        native, split = load({}), load(fused.PLAN)
        ranks.gather(None)  # the folder goes once all have loaded
    most = max(s.batch * s.length for s in scenarios)
    with ranks.workspace(max_tokens=most, max_features=tiny.hidden) as workspace:
        with ranks.step("attach"):
            done = fused.attach(split, workspace)
        assert not done.declined, str(done)
        said = [_scenario(ranks, s, whole, native, split, workspace) for s in scenarios]
        passes = sum(s.decoded + 1 for s in scenarios)
        counted = fused.calls(split)
        assert counted == {name: {"fused": passes} for name in done.armed}, counted
        fused.detach(split)
    return f"{tiny.name}: {len(done.armed)} layers, {', '.join(said)}"


@contextmanager
def _checkpoint(ranks: Ranks, tiny: Any, dtype: torch.dtype) -> Iterator[Path]:
    """A folder with the model, the same for all ranks; written by the first, as transformers does.

    In the ranks' own folder, which goes with them also when they are killed.
    """
    from smoke_tests.models.tiny import save

    with ExitStack() as stack:
        folder = ""
        if ranks.rank == 0:
            made = tempfile.TemporaryDirectory(prefix="model-", dir=ranks.folder or None)
            folder = stack.enter_context(made)
            save(tiny, dtype, Path(folder))
        yield Path(ranks.gather(folder)[0])


def _scenario(
    ranks: Ranks, scenario: Scenario, whole: Any, native: Any, split: Any, workspace: Workspace
) -> str:
    """Run all three and compare; return what the report says.

    Raises: AssertionError that names the layers, the first one first.
    """
    from smoke_tests.models import compare
    from smoke_tests.models.roundings import reference
    from smoke_tests.models.run import Product, run
    from smoke_tests.reference import fingerprint

    prompts, count = scenario.prompts(whole.config.vocab_size), scenario.decoded
    with ranks.step(f"{scenario.name} in float32"):
        exact = reference(whole, prompts, count, ranks.world_size)
    tokens = [step.greedy for step in exact.steps]
    with _whole_reductions(), torch.no_grad(), ranks.step(f"{scenario.name} natively"):
        plain = run(native, prompts, count, tokens)
    before = workspace.epochs()[0]
    with torch.no_grad(), ranks.step(f"{scenario.name} fused"):
        ours = run(split, prompts, count, tokens)
    launched, calls = workspace.epochs()[0] - before, sum(len(s.products) for s in ours)
    assert launched == calls, f"{launched} launches for {calls} calls of row-parallel layers"
    dtype = workspace.dtype
    findings, worst = list[str](), 0.0
    weights = _weights(whole, ranks.world_size)
    for step in ours:
        mine = [Product(p.name, p.x.cpu(), p.y.cpu()) for p in step.products]
        alone = compare.products(step.name, ranks.gather(mine), weights)
        findings += alone.findings
        worst = max(worst, alone.worst)
    bits = [fingerprint(t) for s in ours for t in (*s.hidden.values(), s.logits)]
    if any(other != bits for other in ranks.gather(bits)):
        findings.append("ranks differ in the bits of hidden states or logits")
    by_layer = compare.with_reference("fused", ours, exact, dtype)
    of_native = compare.with_reference("native", plain, exact, dtype)
    between = compare.with_native(ours, plain, exact, dtype)
    greedy, decided, of = compare.greedy_tokens("fused", ours, exact, dtype)
    native_greedy, _, _ = compare.greedy_tokens("native", plain, exact, dtype)
    for found in (by_layer, between, of_native, greedy, native_greedy):
        findings += found.findings
    shown = [f"{scenario.name}, {finding}" for finding in findings[:8]]
    more = f"\n... and {len(findings) - 8} more" if len(findings) > 8 else ""
    assert not findings, "\n".join(shown) + more
    return (
        f"{scenario.name}: products at most {worst:.2f} of their bound, hidden states and logits "
        f"{by_layer.worst:.2f} of theirs (native {of_native.worst:.2f}), tokens equal, "
        f"{decided} of {of} of them decided"
    )


def _weights(whole: Any, world_size: int) -> Any:
    """Return what each rank must have of the row-parallel layers: cut from the whole model."""
    from smoke_tests.models.compare import Weights
    from smoke_tests.models.run import projections

    return {
        name: Weights(
            torch.stack(layer.weight.detach().chunk(world_size, 1)),
            None if layer.bias is None else layer.bias.detach(),
        )
        for name, layer in projections(whole).items()
    }


@contextmanager
def _whole_reductions() -> Iterator[None]:
    """Let cuBLAS sum in float32: the bound counts one rounding of a product, not of its parts."""
    settings = torch.backends.cuda.matmul
    before = (
        settings.allow_bf16_reduced_precision_reduction,
        settings.allow_fp16_reduced_precision_reduction,
    )
    settings.allow_bf16_reduced_precision_reduction = False
    settings.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        (
            settings.allow_bf16_reduced_precision_reduction,
            settings.allow_fp16_reduced_precision_reduction,
        ) = before
