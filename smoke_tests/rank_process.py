"""One rank's process: it connects, then runs checks until it is told to end."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_tests.kinds import Kind
from smoke_tests.leash import die_with_parent
from smoke_tests.outcome import Outcome
from smoke_tests.records import Tier
from smoke_tests.steps import Plant, ProgressBoard, Steps

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from gemm_allreduce import Workspace
    from gemm_allreduce.transports import Transport
    from smoke_tests.ranks import Ranks

BOARD = "board"
START_LIMIT_S = 120.0
STEP_LIMIT_S = 90.0


@dataclass(frozen=True)
class Job:
    """What a rank's process is given.

    Attributes:
        folder: where the ranks meet, and where their board and stacks lie.
        environment: all of it.
        time_limit_s: for how long the rank waits for a peer within a call.
        step_limit_s: of every collective step; 0 leaves each its own.
        parent: the process that it must not outlive, where that is what started it.
        tier: whose the numbers are that a check measures.
    """

    kind: Kind
    world_size: int
    rank: int
    time_limit_s: float
    step_limit_s: float
    folder: str
    environment: Mapping[str, str]
    plant: Plant | None
    parent: int
    tier: Tier


def serve(job: Job, pipe: Connection, questions: Connection) -> None:
    """Connect, then run what comes through the pipe; ``questions`` are answered meanwhile."""
    die_with_parent(parent=job.parent)
    # An interruption is the parent's, which then ends its ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(job.environment)
    # The parent's path came with the process; PYTHONPATH decides.
    sys.path[:0] = [p for p in os.environ["PYTHONPATH"].split(os.pathsep) if p]
    stacks = Path(job.folder, f"stacks-{job.rank}").open("w")  # noqa: SIM115 - as long as the process
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    board = ProgressBoard(Path(job.folder, BOARD), job.world_size)
    steps = Steps(job.rank, board, STEP_LIMIT_S, job.step_limit_s, job.plant)
    workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()
    threading.Thread(target=_answer, args=(questions, workspaces), daemon=True).start()
    begin = time.monotonic()
    try:
        ranks = connect_ranks(
            job.kind, job.world_size, job.rank, job.time_limit_s, job.folder, steps
        )
        ranks = replace(ranks, workspaces=workspaces, tier=job.tier)
        with steps.step("load the checks"):
            from smoke_tests.checks.registry import load

            checks = load()
    except BaseException:
        pipe.send(Outcome(job.rank, "failed", traceback.format_exc(), step=steps.failed_in))
        return
    package = str(sys.modules["gemm_allreduce"].__file__)
    steps.rest()
    pipe.send(Outcome(job.rank, "passed", package, time.monotonic() - begin))
    while (check := pipe.recv()) is not None:
        begin = time.monotonic()
        ranks.measures.clear()
        try:
            body = checks[check].body if isinstance(check, str) else check
            detail, state, step = str(body(ranks) or ""), "passed", ""
        except Exception:
            detail, state, step = traceback.format_exc(), "failed", steps.failed_in
        steps.rest()
        seconds, measures = time.monotonic() - begin, tuple(ranks.measures)
        pipe.send(Outcome(job.rank, state, detail, seconds, step, measures))  # type: ignore[arg-type]
    # Not through the interpreter's shutdown: a library's exit handlers may wait for dead peers.
    pipe.close()
    os._exit(0)


def _answer(questions: Connection, workspaces: weakref.WeakSet[Workspace]) -> None:
    """Tell what the workspaces' status words are, while the main thread may be stuck."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            questions.recv()
            questions.send([status_of(workspace) for workspace in list(workspaces)])
    os._exit(1)  # who asks is gone


def status_of(workspace: Workspace) -> dict[str, Any]:
    """Return a workspace's status words, and of one in this host's memory its counters.

    A GPU that hangs is not asked: an answer could take for ever.
    """
    from gemm_allreduce.layout import ARRIVALS_WORD, EPOCH_WORD, STATUS_FIELDS

    found: dict[str, Any] = {"world_size": workspace.world_size, "closed": workspace._closed}
    if workspace._closed:
        return found
    records = workspace._ranks.status.tolist()
    fields = [dict(zip(STATUS_FIELDS, record, strict=False)) for record in records]
    found["status"] = [record for record in fields if any(record.values())]
    if workspace.device.type == "cpu":
        words = workspace.words()
        found["epoch"] = words[:, EPOCH_WORD].tolist()
        found["arrivals"] = words[:, ARRIVALS_WORD].tolist()
    return found


def connect_ranks(
    kind: Kind,
    world_size: int,
    rank: int,
    time_limit_s: float,
    folder: str,
    steps: Steps | None = None,
) -> Ranks:
    """Make a process, this one, take its place among the ranks; return what a check sees of them.

    ``folder`` is where the processes meet; unused where ranks are virtual.
    """
    steps = steps or Steps(rank)
    with steps.step("import torch and the kernels", START_LIMIT_S):
        import torch
        import torch.distributed as dist

        from gemm_allreduce.jit import JitKernels
        from smoke_tests.ahead import compile_ahead
        from smoke_tests.ranks import Ranks

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu")
    if kind != "cpu":
        with steps.step("take a GPU", START_LIMIT_S):
            device = torch.device("cuda", rank % max(1, torch.cuda.device_count()))
            torch.cuda.set_device(device)
    group = None
    if kind != "virtual":
        with steps.step("meet the other ranks", START_LIMIT_S):
            dist.init_process_group(
                "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
            )
        group = dist.group.WORLD

    def connect() -> Transport:
        return transport_of(kind, world_size, group, device)

    ranks = Ranks(
        kind, world_size, rank, group, device, connect, time_limit_s, steps=steps, folder=folder
    )
    if kind != "cpu" and rank == 0 and ranks.kernels.identity == JitKernels.identity:
        with steps.step("compile kernels", START_LIMIT_S):
            compile_ahead(ranks.variants, ranks.arch, START_LIMIT_S / 2)
    return ranks


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
