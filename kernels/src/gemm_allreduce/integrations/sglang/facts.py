"""SGLang's configuration, model and names, read into the data of `conditions`.

Everything that the plug-in touches of SGLang is named here or checked by `check_names`, so that a
release in which a name moved gives one error that says which, before anything is changed.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from .conditions import OWNERS, PROJECTIONS, Server, Stage, StageKind

TESTED: Final = "0.5.23"
"""The release whose wheel the tests run against."""

SOURCES: Final = {
    "device": "device.device",
    "tp_size": "parallel.tp_size",
    "pp_size": "parallel.pp_size",
    "nnodes": "parallel.nnodes",
    "chunked_prefill_size": "schedule.chunked_prefill_size",
    "attn_dp_enabled": "parallel.attn_dp_enabled",
    "attn_cp_size": "parallel.attn_cp_size",
    "dcp_enabled": "parallel.dcp_enabled",
    "layernorm_sp": "parallel.enable_layernorm_sp",
    "lora": "lora.enable_lora",
    "deterministic": "exec.deterministic.enable_deterministic_inference",
    "rl_target": "exec.deterministic.rl_on_policy_target",
    "two_batch_overlap": "exec.overlap.enable_two_batch_overlap",
    "single_batch_overlap": "exec.overlap.enable_single_batch_overlap",
    "pdmux": "disagg.enable_pdmux",
    "moe_a2a_backend": "exec.moe.moe_a2a_backend",
    "elastic_ep_backend": "exec.moe.elastic_ep_backend",
    "quant_communications": "exec.comm.enable_quant_communications",
    "symmetric_memory": "exec.comm.enable_symm_mem",
    "torch_compile": "exec.graph.enable_torch_compile",
    "megakernel": "exec.kernel.enable_nvidia_megakernel",
}
"""Where each field of `Server` is in SGLang's published configuration: namespace, then path."""

_CONTEXT: Final = "sglang.srt.runtime_context"
_LAYERS: Final = "sglang.srt.layers"
_STAGE: Final = f"{_LAYERS}.layer_boundary.stage.StageBoundary"

NAMES: Final[dict[str, tuple[str, ...]]] = {
    f"{_STAGE}.prepare": ("hidden_states", "forward_batch"),
    f"{_STAGE}.finish": ("hidden_states", "forward_batch", "update_context"),
    f"{_STAGE}.exit": ("forward_batch", "update_context"),
    f"{_STAGE}.complete_now": ("hidden_states", "already_reduced", "update_context"),
    f"{_LAYERS}.layer_boundary.residual.bind_update": ("update", "forward_batch", "context"),
    f"{_LAYERS}.layer_boundary.residual.batch.stream_of": ("forward_batch",),
    f"{_LAYERS}.layer_boundary.residual.stream.ResidualStream.record": ("output", "update"),
    f"{_LAYERS}.layer_boundary.residual.add_norm.flashinfer_ar_fusion_applies": ("batch_size",),
    f"{_LAYERS}.layer_boundary.construction.StagePlan.variant_for": ("forward_batch",),
    f"{_LAYERS}.layer_boundary.construction.StagePlan.path_for": ("forward_batch",),
    f"{_LAYERS}.linear.RowParallelLinear.forward": ("input_", "forward_batch", "output_tensor"),
    f"{_LAYERS}.quantization.unquant.UnquantizedLinearMethod.apply": ("layer", "x", "bias"),
    f"{_CONTEXT}.get_parallel": (),
}
"""Functions that are called or replaced, and the parameters that the plug-in relies on."""


class MovedError(RuntimeError):
    """Names of SGLang that are not where this plug-in knows them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(
            f"SGLang {version()} does not have {', '.join(names)}; this plug-in was tested with "
            f"{TESTED}"
        )


def version() -> str:
    """Return SGLang's version, or `?`."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return "?"


def resolve(dotted: str) -> Any:
    """Return what a dotted name stands for.

    Raises: MovedError.
    """
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is not None and f"{dotted}.".startswith(f"{error.name}."):
                continue
            raise
        for part in parts[cut:]:
            if (found := getattr(found, part, None)) is None:
                raise MovedError([dotted])
        return found
    raise MovedError([dotted])


def check_names() -> None:
    """Look for every name that is called or replaced, and its parameters.

    Raises: MovedError that names all that moved.
    """
    moved = []
    for dotted, parameters in NAMES.items():
        try:
            having = inspect.signature(resolve(dotted)).parameters
        except MovedError:
            moved.append(dotted)
            continue
        moved += [f"{dotted}({name})" for name in parameters if name not in having]
    # Classes of models may be absent: then no model has them, and none is armed.
    if moved:
        raise MovedError(moved)


