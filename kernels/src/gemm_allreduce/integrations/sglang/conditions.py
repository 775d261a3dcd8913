"""What declines a server, a stage of its model, and a call. Data, and pure functions over it.

All ranks must decide alike, or those that call wait for those that do not: nothing here depends on
a rank, an address or the time. `arm` compares the verdicts of all ranks besides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..conditions import MULTIPLE, by_reason, why_outside

StageKind = Literal["attention", "ffn"]

OWNERS: Final[dict[str, StageKind]] = {
    "sglang.srt.models.qwen2.Qwen2Attention": "attention",
    "sglang.srt.models.qwen3.Qwen3Attention": "attention",
    "sglang.srt.models.llama.LlamaAttention": "attention",
    "sglang.srt.models.qwen2.Qwen2MLP": "ffn",
    "sglang.srt.models.llama.LlamaMLP": "ffn",
}
"""Classes whose projection may be fused: their forward was read, and nothing in it looks at the
unreduced output. Qwen3's MLP is Qwen2's."""

PROJECTIONS: Final[dict[StageKind, str]] = {"attention": "o_proj", "ffn": "down_proj"}
LINEAR: Final = "sglang.srt.layers.linear.RowParallelLinear"
METHOD: Final = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod"
BOUNDARY: Final = "sglang.srt.layers.layer_boundary.stage.StageBoundary"

WORLD_SIZES: Final = (2, 4, 8)
DTYPES: Final = ("torch.bfloat16", "torch.float16")


@dataclass(frozen=True)
class Server:
    """SGLang's resolved configuration, as far as it matters. `facts.SOURCES` says where from."""

    device: str
    tp_size: int
    pp_size: int
    nnodes: int
    chunked_prefill_size: int | None
    attn_dp_enabled: bool
    attn_cp_size: int
    dcp_enabled: bool
    layernorm_sp: bool
    lora: bool
    deterministic: bool
    rl_target: str | None
    two_batch_overlap: bool
    single_batch_overlap: bool
    pdmux: bool
    moe_a2a_backend: str
    elastic_ep_backend: str | None
    quant_communications: bool
    symmetric_memory: bool
    torch_compile: bool
    megakernel: bool


@dataclass(frozen=True)
class Exclusion:
    """A kind of server that keeps the native path, and why."""

    reason: str
    excludes: Callable[[Server], bool]


EXCLUSIONS: Final = (
    Exclusion(
        "the device is no NVIDIA GPU, nor a CPU in Triton's interpreter",
        lambda s: s.device not in ("cuda", "interpreter"),
    ),
    Exclusion(
        f"tensor parallelism is not over {', '.join(map(str, WORLD_SIZES))} ranks",
        lambda s: s.tp_size not in WORLD_SIZES,
    ),
    Exclusion("pipeline parallelism is untested", lambda s: s.pp_size != 1),
    Exclusion("the ranks are on several hosts", lambda s: s.nnodes != 1),
    Exclusion("attention is data parallel", lambda s: s.attn_dp_enabled),
    Exclusion("attention is context parallel", lambda s: s.attn_cp_size != 1 or s.dcp_enabled),
    Exclusion("norms are sequence parallel", lambda s: s.layernorm_sp),
    Exclusion("LoRA adapters are added to unreduced outputs", lambda s: s.lora),
    Exclusion(
        "deterministic inference is asked for, and a row's bits may depend on M",
        lambda s: s.deterministic or s.rl_target is not None,
    ),
    Exclusion(
        "two batches overlap, each on a stream of its own",
        lambda s: s.two_batch_overlap or s.single_batch_overlap or s.pdmux,
    ),
    Exclusion("a MoE all-to-all backend is in use", lambda s: s.moe_a2a_backend != "none"),
    Exclusion("elastic expert parallelism is on", lambda s: s.elastic_ep_backend is not None),
    Exclusion("all-reduces are quantized", lambda s: s.quant_communications),
    Exclusion("outputs are kept in NCCL's symmetric memory", lambda s: s.symmetric_memory),
    Exclusion("torch.compile is on", lambda s: s.torch_compile),
    Exclusion("a megakernel replaces the layers", lambda s: s.megakernel),
)


