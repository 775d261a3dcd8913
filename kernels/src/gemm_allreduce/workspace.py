"""The workspace: symmetric memory and state that all fused layers of a model share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from . import __version__
from .bundle import CubinError
from .dispatch import Choice, Shape, choose, rules, sum_only, table_digest, token_steps
from .kernels import Kernels, Mode, choose_kernels
from .launch import Grid, Operands, Ranks, plan_grid
from .layout import (
    ARRIVALS_WORD,
    ELEMENT_BYTES,
    EMPTY,
    EPOCH_WORD,
    SLOTS,
    STATUS_FIELDS,
    STATUS_WORD,
    STATUS_WORDS,
    HeapLayout,
    describe_status,
)
from .unfused import multiplied
from .variants import Dtype, Operand, Variant

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from .transports import Transport

TIME_LIMIT_S: Final = 30.0
"""How long a rank waits for a peer within one call, by default."""

POLLS_PER_SECOND: Final = {"cuda": 2_300_000, "cpu": 400}
"""Polls of flags that a CTA makes in a second: about 0.43 us each on an H100, about 2.5 ms in
Triton's interpreter. A time limit becomes a count of polls, which every kind of rank can count."""

_DTYPES: Final[dict[str, Dtype]] = {"torch.bfloat16": "bf16", "torch.float16": "fp16"}
_OPERANDS: Final[dict[str, Operand]] = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float8_e4m3fn": "fp8e4m3",
    "torch.int8": "int8",
}
_PLANS: Final = 65536
"""Shapes whose kernel and grid are remembered."""
_INTERPRETED_ARCH: Final = "sm_90"
_INTERPRETED_PROCESSORS: Final = 132
"""What a rank of the interpreter tells dispatch, so that it gets the kernels of a whole GPU."""
_INTERPRETED_CTAS: Final = 4


_LOG: Final = logging.getLogger(__package__)