def read_server() -> Server:
    """Return SGLang's resolved configuration of this process.

    Raises: MovedError that names every entry that moved.
    """
    values, moved = {}, []
    for field, source in SOURCES.items():
        namespace, *path = source.split(".")
        try:
            value = resolve(f"{_CONTEXT}.get_{namespace}")()
            for part in path:
                value = getattr(value, part)
        except (AttributeError, MovedError):
            moved.append(f"the setting {source}")
            continue
        values[field] = value
    if moved:
        raise MovedError(moved)
    import torch

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    values["device"] = device_of(str(values["device"]), torch.version.hip, interpreted)
    return Server(**values)


def device_of(name: str, hip: str | None, interpreted: bool) -> str:
    """Return what kernels would run on: ``cuda``, ``interpreter``, or what they do not. Pure.

    SGLang and torch call an AMD GPU ``cuda`` too; a CPU serves only in Triton's interpreter.
    """
    kind = name.partition(":")[0]
    if kind == "cuda" and hip is not None:
        return "hip"
    return "interpreter" if kind == "cpu" and interpreted else kind


@dataclass(frozen=True)
class Found:
    """A stage of the model as data, and the modules it stands for."""

    stage: Stage
    projection: Any
    boundary: Any


def read_stages(model: Any) -> Iterator[Found]:
    """Yield the stages of a model's layers whose projection is in a known class.

    Raises: MovedError when a layer has them without the boundaries that sum them.
    """
    tp_group = resolve(f"{_CONTEXT}.get_parallel")().tp_group
    for name, layer in model.named_modules():
        for child_name, child in layer.named_children():
            kind = OWNERS.get(_full_name(type(child)))
            if kind is None:
                continue
            boundary = getattr(layer, f"{'attn' if kind == 'attention' else 'ffn'}_boundary", None)
            path = ".".join(part for part in (name, child_name, PROJECTIONS[kind]) if part)
            projection = getattr(child, PROJECTIONS[kind], None)
            if projection is None:
                raise MovedError([path])
            stage = _stage(path, kind, child, projection, boundary, tp_group)
            yield Found(stage, projection, boundary)


def _stage(
    name: str, kind: StageKind, owner: Any, projection: Any, boundary: Any, tp_group: Any
) -> Stage:
    weight = getattr(projection, "weight", None)
    shape = tuple(getattr(weight, "shape", ()))
    features, depth = shape if len(shape) == 2 else (0, 0)
    bias = getattr(projection, "bias", None)
    return Stage(
        name=name,
        kind=kind,
        owner=_full_name(type(owner)),
        linear=_full_name(type(projection)),
        method=_full_name(type(getattr(projection, "quant_method", None))),
        boundary="" if boundary is None else _full_name(type(boundary)),
        features=features,
        depth=depth,
        dtype=str(getattr(weight, "dtype", "")),
        bias_dtype=None if bias is None else str(bias.dtype),
        of_tp_group=getattr(projection, "tp_group", None) is tp_group,
        plain_call=bool(getattr(projection, "input_is_parallel", False))
        and not getattr(projection, "skip_bias_add", True)
        and not getattr(projection, "use_dp_attention_reduce", True)
        and not getattr(projection, "use_decode_attn_tp", True),
        sums=bool(getattr(projection, "reduce_results", True)),
        plain_exit=boundary is not None and _plain_exit(kind, boundary),
        untouched="forward" not in vars(projection)
        and not projection._forward_hooks
        and not projection._forward_pre_hooks,
    )


def _plain_exit(kind: StageKind, boundary: Any) -> bool:
    """Whether a boundary's contracts for a complete sum hold: see `boundary`."""
    try:
        plan, declared = boundary.plan, boundary.declaration
        custom = (
            declared.output_transform,
            declared.sum_impl,
            declared.row_transport,
            declared.prepared_from,
            plan.fusions,
        )
        if any(part is not None for part in custom) or declared.output_complete:
            return False
        path = next(p for variant, p in plan.paths.items() if variant.name == "ORDINARY")
        moves = path.output_move_completes_sum or path.returns_over_dp or path.writes_at_handoff
        if kind == "attention":
            return bool(plan.finishes_directly and path.output.always_partial) and not moves
        return path.output.group is not None and not moves
    except (AttributeError, StopIteration) as error:
        raise MovedError([f"StageBoundary's {error}"]) from error


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