@dataclass(frozen=True)
class Stage:
    """A projection, and the stage boundary that sums its output.

    Attributes:
        name: of the projection in the model, like ``model.layers.0.self_attn.o_proj``.
        owner, linear, method, boundary: full names of the classes of the module that holds the
            projection, of the projection, of its quantization method, of the boundary.
        features, depth: N, and K of one rank.
        dtype, bias_dtype: torch types as text; bias_dtype None where there is no bias.
        of_tp_group: the weight is spread over the tensor-parallel group.
        plain_call: the input comes spread, and the bias is added by the projection.
        sums: reduce_results is set: the projection sums by itself.
        plain_exit: the boundary sums the output over the tensor-parallel group on the rows it
            is on, without a transform, implementation or fusion of its own.
        untouched: nothing else has replaced this instance's forward or hangs on it as a hook.
    """

    name: str
    kind: StageKind
    owner: str
    linear: str
    method: str
    boundary: str
    features: int
    depth: int
    dtype: str
    bias_dtype: str | None
    of_tp_group: bool
    plain_call: bool
    sums: bool
    plain_exit: bool
    untouched: bool


@dataclass(frozen=True)
class Plan:
    """The verdict: equal on all ranks, or nothing is armed.

    Attributes:
        server: why the whole server keeps the native path.
        stages: what is to be armed; declined: (name, reason) of the others.
        least, most: rows of a fused call.
    """

    server: tuple[str, ...]
    stages: tuple[Stage, ...]
    declined: tuple[tuple[str, str], ...]
    least: int
    most: int

    @property
    def arms(self) -> bool:
        """Whether there is something to arm."""
        return not self.server and bool(self.stages)

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Return the different (N, K of one rank)."""
        return sorted({(s.features, s.depth) for s in self.stages})

    def why_not(self) -> str:
        """Return what was declined and why, in words; empty if nothing was."""
        told = by_reason(self.declined)
        if not self.stages and not self.declined and not self.server:
            told.append("the model has no layer of a known kind")
        return "; ".join([*self.server, *told])


def decide(server: Server, stages: Sequence[Stage], least: int, most: int) -> Plan:
    """Return what is armed. Pure."""
    reasons = tuple(e.reason for e in EXCLUSIONS if e.excludes(server))
    verdicts = [(stage, why_declined(stage)) for stage in stages]
    declined = [(stage.name, why) for stage, why in verdicts if why]
    taken = [stage for stage, why in verdicts if not why]
    dtypes = sorted({s.dtype for s in taken})
    if len(dtypes) > 1:  # a workspace has one type
        declined += [(s.name, f"types differ: {', '.join(dtypes)}") for s in taken]
        taken = []
    return Plan(reasons, tuple(taken), tuple(declined), least, most)


def why_declined(stage: Stage) -> str:
    """Return why a stage keeps the native path, or nothing."""
    told = (
        (OWNERS.get(stage.owner) != stage.kind, f"{stage.owner} is not in the list of owners"),
        (stage.linear != LINEAR, f"it is a {stage.linear}"),
        (stage.method != METHOD, f"its weight is for {stage.method}"),
        (stage.boundary != BOUNDARY, f"its boundary is a {stage.boundary or 'none'}"),
        (not stage.of_tp_group, "its weight is not spread over the tensor-parallel group"),
        (not stage.plain_call, "its input is not spread, or its bias is added elsewhere"),
        (stage.sums, "it sums its output itself"),
        (not stage.plain_exit, "its boundary does more than a sum over the group"),
        (not stage.untouched, "something else has hooked it"),
        (stage.dtype not in DTYPES, f"its weight is {stage.dtype}"),
        (stage.bias_dtype not in (None, stage.dtype), f"its bias is {stage.bias_dtype}"),
        (stage.features % MULTIPLE != 0, f"N is {stage.features}, no multiple of {MULTIPLE}"),
        (stage.depth % MULTIPLE != 0, f"K of a rank is {stage.depth}, no multiple of {MULTIPLE}"),
    )
    return next((reason for declines, reason in told if declines), "")


@dataclass(frozen=True)
class Call:
    """One stage of one forward pass.

    Attributes:
        rows: M of the stage's input; None if that is no plain matrix.
        variant: SGLang's name of the batch's row layout.
        compiling: torch.compile is tracing.
        fused_norm: SGLang's own fused all-reduce and norm takes a batch of this size.
    """

    rows: int | None
    variant: str
    compiling: bool
    fused_norm: bool


def why_native(call: Call, least: int, most: int) -> str:
    """Return why a call of an armed stage takes the native path, or nothing: a counter's name."""
    if call.compiling:
        return "torch.compile is tracing"
    if call.variant != "ORDINARY":
        return f"a batch of the {call.variant} kind"
    if call.rows is None:
        return "the input is quantized"
    if call.rows == 0:
        return "no rows"
    if outside := why_outside(call.rows, least, most):
        return outside
    if call.fused_norm:
        return "SGLang's own fused all-reduce takes it"
    return ""