@dataclass(frozen=True)
class Warmup:
    """What `Workspace.warmup` did.

    Attributes:
        seconds: how long it took.
        variants: names of the kernels that the layers need.
        loaded: those of them that were not there before.
    """

    seconds: float
    variants: tuple[str, ...]
    loaded: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as one sentence."""
        return (
            f"{len(self.variants)} kernels are ready, {len(self.loaded)} of them loaded now, "
            f"in {self.seconds * 1000:.1f} ms"
        )


class PeerTimeoutError(RuntimeError):
    """A rank waited for a peer longer than the time limit. The workspace cannot be used again."""


class Workspace:
    """Symmetric memory for calls of `gemm_allreduce`; create one per model, on every rank.

    Creation and `close` are collective. Calls must be made in the same order with the same M, N
    and type on every rank, and on one stream (see `use_stream`). State lives on the device, so
    calls can be captured in CUDA graphs once their kernels are there: see `warmup`.

    Args:
        ranks: a torch.distributed group (gloo is enough), which chooses NVSHMEM on a GPU host and
            shared memory without one; or a transport.
        max_tokens: largest M of one launch, rows; calls with more are split into several.
        max_features: largest N.
        dtype: of y and of the partial sums, torch.bfloat16 (default) or torch.float16.
        time_limit_s: how long a rank waits for a peer within one call; approximate.
        sm_margin: multiprocessors to leave to other kernels.
        dispatch: chooses a kernel; must return the same on every rank. Without one: the package's
            table, and before it the one that GEMM_AR_DISPATCH names, compared between ranks.
        first_epoch: int32 the call counter starts at, for tests of its wrap-around.
        kernels: ``cubins`` that were compiled ahead of time, ``jit``, or ``auto``: cubins where
            some fit, otherwise, with one line in the log, compiled at run time; with the variable
            GEMM_AR_NO_JIT=1 ``auto`` is ``cubins``. See kernels.py.

    Attributes:
        kernels: where the kernels come from; ``kernels.describe()`` says it in words.

    Raises:
        CubinError: cubins are damaged, or lacking where they must be there: on every rank alike.
        ValueError: a size or type that is not served, or one that differs between ranks: on every
            rank alike.
        RuntimeError: symmetric memory cannot be had: on every rank alike.
    """

    def __init__(
        self,
        ranks: ProcessGroup | Transport,
        *,
        max_tokens: int = 8192,
        max_features: int = 8192,
        dtype: torch.dtype | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        sm_margin: int = 0,
        dispatch: Callable[[Shape], Choice] = choose,
        first_epoch: int = 0,
        kernels: Mode = "auto",
    ) -> None:
        import torch

        self.transport = _transport(ranks)
        self.dtype = torch.bfloat16 if dtype is None else dtype
        self.time_limit_s = time_limit_s
        self._dispatch = dispatch
        self._closed = False
        self._stream: int | None = None
        self._plans: dict[tuple[int, int, int, torch.dtype, bool], tuple[Choice, Grid]] = {}
        problem: ValueError | CubinError | None = None
        try:
            self._configure(max_tokens, max_features, sm_margin)
            self.kernels = self._find_kernels(kernels)
        except (ValueError, CubinError) as error:
            problem = error
        self._agree(
            {
                "problem": problem,
                "version": __version__,
                "world_size": self.transport.world_size,
                "max_tokens": max_tokens,
                "max_features": max_features,
                "dtype": str(self.dtype),
                "architecture": "" if problem else self.arch,
                # What dispatch may depend on must be the same on all ranks.
                "multiprocessors": 0 if problem else self._all_processors,
                # A table of the caller's cannot be compared: it is a function.
                "dispatch table": "" if problem or dispatch is not choose else table_digest(),
                "first_epoch": first_epoch,
                "kernels": "" if problem else self.kernels.identity,
            }
        )
        self._allocate(first_epoch)

    def _configure(self, max_tokens: int, max_features: int, sm_margin: int) -> None:
        import torch

        if str(self.dtype) not in _DTYPES:
            raise ValueError(f"dtype must be torch.bfloat16 or torch.float16, got {self.dtype}")
        if self.time_limit_s <= 0:
            raise ValueError(f"time_limit_s must be positive, got {self.time_limit_s}")
        self.layout = HeapLayout(self.transport.world_size, max_tokens, max_features)
        device = self.transport.device
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.arch = f"sm_{properties.major}{properties.minor}"
            processors = properties.multi_processor_count
            if not 0 <= sm_margin < processors:
                raise ValueError(f"sm_margin must be from 0 to {processors - 1}, got {sm_margin}")
            self._all_processors, self._processors = processors, processors - sm_margin
        else:
            self.arch = _INTERPRETED_ARCH
            self._all_processors, self._processors = _INTERPRETED_PROCESSORS, _INTERPRETED_CTAS
        Shape(1, 8, 8, self.transport.world_size, self.arch)
        rules()  # a file of rules that cannot be read is refused here, on all ranks
        self._spin_limit = min(int(self.time_limit_s * POLLS_PER_SECOND[device.type]), 2**31 - 1)

    def _find_kernels(self, mode: Mode) -> Kernels:
        device = self.transport.device
        if device.type != "cuda":
            return choose_kernels(mode, self.arch, None)
        with self._current_device():
            return choose_kernels(mode, self.arch, device.index)

    def _agree(self, settings: dict[str, Any]) -> None:
        """Compare with every rank's settings, so that all ranks fail or none does."""
        gathered = self.transport.gather(settings)
        problems = {rank: s["problem"] for rank, s in enumerate(gathered) if s["problem"]}
        if problems:
            kinds = {type(problem) for problem in problems.values()}
            kind = kinds.pop() if len(kinds) == 1 else RuntimeError
            raise kind("; ".join(f"rank {r}: {problem}" for r, problem in problems.items()))
        for name in settings:
            values = [s[name] for s in gathered]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} differs between ranks: {values}")

    def _allocate(self, first_epoch: int) -> None:
        import torch

        self._heap = self.transport.allocate(self.layout.total_bytes)
        words = self.words()
        # In the heap itself: an allocation of its own would take 2 MiB of the device.
        place = slice(self.layout.table // 4, self.layout.table // 4 + 2 * self.world_size)
        addresses = torch.tensor(self._heap.addresses, dtype=torch.int64).view(torch.int32)
        words[:, place] = addresses.to(words.device)
        words[:, EPOCH_WORD] = first_epoch
        words[:, self.layout.partial_flags // 4 : self.layout.slots // 4] = first_epoch
        self.cells()[:] = EMPTY
        cuda = self.transport.device.type == "cuda"
        status = torch.zeros(
            (self.transport.world_size, STATUS_WORDS), dtype=torch.int32, pin_memory=cuda
        )
        self._codes = status.numpy()[:, 0]
        table = words[0, place].view(torch.int64)
        scratch = words[0, self.layout.scratch // 4 : self.layout.partial_flags // 4]
        rank, virtual = self.transport.rank, self.transport.virtual
        self._ranks = Ranks(self.layout, table, status, scratch, rank, virtual)
        if cuda:
            torch.cuda.synchronize(self.transport.device)
        self.transport.gather(None)  # nobody may call before everybody is ready

    # ------------------------------------------------------------------ what callers may ask

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.transport.world_size

    @property
    def device(self) -> torch.device:
        """Where operands must be."""
        return self.transport.device

    @property
    def closed(self) -> bool:
        """Whether `close` was called; it is collective, so all ranks say the same."""
        return self._closed

    @property
    def symmetric_bytes(self) -> int:
        """Symmetric memory that this workspace takes on every rank."""
        return self.layout.total_bytes

    def shape(self, tokens: int, features: int, depth: int) -> Shape:
        """Return what dispatch is asked for a call with x and weight of the workspace's dtype."""
        return self._shape(tokens, features, depth, _OPERANDS[str(self.dtype)])

    def warmup(
        self,
        layers: Iterable[tuple[int, int]],
        *,
        tokens: Iterable[int] | None = None,
        operands: Iterable[torch.dtype] | None = None,
    ) -> Warmup:
        """Load every kernel that calls of these layers need, so that no call has to.

        Needed before a first call inside a CUDA graph capture, and in a server before the first
        request. Cubins are read and their hashes compared here; without cubins the kernels are
        compiled. Launches nothing, and waits for no other rank.

        Args:
            layers: (N, K of this rank) of each.
            tokens: values of M; None is every M up to max_tokens.
            operands: types of x and weight; None is the workspace's dtype.

        Raises:
            ValueError: a shape or type that is not served.
            CubinError: a cubin is lacking, damaged, or refused by the driver.
        """
        self._require_open()
        begin = time.perf_counter()
        types = [_OPERANDS[str(t)] for t in ((self.dtype,) if operands is None else operands)]
        rows = None if tokens is None else sorted(set(tokens))
        variants: dict[Variant, None] = {}
        for features, depth in layers:
            for operand in types:
                for m in self._token_steps(features) if rows is None else rows:
                    shape = self._shape(min(m, self.layout.max_tokens), features, depth, operand)
                    variants[self._choose(shape).variant] = None
        with self._current_device():
            loaded = [v.name for v in variants if self.kernels.prepare(v, self._ranks)]
            if self.device.type == "cuda" and not all(v.product for v in variants):
                import torch

                # Else a first capture would have to make it.
                torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]
        done = Warmup(time.perf_counter() - begin, tuple(v.name for v in variants), tuple(loaded))
        _LOG.info("gemm_allreduce: %s", done)
        return done

    def _token_steps(self, features: int) -> Iterable[int]:
        most = self.layout.max_tokens
        # Of another table than the package's own nothing is known but its choices.
        return token_steps(features, most) if self._dispatch is choose else range(1, most + 1)

    def check(self) -> None:
        """Wait for the device, then raise if a wait has given up in any call so far.

        Raises:
            PeerTimeoutError: names the rank, tile, source rank, flag seen and flag expected.
            RuntimeError: the workspace is closed.
        """
        self._require_open()
        self._synchronize()
        self._raise_if_failed()

    def use_stream(self, stream: torch.cuda.Stream) -> None:
        """Make the calls from here on on `stream`, after all earlier ones have ended."""
        self._require_open()
        self._synchronize()
        self._stream = stream.cuda_stream

    def follow(self, stream: torch.cuda.Stream) -> bool:
        """Be used on `stream` from here on; return whether that was a move, after a wait."""
        if self._stream in (None, stream.cuda_stream):
            return False
        self.use_stream(stream)
        return True

    def epochs(self) -> list[int]:
        """Return the epoch (int32, number of launches) of this rank, or of all virtual ranks."""
        self._synchronize()
        epochs: list[int] = self.words()[:, EPOCH_WORD].tolist()
        return epochs

    def arrivals(self) -> list[int]:
        """Return the arrival counter of this rank, or of all virtual ranks; 0 between calls."""
        self._synchronize()
        arrivals: list[int] = self.words()[:, ARRIVALS_WORD].tolist()
        return arrivals

    def words(self) -> torch.Tensor:
        """Return the heap as int32 [1, words], or [W, words] with virtual ranks. For tests."""
        import torch

        own = self._heap.own
        return (own if self.transport.virtual else own[None]).view(torch.int32)

    def cells(self) -> torch.Tensor:
        """Return the heap's cells as int16 [ranks here, 2, W, elements]. For tests, too."""
        import torch

        layout, w = self.layout, self.world_size
        whole = self.words().view(torch.int16)
        slots = whole[:, layout.slots // ELEMENT_BYTES : layout.receive // ELEMENT_BYTES]
        return slots.view(-1, SLOTS, w, layout.small_area)[..., -layout.cell_area :]

    def close(self) -> None:
        """Free the symmetric memory. Collective; a second close does nothing.

        After a PeerTimeoutError not all ranks may come here: then end the process instead.
        """
        if self._closed:
            return
        self._synchronize()
        self._closed = True
        del self._heap, self._ranks
        self.transport.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On the way out of an error the peers may be elsewhere, and a collective would hang.
        if error is None:
            self.close()

    # ------------------------------------------------------------------ for call.py, reduce.py

    def run(self, operands: Operands, *, product: bool = True) -> None:
        """Launch one call of at most max_tokens rows; shapes were checked.

        Without ``product`` x is [M, N], and only summed.

        Raises: RuntimeError, PeerTimeoutError as `gemm_allreduce`.
        """
        tokens, features = operands.y.shape[-2:]
        x = operands.x
        choice, grid = self._planned(tokens, features, x.shape[-1], x.dtype, product)
        with self._current_device():
            if product and not choice.variant.product:
                operands = multiplied(operands)
            self.kernels.launch(choice.variant, self._ranks, operands, grid, self._spin_limit)

    def _planned(
        self, tokens: int, features: int, depth: int, dtype: torch.dtype, product: bool
    ) -> tuple[Choice, Grid]:
        """Return what a call launches; what the package's own table says is remembered."""
        key = (tokens, features, depth, dtype, product)
        if (known := self._plans.get(key)) is not None:
            return known
        choice = self._choose(self._shape(tokens, features, depth, _OPERANDS[str(dtype)]))
        choice = choice if product else sum_only(choice)
        plan = choice, self.grid(choice, tokens, features)
        if self._dispatch is choose and len(self._plans) < _PLANS:
            self._plans[key] = plan
        return plan

    def _shape(self, tokens: int, features: int, depth: int, operand: Operand) -> Shape:
        dtype = _DTYPES[str(self.dtype)]
        processors = max(1, self._all_processors // self._sharing)
        return Shape(
            tokens, features, depth, self.world_size, self.arch, dtype, operand, processors
        )

    @property
    def _sharing(self) -> int:
        """Ranks on one GPU, as far as this process knows."""
        return self.world_size if self.transport.virtual else 1

    def _choose(self, shape: Shape) -> Choice:
        choice = self._dispatch(shape)
        self._require_fit(choice, shape)
        return choice

    def _require_fit(self, choice: Choice, shape: Shape) -> None:
        """What a kernel cannot check: it would write into another rank's part of the heap."""
        variant = choice.variant
        if (variant.world_size, variant.dtype, variant.operand) != (
            shape.world_size,
            shape.dtype,
            shape.operand,
        ):
            raise ValueError(f"dispatch chose {variant.name} for {shape}")
        most = self.layout.most_tokens(variant.algorithm)
        if most is not None and max(shape.tokens, variant.tile.block_m) > most:
            raise ValueError(
                f"dispatch chose {variant.name} for {shape.tokens} rows; "
                f"{variant.algorithm} serves {most}"
            )

    def _current_device(self) -> AbstractContextManager[object]:
        """Kernels are launched on the current device, whatever the operands' is."""
        device = self.transport.device
        if device.type != "cuda":
            return nullcontext()
        import torch

        if torch.cuda.current_device() == device.index:
            return nullcontext()
        return torch.cuda.device(device)

    def grid(self, choice: Choice, tokens: int, features: int) -> Grid:
        """Return the grid of one rank."""
        share = self._sharing
        resident = max(1, self._processors * choice.ctas_per_sm // share)
        interpreted = self.transport.device.type != "cuda"
        return plan_grid(choice, tokens, features, resident, in_order=interpreted, sharing=share)

    def require_usable(self) -> None:
        """Raise unless a call can be made here and now; costs no synchronization.

        Raises: RuntimeError when closed or on another stream; PeerTimeoutError after a failure.
        """
        self._require_open()
        self._raise_if_failed()
        if self.transport.device.type != "cuda":
            return
        import torch

        if self._capturing():
            return  # a capture has a stream of its own; where it is replayed is the caller's care
        stream = torch.cuda.current_stream(self.transport.device).cuda_stream
        if self._stream is None:
            self._stream = stream
        elif stream != self._stream:
            raise RuntimeError(
                "this workspace is used on another stream; calls on two streams could overlap: "
                "call workspace.use_stream(stream) to move, or make a second workspace"
            )

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("the workspace is closed")

    def _raise_if_failed(self) -> None:
        if not self._codes.any():
            return
        if not self._capturing():  # the record is whole once the kernel that wrote it has ended
            self._synchronize()
        failed = [r for r, code in enumerate(self._codes) if code]
        records = self._ranks.status[failed, : len(STATUS_FIELDS)].tolist()
        sentences = [
            describe_status(dict(zip(STATUS_FIELDS, record, strict=True))) for record in records
        ]
        raise PeerTimeoutError(
            f"{'; '.join(sentences)} (time limit {self.time_limit_s:g} s); "
            "end this process group and start again"
        )

    def _capturing(self) -> bool:
        if self.transport.device.type != "cuda":
            return False
        import torch

        with self._current_device():
            return torch.cuda.is_current_stream_capturing()

    def _synchronize(self) -> None:
        if self.transport.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.transport.device)


def _transport(ranks: ProcessGroup | Transport) -> Transport:
    if hasattr(ranks, "allocate"):
        return ranks  # type: ignore[return-value]
    import torch

    if torch.cuda.is_available():
        from .transports.nvshmem import NvshmemTransport

        return NvshmemTransport(ranks)
    from .transports.shared import SharedMemoryTransport

    return SharedMemoryTransport(ranks)


assert STATUS_WORD + len(STATUS_FIELDS) <= 64, "the status record must stay in the first page"
