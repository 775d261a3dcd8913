"""Row-parallel layers of transformers on the fused operator: the style `gemm_allreduce_rowwise`.

Importing this module registers the style. A model that is loaded with it runs as with `rowwise`
until `attach` gives it a workspace, and in every call that the conditions leave out
(conditions.py). See docs/integrations.md. Tried with transformers 5.19.0 and 5.24.0.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from packaging.version import Version  # transformers needs it
from torch.distributed.tensor import DTensor

try:
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, RowwiseParallel
except ImportError as error:
    raise ImportError(
        "gemm_allreduce.integrations.transformers needs transformers with distributed/"
        f"tensor_parallel.py, as 5.19.0 has it, and accelerate: {error}"
    ) from error
if Version(version("transformers")) < Version("5.19"):
    # There a tp_plan takes the place of the model's own: with PLAN alone nothing splits what
    # comes before these layers, and the first call fails over sizes.
    raise ImportError(
        "gemm_allreduce.integrations.transformers needs transformers 5.19 or later, which puts a "
        f"tp_plan over the model's own; {version('transformers')} is installed"
    )

from ..custom_op import gemm_allreduce, register, unregister, workspace_of
from ..variants import ROW_BYTES
from .conditions import Call, Layer, Served, Tokens, by_reason, why_declined, why_native

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ..workspace import Workspace

STYLE: Final = "gemm_allreduce_rowwise"
PLAN: Final = {
    "model.layers.*.self_attn.o_proj": STYLE,
    "model.layers.*.mlp.down_proj": STYLE,
}
"""For DistributedConfig(tp_plan=...), where layers have these names, as in Qwen2 and Llama."""
FUSED: Final = "fused"
"""The counter of calls that were fused; the others are named by their reason."""

_SITE: Final = "_gemm_allreduce_site"
_LOG: Final = logging.getLogger("gemm_allreduce")


@dataclass(frozen=True)
class _Armed:
    """How a model's layers find their workspace, and for which calls.

    ``told``: reasons for the native path that the log has.
    """

    handle: str
    dtype: torch.dtype
    tokens: Tokens
    told: set[str] = field(default_factory=set, compare=False)


@dataclass
class _Site:
    """A layer that was loaded with the style; ``name`` is known once it was attached."""

    module: torch.nn.Module
    mesh: DeviceMesh
    native: Callable[..., torch.Tensor]
    name: str = ""
    armed: _Armed | None = None
    calls: Counter[str] = field(default_factory=Counter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, [..., N], summed over ranks, by one way or the other."""
        reason = self._why_native(x)
        if not torch.compiler.is_compiling():
            self._count(reason)
        if reason:
            return self.native(x)
        assert self.armed is not None
        weight, bias = _local(self.module.weight), _local(self.module.bias)
        rows = x.reshape(-1, x.shape[-1])
        y: torch.Tensor = gemm_allreduce(rows, weight, self.armed.handle, bias)
        return y.view(*x.shape[:-1], weight.shape[0])

    def _why_native(self, x: torch.Tensor) -> str:
        if self.armed is None:
            return "no workspace is attached"
        depth = _local(self.module.weight).shape[-1]
        call = Call(
            tokens=x.shape[:-1].numel(),
            dtype=str(x.dtype),
            # Some releases give every rank all columns, and split them in the native forward.
            local=not isinstance(x, DTensor) and x.shape[-1] == depth,
            grad=torch.is_grad_enabled(),
            autocast=torch.is_autocast_enabled(x.device.type),
            # A compiled call cannot ask: on a closed workspace it raises.
            open=torch.compiler.is_compiling() or not workspace_of(self.armed.handle).closed,
        )
        return why_native(call, str(self.armed.dtype), self.armed.tokens)

    def _count(self, reason: str) -> None:
        if reason and self.armed is not None and reason not in self.armed.told:
            self.armed.told.add(reason)
            _LOG.info("gemm_allreduce: a call of %s takes the native path: %s", self.name, reason)
        self.calls[reason or FUSED] += 1


