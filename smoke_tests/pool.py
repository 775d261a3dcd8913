"""Rank processes that run checks: started once, fed by name, killed when they hang."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smoke_tests.kinds import Kind

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from gemm_allreduce.transports import Transport
    from smoke_tests.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 120.0
GRACE_S = 10.0
"""For the other ranks, once one has failed: beyond the ranks' own time limit."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check on one process. ``left``: it still waited for one that had failed."""

    rank: int
    state: Literal["passed", "failed", "died", "hung", "left"]
    detail: str = ""
    seconds: float = 0.0


class Pool:
    """Processes of one kind and number of ranks; one process where ranks are virtual.

    ``sources`` goes first on their module path: an altered gemm_allreduce, for controls.
    ``time_limit_s`` is for how long a rank of it waits for a peer.
    """

    def __init__(
        self,
        kind: Kind,
        world_size: int,
        sources: Path | None = None,
        time_limit_s: float = 20.0,
    ) -> None:
        self.kind, self.world_size = kind, world_size
        self._grace_s = time_limit_s + GRACE_S
        self._folder = tempfile.TemporaryDirectory(prefix="smoke-")
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._pipes: list[Connection] = []
        with _environment(kind, sources):
            for rank in range(1 if kind == "virtual" else world_size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(kind, world_size, rank, time_limit_s, self._folder.name, theirs),
                    daemon=True,
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        self.started = self._collect(START_LIMIT_S)

    @property
    def usable(self) -> bool:
        """Whether all processes have started and none has died or hung since."""
        return all(outcome.state == "passed" for outcome in self.started) and all(
            process.is_alive() for process in self._processes
        )

    def run(self, check: str | Callable[[Ranks], Any], limit_s: float) -> list[Outcome]:
        """Run a check on all processes; return every rank's outcome, in order.

        ``check`` is a registered name, or anything else that can be pickled and called.

        A process that has not answered after the limit is asked for its stacks, then killed.
        """
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a dead one is reported below
                pipe.send(check)
        return self._collect(limit_s)

    def close(self) -> None:
        """End all processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()

    def _collect(self, limit_s: float) -> list[Outcome]:
        deadline = time.monotonic() + limit_s
        outcomes: dict[int, Outcome] = {}
        open_pipes = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        failure = False
        while open_pipes:
            ready = wait(list(open_pipes), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = open_pipes.pop(pipe)
                outcomes[rank] = self._receive(pipe, rank)
                if outcomes[rank].state != "passed" and not failure:
                    failure = True
                    deadline = min(deadline, time.monotonic() + self._grace_s)
        for rank in open_pipes.values():
            state: Literal["left", "hung"] = "left" if failure else "hung"
            outcomes[rank] = Outcome(rank, state, self._stacks(rank), limit_s)
        for rank in open_pipes.values():
            self._processes[rank].kill()
        return [outcomes[rank] for rank in sorted(outcomes)]

    def _receive(self, pipe: Connection, rank: int) -> Outcome:
        try:
            outcome = pipe.recv()
        except (EOFError, OSError):
            self._processes[rank].join(10)
            return Outcome(rank, "died", f"exit code {self._processes[rank].exitcode}")
        assert isinstance(outcome, Outcome)
        return outcome

    def _stacks(self, rank: int) -> str:
        process = self._processes[rank]
        if process.pid is None or not process.is_alive():
            return "gone"
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.5)
        with contextlib.suppress(OSError):
            return Path(self._folder.name, f"stacks-{rank}").read_text()[-4000:]
        return ""


@contextlib.contextmanager
def _environment(kind: Kind, sources: Path | None) -> Iterator[None]:
    """What a new process must find set before its first import."""
    saved = dict(os.environ)
    path = [str(p) for p in (sources, ROOT / "kernels" / "src", ROOT) if p and p.is_dir()]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, saved.get("PYTHONPATH", "")]).strip(":")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if kind == "cpu":
        # One thread each: idle workers would spin on the cores that other ranks need.
        os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def _serve(
    kind: Kind, world_size: int, rank: int, time_limit_s: float, folder: str, pipe: Connection
) -> None:
    """One rank's process: connect, then run checks until told to end."""
    # The parent's path came with the process; PYTHONPATH decides.
    sys.path[:0] = [p for p in os.environ["PYTHONPATH"].split(os.pathsep) if p]
    stacks = Path(folder, f"stacks-{rank}").open("w")  # noqa: SIM115 - as long as the process
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    begin = time.monotonic()
    try:
        ranks = connect_ranks(kind, world_size, rank, time_limit_s, folder)
        from smoke_tests.checks.registry import load

        checks = load()
    except BaseException:
        pipe.send(Outcome(rank, "failed", traceback.format_exc()))
        return
    package = str(sys.modules["gemm_allreduce"].__file__)
    pipe.send(Outcome(rank, "passed", package, time.monotonic() - begin))
    while (check := pipe.recv()) is not None:
        begin = time.monotonic()
        try:
            body = checks[check].body if isinstance(check, str) else check
            detail = str(body(ranks) or "")
            outcome = Outcome(rank, "passed", detail, time.monotonic() - begin)
        except Exception:
            outcome = Outcome(rank, "failed", traceback.format_exc(), time.monotonic() - begin)
        pipe.send(outcome)
    # Not through the interpreter's shutdown: a library's exit handlers may wait for dead peers.
    pipe.close()
    os._exit(0)


def connect_ranks(
    kind: Kind, world_size: int, rank: int, time_limit_s: float, folder: str
) -> Ranks:
    """Make a process, this one, take its place among the ranks; return what a check sees of them.

    ``folder`` is where the processes meet; unused where ranks are virtual.
    """
    import torch
    import torch.distributed as dist

    from smoke_tests.ranks import Ranks

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu")
    if kind != "cpu":
        device = torch.device("cuda", rank % max(1, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    group = None
    if kind != "virtual":
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
        )
        group = dist.group.WORLD

    def connect() -> Transport:
        return transport_of(kind, world_size, group, device)

    return Ranks(kind, world_size, rank, group, device, connect, time_limit_s)


def transport_of(
    kind: Kind, world_size: int, group: ProcessGroup | None, device: torch.device
) -> Transport:
    """Return the transport of a kind of ranks; collective over the group."""
    if kind == "virtual":
        from gemm_allreduce.transports.virtual import VirtualTransport

        return VirtualTransport(world_size, device)
    assert group is not None
    if kind == "cpu":
        from gemm_allreduce.transports.shared import SharedMemoryTransport

        return SharedMemoryTransport(group)
    if kind == "nvshmem":
        from gemm_allreduce.transports.nvshmem import NvshmemTransport

        return NvshmemTransport(group, device)
    from gemm_allreduce.transports.symmetric import SymmetricMemoryTransport

    return SymmetricMemoryTransport(group, device)
