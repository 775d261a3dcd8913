"""Arms the stages of a loaded model: all that the plan names, on all ranks, or none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ...bundle import CubinError
from ...workspace import Workspace
from .boundary import FusedStage, HalfAppliedError, boundary_class
from .conditions import Plan, decide
from .counters import Counters
from .facts import Found, MovedError, check_names, read_server, read_stages, resolve
from .settings import Settings, SettingsError, tokens_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOG: Final = logging.getLogger("gemm_allreduce")


@dataclass(frozen=True)
class Outcome:
    """What became of a model on this rank.

    Attributes:
        armed: names of projections that are fused; empty means the native path for all.
        why_not: what was declined and why, in words.
        symmetric_bytes: of the workspace; 0 if none was made.
        least, most: rows of a fused call.
    """

    armed: tuple[str, ...]
    why_not: str
    symmetric_bytes: int = 0
    least: int = 0
    most: int = 0


def arm(runner: Any, settings: Settings, counters: Counters) -> Outcome:
    """Arm the model of a ModelRunner that has loaded its weights. Collective over the TP group.

    Raises: HalfAppliedError, or what SGLang raised, when stages could not be changed as planned;
        they are as before then.
    """
    found: list[Found] = []
    try:
        group: ProcessGroup = resolve(
            "sglang.srt.runtime_context.get_parallel"
        )().tp_group.cpu_group
    except (AttributeError, MovedError) as error:  # one release on all ranks: alike on all
        return Outcome((), f"the tensor-parallel group cannot be found: {error}")
    plan, problem = None, ""
    try:
        check_names()
        server = read_server()
        found = list(read_stages(runner.model))
        least, most = tokens_of(settings, server.chunked_prefill_size)
        plan = decide(server, [f.stage for f in found], least, most)
    except (MovedError, SettingsError) as error:
        problem = str(error)
    except Exception as error:  # the other ranks wait in _agree
        problem = f"{type(error).__name__}: {error}"
    if problem := _agree(group, (plan, problem), problem):
        return Outcome((), problem)
    assert plan is not None
    if not plan.arms:
        return Outcome((), plan.why_not())
    workspace, problem = _workspace(group, plan)
    if problem := _agree(group, problem, problem):
        return Outcome((), problem)
    assert workspace is not None
    chosen = {stage.name for stage in plan.stages}
    install([f for f in found if f.stage.name in chosen], plan, workspace, counters)
    return Outcome(
        tuple(stage.name for stage in plan.stages),
        plan.why_not(),
        workspace.symmetric_bytes,
        plan.least,
        plan.most,
    )


def _agree(group: ProcessGroup, value: object, problem: str) -> str:
    """Return this rank's problem, another's, or that they differ; collective."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, (value, problem), group=group)
    told = {f"rank {rank}: {theirs}": theirs for rank, (_, theirs) in enumerate(values) if theirs}
    if told:
        same = len(told) == len(values) and len(set(told.values())) == 1
        return problem if same else "; ".join(told)
    if any(theirs != values[0][0] for theirs, _ in values):
        return "the ranks differ in what they would fuse"
    return ""


def _workspace(group: ProcessGroup, plan: Plan) -> tuple[Workspace | None, str]:
    """Make the workspace of the plan and load its kernels; or say what went wrong."""
    import torch

    dtype = getattr(torch, plan.stages[0].dtype.removeprefix("torch."))
    features = max(stage.features for stage in plan.stages)
    try:
        workspace = Workspace(group, max_tokens=plan.most, max_features=features, dtype=dtype)
        workspace.warmup(plan.layers)
    except (CubinError, RuntimeError, ValueError) as error:
        return None, f"no workspace: {error}"
    # A server's children are killed or leave by themselves: nothing will ever be closed together.
    # And torch can abort at exit when a group that was destroyed is still held.
    workspace.transport.group = None  # type: ignore[attr-defined]
    return workspace, ""


def install(found: Sequence[Found], plan: Plan, workspace: Workspace, counters: Counters) -> None:
    """Change the projections and boundaries; if one cannot be, all are as before.

    Raises: HalfAppliedError, or what SGLang's objects raised.
    """
    fused_class, changed = boundary_class(), []
    try:
        for one in found:
            fused = FusedStage(
                one.stage, one.projection, workspace, counters, plan.least, plan.most
            )
            changed.append(one)
            one.projection.forward = fused.forward
            one.boundary.fused = fused
            one.boundary.__class__ = fused_class
        for one in found:
            verify(one, fused_class)
    except BaseException:
        for one in changed:
            vars(one.projection).pop("forward", None)
            if isinstance(one.boundary, fused_class):
                one.boundary.__class__ = fused_class.__mro__[1]
            vars(one.boundary).pop("fused", None)
        raise


def verify(found: Found, fused_class: type) -> None:
    """Look whether both halves of a stage are in place.

    Raises: HalfAppliedError.
    """
    forward = vars(found.projection).get("forward")
    fused = vars(found.boundary).get("fused")
    if type(found.boundary) is not fused_class or fused is None:
        raise HalfAppliedError(f"the boundary of {found.stage.name} was not changed")
    if forward is None or getattr(forward, "__self__", None) is not fused:
        raise HalfAppliedError(f"the forward of {found.stage.name} was not changed")


def sentence(outcome: Outcome, ranks: int) -> str:
    """Return the one line of the log. Pure."""
    declined = f"; declined: {outcome.why_not}" if outcome.why_not else "; declined: nothing"
    if not outcome.armed:
        return f"SGL_USE_TP_OVERLAP=1, but nothing is fused: {outcome.why_not}"
    kinds = Counter(name.rpartition(".")[2] for name in outcome.armed)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return (
        f"tensor-parallel overlap armed for {told} on {ranks} ranks, "
        f"{outcome.least} to {outcome.most} rows, "
        f"{outcome.symmetric_bytes / 2**20:.1f} MiB of symmetric memory per rank{declined}"
    )
