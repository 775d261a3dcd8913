"""What a check sees of its ranks, whatever kind they are.

A check is written once. It makes the inputs of all ranks from a seed, calls, and compares what
the ranks of its own process got: all of them with virtual ranks, one of them otherwise.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.distributed import ProcessGroup

from gemm_allreduce import Workspace, gemm_allreduce
from gemm_allreduce.dispatch import Choice, early_form, reachable_variants
from gemm_allreduce.kernels import Kernels, choose_kernels
from gemm_allreduce.layout import LARGE_TILE_AREA, HeapLayout
from gemm_allreduce.transports import Transport
from gemm_allreduce.transports.base import GroupRanks
from gemm_allreduce.variants import DTYPES, Tile, Variant
from smoke_tests.kinds import Kind
from smoke_tests.records import Band, Label, Measure, Tier
from smoke_tests.reference import require_equal
from smoke_tests.steps import Steps

EARLY_BYTES = 1024
"""What early forms ask for of a row of weight: less than a row has at the depths above."""

COMM_CTAS = 16
"""CTAs that only communicate, where some do."""

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Scale:
    """Sizes that a kind of rank can do in the time that there is; all in elements or calls."""

    features: int
    depths: tuple[int, ...]
    max_tokens: int
    tokens: tuple[int, ...]
    calls: int
    tiles: tuple[Tile, ...]
    small_tile: Tile


# Rows on both sides of tile edges; the depth of 3696 is Qwen2.5-72B's down_proj at 8 ranks.
GPU_SCALE = Scale(
    features=8192,
    depths=(1024, 3696),
    max_tokens=2048,
    tokens=(1, 16, 17, 33, 64, 65, 127, 129, 512, 1000, 2048),
    calls=200,
    tiles=(Tile(64, 128, 64, 3, 4), Tile(128, 128, 64, 3, 8)),
    small_tile=Tile(16, 128, 128, 3, 8),
)
CPU_SCALE = Scale(
    features=200,
    depths=(72,),
    max_tokens=128,
    tokens=(1, 17, 33, 64, 127),
    calls=10,
    tiles=(Tile(64, 64, 32, 1, 4),),
    small_tile=Tile(16, 64, 32, 1, 4),
)


@dataclass(frozen=True)
class Ranks:
    """The ranks of this process.

    Attributes:
        kind: what they are; `cpu` are processes in Triton's interpreter.
        world_size: how many there are in all processes.
        rank: this process's number; 0 with virtual ranks.
        group: of the processes; None with virtual ranks.
        connect: makes a transport.
        time_limit_s: of the workspaces.
        small: use the sizes of the interpreter, for tools that slow a kernel down.
        tier: whose the measures are.
        steps: where this process is; see `step`.
        measures: numbers for the report, of the check that runs.
        workspaces: those that are asked for their status when a step runs past its limit.
        folder: of this host, which goes when the ranks go; empty where there is none.
    """

    kind: Kind
    world_size: int
    rank: int
    group: ProcessGroup | None
    device: torch.device
    connect: Callable[[], Transport]
    time_limit_s: float
    small: bool = False
    tier: Tier = "cpu"
    steps: Steps = field(default_factory=lambda: Steps(0))
    measures: list[Measure] = field(default_factory=list)
    workspaces: weakref.WeakSet[Workspace] = field(default_factory=weakref.WeakSet)
    folder: str = ""

    def step(self, name: str, limit_s: float = 0.0) -> AbstractContextManager[None]:
        """Be in a step that waits for other ranks, or for a GPU: ``with ranks.step("..."):``.

        When its limit is over (0: 90 s) the run ends, and says of every rank where it was.
        """
        return self.steps.step(name, limit_s)

    def measure(
        self, name: str, value: float, unit: str, band: Band | None = None, **labels: Label
    ) -> None:
        """Put a number into the report; one that is not in its band fails the run."""
        self.measures.append(Measure(self.tier, name, value, unit, labels, band))

    @property
    def virtual(self) -> bool:
        """Whether all ranks are in this process."""
        return self.kind == "virtual"

    @property
    def local(self) -> list[int]:
        """The ranks whose results this process sees, in the order of `call`'s result."""
        return list(range(self.world_size)) if self.virtual else [self.rank]

    @property
    def scale(self) -> Scale:
        """Sizes for these ranks."""
        return CPU_SCALE if self.kind == "cpu" or self.small else GPU_SCALE

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types: the interpreter's bf16 is wrong."""
        return ("fp16",) if self.kind == "cpu" else DTYPES

    @contextmanager
    def workspace(self, dtype: str | None = None, **options: Any) -> Iterator[Workspace]:
        """A workspace of the scale's size; closed, on success, with its status checked."""
        settings: dict[str, Any] = {
            "max_tokens": self.scale.max_tokens,
            "max_features": self.scale.features,
            "dtype": TORCH_DTYPES[dtype or self.dtypes[0]],
            "time_limit_s": self.time_limit_s,
        }
        workspace = self.open(settings | options)
        yield workspace
        with self.step("check the workspace"):
            workspace.check()
            assert set(workspace.arrivals()) == {0}, workspace.arrivals()
        with self.step("close the workspace"):
            workspace.close()

    def open(self, options: dict[str, Any]) -> Workspace:
        """Return a workspace, for checks that do not close it or not check it."""
        with self.step("connect"):
            transport = self.connect()
        with self.step("create the workspace"):
            workspace = Workspace(transport, **options)
        self.workspaces.add(workspace)
        return workspace

    def call(
        self,
        workspace: Workspace,
        x: torch.Tensor,
        weight: torch.Tensor,
        *,
        out: torch.Tensor | None = None,
        **extras: Any,
    ) -> torch.Tensor:
        """Call with x [W, M, K] and weight [W, N, K] of all ranks; return y [local, M, N]."""
        m, k = x.shape[1:]
        with self.step(f"call M {m}, N {weight.shape[1]}, K {k}"):
            return self._call(workspace, x, weight, out, extras)

    def _call(
        self,
        workspace: Workspace,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor | None,
        extras: dict[str, Any],
    ) -> torch.Tensor:
        if self.virtual:
            return gemm_allreduce(x, weight, workspace, out=out, **extras)
        for name in ("x_scale", "weight_scale"):
            if extras.get(name) is not None:
                extras[name] = extras[name][self.rank].clone()
        own = None if out is None else out[0]
        mine = x[self.rank].contiguous(), weight[self.rank].contiguous()
        return gemm_allreduce(*mine, workspace, out=own, **extras)[None]

    def require_equal(self, y: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        """Compare every result of `call` with what every rank must get, bit for bit."""
        with self.step("compare"):  # waits for the GPU
            for index, rank in enumerate(self.local):
                require_equal(y[index], wanted, f"{what} rank {rank}")

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process."""
        if self.group is None:
            return [value]
        with self.step("gather"):
            return GroupRanks(self.group).gather(value)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            with self.step("synchronize"):
                torch.cuda.synchronize(self.device)

    def choices(self, dtype: str, tile: Tile, operand: str | None = None) -> dict[str, Choice]:
        """Every algorithm that can use a tile and be had: the same tile, so the same bits."""
        w = self.world_size

        def variant(algorithm: str, split: int = 1) -> Variant:
            return Variant(algorithm, dtype, operand or dtype, w, tile, split)  # type: ignore[arg-type]

        found: dict[str, Choice] = {}
        layout = HeapLayout(w, 1, 1)
        if tile.block_m <= layout.small_tokens:
            found["one_shot"] = Choice(variant("one_shot"))
        if tile.block_m <= layout.cell_tokens:
            found["lamport"] = Choice(variant("lamport"))
        if tile.area >= LARGE_TILE_AREA:
            found["two_shot_split"] = Choice(variant("two_shot", w))
            found["two_shot"] = Choice(variant("two_shot"))
            found["two_shot_comm"] = Choice(variant("two_shot"), comm_ctas=COMM_CTAS)
        if self.kind != "cpu":  # where nothing starts early
            for name, choice in list(found.items()):
                if early := early_form(choice, self.arch, EARLY_BYTES):
                    found[f"{name}_early"] = early
        # Without Triton there is no other kernel than the cubins.
        return {
            name: choice for name, choice in found.items() if self.kernels.serves(choice.variant)
        }

    def most_tokens(self, choice: Choice) -> int:
        """Largest M that a kernel serves, rows."""
        most = HeapLayout(self.world_size, 1, 1).most_tokens(choice.variant.algorithm)
        return sys.maxsize if most is None else most

    def families(self, dtype: str) -> list[dict[str, Choice]]:
        """Fused kernels that can be had, by name, those of one tile together: with the same bits.

        The tiles of the scale with every algorithm, and on a GPU the dispatch table's own kernels:
        a bundle may have no others.
        """
        choices = list(self._of_the_table(dtype))
        for tile in (*self.scale.tiles, self.scale.small_tile):
            choices += self.choices(dtype, tile).values()
        found: dict[Tile, dict[str, Choice]] = {}
        for choice in choices:
            name = f"{choice.variant.name}{'_comm' if choice.comm_ctas else ''}"
            found.setdefault(choice.variant.tile, {})[name] = choice
        return list(found.values())

    def _of_the_table(self, dtype: str) -> Iterator[Choice]:
        for variant in () if self.kind == "cpu" else reachable_variants(self.arch):
            ours = variant.world_size == self.world_size and variant.product
            if ours and variant.operand == dtype and self.kernels.serves(variant):
                yield Choice(variant)
                if variant.algorithm == "two_shot" and variant.split == 1:
                    yield Choice(variant, comm_ctas=COMM_CTAS)

    @cached_property
    def kernels(self) -> Kernels:
        """Where the workspaces' kernels come from."""
        if self.device.type != "cuda":
            return choose_kernels("auto", "", None)
        return choose_kernels("auto", self.arch, self.device.index)

    @property
    def arch(self) -> str:
        """The GPU's architecture, as ``sm_90``."""
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"sm_{major}{minor}"

    @property
    def variants(self) -> list[Variant]:
        """The kernels that checks ask for: of the dispatch table, and with the scale's tiles."""
        w = self.world_size
        found = dict.fromkeys(v for v in reachable_variants(self.arch) if v.world_size == w)
        for dtype in self.dtypes if w > 1 else ():
            for family in self.families(dtype):
                found |= dict.fromkeys(choice.variant for choice in family.values())
        return list(found)
