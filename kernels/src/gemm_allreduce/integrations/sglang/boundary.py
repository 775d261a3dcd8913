"""The fused path of one stage: its projection computes and sums, its boundary knows.

In SGLang a projection leaves its output unsummed, and a stage boundary completes it: attention's
in the `prepare` of the feed-forward stage behind it, the feed-forward's in the next layer's. Both
have a contract for an output that is complete already (SGLang 0.5.23):

- attention: the output is recorded in the residual stream without a declared sum;
- feed-forward: ``StageBoundary.complete_now(..., already_reduced=True)``.

So per stage `prepare` decides, as it knows the batch; the projection's forward follows the
decision; `finish` takes the contract, and only for the very tensor that the projection returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ...call import gemm_allreduce
from .conditions import Call, Stage, why_native
from .counters import Counters
from .facts import resolve

if TYPE_CHECKING:
    import torch

    from ...workspace import Workspace

_RESIDUAL = "sglang.srt.layers.layer_boundary.residual"


class HalfAppliedError(RuntimeError):
    """One half of a stage takes the fused path and the other does not: the result is wrong."""


class FusedStage:
    """What one armed stage knows between `prepare` and `finish` of one forward pass.

    Args:
        stage: its description.
        projection: SGLang's RowParallelLinear.
        workspace: of the model.
        counters: of the process.
        least, most: rows of a fused call.
    """

    def __init__(
        self,
        stage: Stage,
        projection: Any,
        workspace: Workspace,
        counters: Counters,
        least: int,
        most: int,
    ) -> None:
        self.stage = stage
        self.projection = projection
        self.native_forward: Callable[..., Any] = projection.forward
        self._workspace = workspace
        self._counters = counters
        self._least, self._most = least, most
        self._fused_norm = resolve(f"{_RESIDUAL}.add_norm.flashinfer_ar_fusion_applies")
        self._rows: int | None = None
        self._output: torch.Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether this pass is decided to be fused, and not finished yet."""
        return self._rows is not None

    def begin(self, hidden: Any, variant: str) -> None:
        """Decide for one pass, from what is the same on all ranks."""
        import torch

        self._rows = self._output = None
        compiling = torch.compiler.is_compiling()
        plain = isinstance(hidden, torch.Tensor) and hidden.dim() == 2
        rows = hidden.shape[0] if plain else None
        # Asked last: it looks at the device's abilities, and takes no batch without rows.
        fused_norm = not compiling and bool(rows) and self._fused_norm(rows)
        reason = why_native(
            Call(rows, variant, compiling, bool(fused_norm)), self._least, self._most
        )
        if reason:
            if not compiling:
                self._counters.count_native(reason)
            return
        self._rows = rows

    def forward(
        self,
        input_: torch.Tensor,
        skip_all_reduce: bool = False,
        forward_batch: Any = None,
        output_tensor: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Stand in for RowParallelLinear.forward: (output, no bias left to add).

        Raises: HalfAppliedError when the call is not what `begin` decided about.
        """
        if self._rows is None:
            native: tuple[torch.Tensor, None] = self.native_forward(
                input_, skip_all_reduce, forward_batch, output_tensor
            )
            return native
        if self._output is not None:
            raise HalfAppliedError(f"{self.stage.name} was called twice in one pass")
        if input_.dim() != 2 or input_.shape[0] != self._rows or output_tensor is not None:
            raise HalfAppliedError(
                f"{self.stage.name} got {tuple(input_.shape)}"
                f"{' and memory for its output' if output_tensor is not None else ''}, "
                f"expected [{self._rows}, {self.stage.depth}] alone"
            )
        self._follow_stream()
        # Read anew each time: SGLang replaces weights in place and as objects.
        self._output = gemm_allreduce(
            input_.contiguous(), self.projection.weight, self._workspace, self.projection.bias
        )
        return self._output, None

    def end(self, hidden: Any) -> torch.Tensor:
        """Return the complete output, which must be what the projection returned.

        Raises: HalfAppliedError.
        """
        output, self._rows, self._output = self._output, None, None
        if output is None:
            raise HalfAppliedError(
                f"{self.stage.name} was to be fused, but its forward was not called"
            )
        if hidden is not output:
            raise HalfAppliedError(
                f"the output of {self.stage.name} was changed before its stage finished"
            )
        self._counters.count_fused(self.stage.kind)
        complete: torch.Tensor = output
        return complete

    def abandon(self, by: str) -> None:
        """Raise if a pass is decided to be fused: `by` would sum what is summed already."""
        if self._rows is not None:
            self._rows = self._output = None
            raise HalfAppliedError(f"{self.stage.name} is fused, and {by} would sum it again")

    def _follow_stream(self) -> None:
        """SGLang warms up on one stream and serves on another; a workspace refuses two at once."""
        device = self._workspace.device
        if device.type != "cuda":
            return
        import torch

        if torch.cuda.is_current_stream_capturing():
            return
        if self._workspace.follow(torch.cuda.current_stream(device)):
            self._counters.stream_moves += 1


@cache
def boundary_class() -> type:
    """Return SGLang's StageBoundary with a fused path; made once, as SGLang is imported late."""
    base: Any = resolve("sglang.srt.layers.layer_boundary.stage.StageBoundary")
    bind_update = resolve(f"{_RESIDUAL}.bind_update")
    stream_of = resolve(f"{_RESIDUAL}.batch.stream_of")

    class FusedBoundary(base):  # type: ignore[misc]
        """A stage boundary whose `fused` stage decides in prepare, and is complete in finish."""

        fused: FusedStage

        def prepare(self, hidden_states: Any, forward_batch: Any, **call: Any) -> Any:
            hidden = super().prepare(hidden_states, forward_batch, **call)
            self.fused.begin(hidden, self.plan.variant_for(forward_batch).name)
            return hidden

        def finish(
            self, hidden_states: Any, forward_batch: Any, *, update_context: Any = None
        ) -> Any:
            if not self.fused.active:
                return super().finish(hidden_states, forward_batch, update_context=update_context)
            output = self.fused.end(hidden_states)
            if self.fused.stage.kind == "ffn":
                return super().complete_now(
                    output, forward_batch, already_reduced=True, update_context=update_context
                )
            update = self.plan.path_for(forward_batch).output.update
            return stream_of(forward_batch).record(
                output, bind_update(update, forward_batch, update_context)
            )

        def exit(self, forward_batch: Any, *, update_context: Any = None) -> Any:
            self.fused.abandon("the stage's exit")
            return super().exit(forward_batch, update_context=update_context)

        def complete_now(self, hidden_states: Any, forward_batch: Any, **call: Any) -> Any:
            self.fused.abandon("complete_now")
            return super().complete_now(hidden_states, forward_batch, **call)

    return FusedBoundary
