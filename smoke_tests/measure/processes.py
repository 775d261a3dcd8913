"""A process per GPU: the fused kernels against cuBLAS and an all-reduce that others wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from gemm_allreduce import Workspace, all_reduce, gemm_allreduce
from gemm_allreduce.dispatch import Choice, Shape, choose
from gemm_allreduce.kernels import Mode
from gemm_allreduce.transports.base import GroupRanks
from smoke_tests.measure.bench import FUSED, OWN, RanksKind, Way
from smoke_tests.measure.inputs import DTYPE, Flusher, normal
from smoke_tests.reference import bound

TransportName = Literal["nvshmem", "symmetric"]
ONE_SHOT_BYTES = 16 * 2**20
"""Of y; above, one-shot all-reduce sends so much more than two-shot that nobody would take it."""
TIME_LIMIT = timedelta(seconds=120)


@dataclass(frozen=True)
class AllReduce:
    """An all-reduce of one size.

    Attributes:
        place: [M, N], where this rank's product must be.
        reduce: takes it, and may overwrite it; returns the sum.
    """

    place: torch.Tensor
    reduce: Callable[[torch.Tensor], torch.Tensor]


MakeAllReduce = Callable[[int, int], AllReduce]
"""Makes one for M and N."""


class ProcessBench:
    """This process's rank; its weight of copy c is of the seed (c, rank)."""

    kind: RanksKind = "processes"

    def __init__(
        self,
        group: ProcessGroup,
        device: torch.device,
        workspace: Workspace,
        all_reduces: Mapping[str, MakeAllReduce],
    ) -> None:
        """Take what was connected; ``all_reduces`` make an all-reduce for M and N."""
        self.group, self.workspace = GroupRanks(group), workspace
        self.rank, self.world_size = self.group.rank, self.group.world_size
        self.flush = Flusher(device)
        self.device = device
        self.all_reduces = all_reduces
        self._weights: list[torch.Tensor] = []
        self._x = torch.empty(0)
        self._tokens = 0
        self._tiny = [
            torch.ones(rows, 8, dtype=workspace.dtype, device=device) for rows in (1, 8, 1)
        ]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value."""
        return self.group.gather(value)

    def load(self, n: int, k: int, copies: int, tokens: Sequence[int]) -> None:
        """Make this rank's weights, and load the kernels."""
        self._weights.clear()
        for copy in range(copies):
            self._weights.append(self._weight(copy, self.rank, n, k))
        self.workspace.warmup([(n, k)], tokens=tokens)
        self.workspace.warmup([(8, 8)], tokens=[1])  # see align

    def _weight(self, copy: int, rank: int, n: int, k: int) -> torch.Tensor:
        return normal(self.device, 64 * copy + rank, n, k, dtype=self.workspace.dtype)

    def _rows(self, rank: int, m: int, k: int) -> torch.Tensor:
        return normal(self.device, 100_000 + 64 * m + rank, m, k, dtype=self.workspace.dtype)

    def ways(self, m: int) -> list[Way]:
        """Return fused, and cuBLAS with every all-reduce."""
        weights = self._weights
        n, k = weights[0].shape
        self._tokens, self._x = m, self._rows(self.rank, m, k)
        x = self._x
        fused_y = torch.empty(m, n, dtype=self.workspace.dtype, device=self.device)

        def fused(copy: int) -> torch.Tensor:
            return gemm_allreduce(x, weights[copy], self.workspace, out=fused_y)

        found = [Way(FUSED, fused)]
        for name, make in self.all_reduces.items():
            if "one-shot" in name and m * n * self.workspace.dtype.itemsize > ONE_SHOT_BYTES:
                continue
            # Others round after every addition: W times, where the kernels here do it once.
            slack = 1 if name == OWN else self.world_size
            found.append(Way(f"cublas+{name}", self._serial(make(m, n)), slack))
        return found

    def _serial(self, all_reduce: AllReduce) -> Callable[[int], torch.Tensor]:
        x, weights = self._x, self._weights

        def serial(copy: int) -> torch.Tensor:
            product = torch.mm(x, weights[copy].T, out=all_reduce.place)
            return all_reduce.reduce(product)

        return serial

    def reference(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the rows must be, from every rank's inputs, and the bound."""
        n, k = self._weights[0].shape
        every = range(self.world_size)
        x = torch.stack([self._rows(rank, self._tokens, k)[list(rows)] for rank in every])
        weight = torch.stack([self._weight(0, rank, n, k) for rank in every])
        return bound(x, weight, self.workspace.dtype)

    def align(self) -> None:
        """Make a call of one tile: nobody leaves it before everybody has come."""
        x, weight, y = self._tiny
        gemm_allreduce(x, weight, self.workspace, out=y)

    def close(self) -> None:
        """Check that no wait gave up, and free everything."""
        self.workspace.check()
        self.workspace.close()
        self._weights.clear()
        self.all_reduces = {}


class Nccl:
    """NCCL, on a group of its own; in place."""

    def __init__(
        self, group: ProcessGroup, device: torch.device, dtype: torch.dtype = DTYPE
    ) -> None:
        self._group, self._device, self._dtype = group, device, dtype

    def __call__(self, m: int, n: int) -> AllReduce:
        """Return the all-reduce of [m, n]."""
        group = self._group

        def reduce(product: torch.Tensor) -> torch.Tensor:
            dist.all_reduce(product, group=group)
            return product

        return AllReduce(torch.empty(m, n, dtype=self._dtype, device=self._device), reduce)


class OwnAllReduce:
    """The kernels of this package, with nothing multiplied."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __call__(self, m: int, n: int) -> AllReduce:
        """Return the all-reduce of [m, n]."""
        workspace = self._workspace
        place = torch.empty(m, n, dtype=workspace.dtype, device=workspace.device)
        y = torch.empty_like(place)
        return AllReduce(place, lambda product: all_reduce(product, workspace, y))


class SymmetricMemory:
    """PyTorch's symmetric memory, by plain loads and stores; the product is computed in it."""

    def __init__(self, buffer: torch.Tensor, group_name: str, *, two_shot: bool) -> None:
        """Take a symmetric buffer of DTYPE, large enough for all calls, that was rendezvoused."""
        self._buffer, self._group_name, self._two_shot = buffer, group_name, two_shot

    def __call__(self, m: int, n: int) -> AllReduce:
        """Return the all-reduce of [m, n]."""
        name, two_shot = self._group_name, self._two_shot

        def reduce(product: torch.Tensor) -> torch.Tensor:
            operators: Any = torch.ops.symm_mem
            chosen = operators.two_shot_all_reduce_ if two_shot else operators.one_shot_all_reduce
            reduced: torch.Tensor = chosen(product, "sum", name)
            return reduced

        return AllReduce(self._buffer[: m * n].view(m, n), reduce)


def connect(
    transport: TransportName, max_tokens: int, max_features: int
) -> tuple[ProcessBench, dict[str, str]]:
    """Join the ranks that torchrun started; return them, and what could not be had, by name.

    A baseline that cannot be had on any rank is left out on all of them.
    """
    group, device, workspace = _join(transport, max_tokens, max_features)
    all_reduces: dict[str, MakeAllReduce] = {}
    bench = ProcessBench(group, device, workspace, all_reduces)
    missing = {}
    makers = baselines(group, device, max_tokens * max_features)
    for name, make in (makers | {OWN: lambda: OwnAllReduce(workspace)}).items():
        problem = ""
        try:
            made = make()
            first = made(8, 64)
            first.reduce(first.place.zero_())  # connects, outside of what is timed
            torch.cuda.synchronize(device)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        problems = [text for text in bench.gather(problem) if text]
        if problems:
            missing[name] = problems[0]
        else:
            all_reduces[name] = made
    return bench, missing


def connect_fused(
    transport: TransportName,
    max_tokens: int,
    max_features: int,
    dispatch: Callable[[Shape], Choice],
) -> ProcessBench:
    """Join the ranks that torchrun started, with a dispatch, kernels made here, and no baseline."""
    group, device, workspace = _join(transport, max_tokens, max_features, dispatch, "jit")
    return ProcessBench(group, device, workspace, {})


def _join(
    transport: TransportName,
    max_tokens: int,
    max_features: int,
    dispatch: Callable[[Shape], Choice] = choose,
    kernels: Mode = "auto",
) -> tuple[ProcessGroup, torch.device, Workspace]:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", torch.cuda.current_device())
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=TIME_LIMIT)
    group = dist.group.WORLD
    assert group is not None
    if transport == "nvshmem":
        from gemm_allreduce.transports.nvshmem import NvshmemTransport as Transport
    else:
        from gemm_allreduce.transports.symmetric import (  # type: ignore[assignment]
            SymmetricMemoryTransport as Transport,
        )
    workspace = Workspace(
        Transport(group, device),
        max_tokens=max_tokens,
        max_features=max_features,
        dispatch=dispatch,
        kernels=kernels,
    )
    return group, device, workspace


def baselines(
    group: ProcessGroup, device: torch.device, elements: int
) -> dict[str, Callable[[], MakeAllReduce]]:
    """Return what makes each all-reduce; collective, in this order."""
    shared: list[torch.Tensor] = []

    def nccl() -> Nccl:
        return Nccl(dist.new_group(backend="nccl", timeout=TIME_LIMIT), device)

    def symmetric(two_shot: bool) -> SymmetricMemory:
        import torch.distributed._symmetric_memory as symmetric_memory

        if not shared:
            buffer = symmetric_memory.empty(elements, dtype=DTYPE, device=device)
            symmetric_memory.rendezvous(buffer, group)
            shared.append(buffer)
        return SymmetricMemory(shared[0], group.group_name, two_shot=two_shot)

    return {
        "nccl": nccl,
        "symmetric one-shot": lambda: symmetric(False),
        "symmetric two-shot": lambda: symmetric(True),
    }