class FusedRowwise(RowwiseParallel):  # type: ignore[misc]
    """`rowwise`, whose all-reduce is part of the matrix product where that can be."""

    def install_forward(self, module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
        """Install the native forward, and before it the choice between it and ours."""
        super().install_forward(module, mesh)
        site = _Site(module, mesh, module.forward)
        setattr(module, _SITE, site)
        module.forward = site.forward
        return module


ALL_PARALLEL_STYLES.register(STYLE, FusedRowwise())  # an instance: classes are not called


@dataclass(frozen=True)
class Attached:
    """What `attach` did: ``armed`` layers, and why each of the others was declined."""

    armed: tuple[str, ...]
    declined: dict[str, str]
    tokens: Tokens

    def __str__(self) -> str:
        """Return it as one line."""
        count = len(self.armed) + len(self.declined)
        line = f"{len(self.armed)} of {count} row-parallel layers are armed, for {self.tokens}"
        return "; ".join([line, *by_reason(self.declined.items())])


def attach(
    model: torch.nn.Module,
    workspace: Workspace,
    *,
    min_tokens: int = 1,
    max_tokens: int | None = None,
) -> Attached:
    """Give the layers of the style a workspace. Collective; after loading, before the first call.

    Loads the kernels that the layers need. The workspace is held weakly: keep it, and close it as
    ever; from then on the layers take the native path.

    Args:
        model: loaded with the style in its tp_plan.
        workspace: of the ranks that share the model, of its type and on its device.
        min_tokens, max_tokens: rows of a call (batch x sequence) that are fused.

    Raises:
        ValueError: no layer has the style; a range that is none; ranks that differ in what they
            would arm: on every rank alike, and nothing is armed.
    """
    sites = dict(_sites(model))
    served = _served(workspace)
    reasons = {name: why_declined(_layer(site), served) for name, site in sites.items()}
    said = workspace.transport.gather((reasons, min_tokens, max_tokens))
    if any(other != said[0] for other in said):
        raise ValueError(f"ranks differ in what they would arm, by rank: {said}")
    tokens = Tokens(min_tokens, max_tokens)
    if not sites:
        raise ValueError(f"no layer was loaded with the style {STYLE!r}; name it in tp_plan")
    declined = {name: reason for name, reason in reasons.items() if reason}
    armed = tuple(name for name in sites if name not in declined)
    for name in armed:
        _settle(sites[name].module)
    shapes = {tuple(_local(sites[name].module.weight).shape): None for name in armed}
    workspace.warmup((n, k) for n, k in shapes)
    detach(model)
    state = _Armed(register(workspace), workspace.dtype, tokens)
    for name in armed:
        sites[name].name, sites[name].armed = name, state
    done = Attached(armed, declined, tokens)
    _LOG.info("gemm_allreduce: %s", done)
    return done


def detach(model: torch.nn.Module) -> None:
    """Give all layers of the style back to the native path. Nothing happens to the workspace."""
    for _, site in _sites(model):
        if site.armed is not None:
            unregister(site.armed.handle)
            site.armed = None


def calls(model: torch.nn.Module) -> dict[str, Counter[str]]:
    """Return how often each layer of the style was called: fused, or native for which reason.

    Calls inside compiled code are not counted.
    """
    return {name: Counter(site.calls) for name, site in _sites(model)}


def _sites(model: torch.nn.Module) -> Iterator[tuple[str, _Site]]:
    for name, module in model.named_modules():
        if isinstance(site := getattr(module, _SITE, None), _Site):
            yield name, site


def _layer(site: _Site) -> Layer:
    module, kind = site.module, type(site.module)
    name, ranks = f"{kind.__module__}.{kind.__qualname__}", _ranks_of(_group_of(site.mesh))
    if getattr(module, "_hf_quantized_needs_local_tp", False):
        return Layer(f"quantized {name}", False, 0, 0, "", "", None, ranks)
    if kind is not torch.nn.Linear:
        return Layer(name, False, 0, 0, "", "", None, ranks)
    weight: Any = module.weight
    features, depth = weight.shape
    bias = None if module.bias is None else str(module.bias.dtype)
    device = str(_local(weight).device)
    return Layer(name, True, features, depth, str(weight.dtype), device, bias, ranks)


def _settle(module: torch.nn.Module) -> None:
    """Copy a weight, once, that kernels cannot load where it lies: in a mapped file, for one."""
    weight: Any = module.weight
    local = _local(weight)
    if local.is_contiguous() and local.data_ptr() % ROW_BYTES == 0:
        return
    local = local.clone(memory_format=torch.contiguous_format)
    if isinstance(weight, DTensor):
        local = DTensor.from_local(
            local,
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )
    module.weight = torch.nn.Parameter(local, requires_grad=weight.requires_grad)


def _served(workspace: Workspace) -> Served:
    group = getattr(workspace.transport, "group", None)
    return Served(
        dtype=str(workspace.dtype),
        device=str(workspace.device),
        max_features=workspace.layout.max_features,
        ranks=() if group is None else _ranks_of(group),
        virtual=workspace.transport.virtual,
    )


def _group_of(mesh: DeviceMesh) -> dist.ProcessGroup:
    return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")


def _ranks_of(group: dist.ProcessGroup) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group))


def _local(parameter: Any) -> Any:
    """Return this rank's part of a parameter. Anew at every call: loaders replace parameters."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
