"""Rank processes that run checks: started once, fed by name, watched, ended when they hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoke_tests import leftovers
from smoke_tests.evidence import shown
from smoke_tests.kinds import Kind
from smoke_tests.leash import is_stopped
from smoke_tests.outcome import Outcome, Traces
from smoke_tests.rank_process import BOARD, START_LIMIT_S, Job, serve
from smoke_tests.records import Tier
from smoke_tests.steps import Plant, Progress, ProgressBoard

if TYPE_CHECKING:
    from smoke_tests.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent
GRACE_S = 10.0
"""For the other ranks, once one has failed: beyond the ranks' own time limit."""
_LOOK_S = 0.2
_TRACES_S = 2.0
_CLOSE_S = 2.0
_STACKS = 16000


class Pool:
    """Processes of one kind and number of ranks; one process where ranks are virtual.

    Args:
        sources: goes first on their module path: an altered gemm_allreduce, for planted faults.
        time_limit_s: for how long a rank of it waits for a peer within a call.
        step_limit_s: of every collective step; 0 leaves each its own.
        one_gpu: all ranks share the first GPU, unless CUDA_VISIBLE_DEVICES is set.
        plant: a rank ends or stops itself at a step.
        tier: whose the numbers are that its checks measure.
        grace_s: for the other ranks once one has failed; None is time_limit_s and 10 more.

    Attributes:
        environment: what the ranks were started with, as evidence may show it.
    """

    def __init__(
        self,
        kind: Kind,
        world_size: int,
        sources: Path | None = None,
        time_limit_s: float = 20.0,
        *,
        step_limit_s: float = 0.0,
        one_gpu: bool = False,
        plant: Plant | None = None,
        tier: Tier = "cpu",
        grace_s: float | None = None,
    ) -> None:
        self.kind, self.world_size = kind, world_size
        self._grace_s = time_limit_s + GRACE_S if grace_s is None else grace_s
        self._shm, self._killed, self._busy = leftovers.present(), False, False
        # The name says whose it is: whoever waits for this process removes what it leaves.
        self._folder = tempfile.TemporaryDirectory(prefix=f"smoke-{os.getpid()}-")
        self._board = ProgressBoard(Path(self._folder.name, BOARD), world_size)
        self._processes = []
        self._pipes: list[Connection] = []
        self._questions: list[Connection] = []
        with _environment(kind, sources, one_gpu=one_gpu):
            self.environment = shown(os.environ)
            context, parent = _context(kind, sources)
            for rank in range(1 if kind == "virtual" else world_size):
                pipe, theirs = context.Pipe()
                questions, answers = context.Pipe()
                job = Job(
                    kind,
                    world_size,
                    rank,
                    time_limit_s,
                    step_limit_s,
                    self._folder.name,
                    dict(os.environ),
                    plant,
                    parent,
                    tier,
                )
                process = context.Process(target=serve, args=(job, theirs, answers), daemon=True)
                process.start()
                theirs.close()
                answers.close()
                self._processes.append(process)
                self._pipes.append(pipe)
                self._questions.append(questions)
        self.started = self._collect(START_LIMIT_S)

    @property
    def usable(self) -> bool:
        """Whether all processes have started and none has died or hung since."""
        return all(outcome.state == "passed" for outcome in self.started) and all(
            process.is_alive() for process in self._processes
        )

    @property
    def pids(self) -> list[int]:
        """The processes, by rank."""
        return [process.pid or 0 for process in self._processes]

    def run(self, check: str | Callable[[Ranks], Any], limit_s: float) -> list[Outcome]:
        """Run a check on all processes; return every rank's outcome, in order.

        ``check`` is a registered name, or anything else that can be pickled and called.

        When the limit, or that of a step, is over, all ranks are asked for their stacks and their
        workspaces' status; those that have not answered are killed.
        """
        self._busy = True
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a dead one is reported below
                pipe.send(check)
        outcomes = self._collect(limit_s)
        self._busy = False
        return outcomes

    def place(self, rank: int) -> Progress:
        """Return where a rank is, or was when it ended."""
        return self._board.read(rank)

    def close(self) -> None:
        """End all processes; leave nothing of theirs."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        # After an interruption they are in the middle of a check, and do not listen.
        deadline = time.monotonic() + (0 if self._busy else _CLOSE_S)
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                self._killed = True
                process.kill()
        for process in self._processes:
            process.join(_CLOSE_S)
        for pipe in (*self._pipes, *self._questions):
            pipe.close()
        self._folder.cleanup()
        if self._killed or any(process.exitcode for process in self._processes):
            leftovers.sweep(self._shm)

    def _collect(self, limit_s: float) -> list[Outcome]:
        deadline = time.monotonic() + limit_s
        outcomes: dict[int, Outcome] = {}
        open_pipes = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        failure = False
        while open_pipes and (now := time.monotonic()) < deadline:
            if any(self._board.read(rank).deadline < now for rank in open_pipes.values()):
                break
            for pipe in wait(list(open_pipes), min(_LOOK_S, deadline - now)):
                assert isinstance(pipe, Connection)
                rank = open_pipes.pop(pipe)
                outcomes[rank] = self._receive(pipe, rank)
                if outcomes[rank].state != "passed" and not failure:
                    failure = True
                    deadline = min(deadline, time.monotonic() + self._grace_s)
        if open_pipes:
            outcomes |= self._unanswered(list(open_pipes.values()), outcomes, limit_s)
        return [outcomes[rank] for rank in sorted(outcomes)]

    def _receive(self, pipe: Connection, rank: int) -> Outcome:
        try:
            outcome = pipe.recv()
        except (EOFError, OSError):
            self._processes[rank].join(10)
            code = self._processes[rank].exitcode
            return Outcome(rank, "died", _ended(code), step=self._board.read(rank).step)
        assert isinstance(outcome, Outcome)
        return outcome

    def _unanswered(
        self, ranks: Sequence[int], known: dict[int, Outcome], limit_s: float
    ) -> dict[int, Outcome]:
        """Say of the ranks that have not answered why, take their traces, and end them."""
        now = time.monotonic()
        stopped = {r for r in ranks if is_stopped(self.pids[r])}
        places = {r: self._board.read(r) for r in ranks}
        guilty = culprits(places, stopped, known)
        traces = self._traces(range(len(self._processes))) if guilty else {}
        self._killed = True
        for rank in ranks:
            self._processes[rank].kill()
        found = dict[int, Outcome]()
        for rank, place in places.items():
            seconds = now - place.begin if place.step else limit_s
            detail = f"for {seconds:.1f} s" + (", stopped by a signal" if rank in stopped else "")
            if rank in guilty:
                found[rank] = Outcome(rank, "hung", detail, seconds, _step(place))
            else:
                found[rank] = Outcome(rank, "left", detail, seconds, _step(place))
        for rank, outcome in {**known, **found}.items():
            if rank in traces:
                found[rank] = replace(outcome, traces=traces[rank])
        return found

    def _traces(self, ranks: Sequence[int]) -> dict[int, Traces]:
        """Ask every process that lives for its stacks and its workspaces' status."""
        asked = []
        for rank in ranks:
            if not self._processes[rank].is_alive():
                continue
            with contextlib.suppress(OSError):
                os.kill(self.pids[rank], signal.SIGUSR1)
                # One that is stopped writes its stacks, where it stopped, once it goes on.
                os.kill(self.pids[rank], signal.SIGCONT)
                self._questions[rank].send(None)
                asked.append(rank)
        deadline = time.monotonic() + _TRACES_S
        status: dict[int, Any] = {}
        while len(status) < len(asked) and (now := time.monotonic()) < deadline:
            for pipe in wait(
                [self._questions[r] for r in asked if r not in status], deadline - now
            ):
                assert isinstance(pipe, Connection)
                try:
                    status[self._questions.index(pipe)] = {"workspaces": pipe.recv()}
                except (EOFError, OSError) as error:
                    status[self._questions.index(pipe)] = {"problem": f"no answer: {error!r}"}
        # Written by a signal's handler: not at once, and not in one piece.
        sizes: list[int] = []
        while time.monotonic() < deadline:
            before, sizes = sizes, self._sizes(asked)
            if sizes == before and 0 not in sizes:
                break
            time.sleep(0.05)
        silent = {"problem": f"no answer within {_TRACES_S:g} s"}
        return {r: Traces(self._stacks(r), status.get(r, silent)) for r in asked}

    def _sizes(self, ranks: Sequence[int]) -> list[int]:
        return [len(self._stacks(rank)) for rank in ranks]

    def _stacks(self, rank: int) -> str:
        with contextlib.suppress(OSError):
            return Path(self._folder.name, f"stacks-{rank}").read_text()[:_STACKS]
        return ""


def culprits(places: dict[int, Progress], stopped: set[int], known: dict[int, Outcome]) -> set[int]:
    """Return who of the ranks that have not answered keeps the others waiting. Pure.

    One that is stopped; else those that have begun the fewest steps. Where a rank has died, or has
    failed by itself and not by waiting for a peer, the others wait for that one.
    """
    if stopped:
        return stopped
    bad = [outcome for outcome in known.values() if outcome.state != "passed"]
    if not all(o.state == "failed" and "PeerTimeoutError" in o.detail for o in bad):
        return set()
    fewest = min(place.number for place in places.values())
    return {rank for rank, place in places.items() if place.number == fewest}


def _step(place: Progress) -> str:
    return place.step or "between two steps"


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _context(kind: Kind, sources: Path | None) -> tuple[ForkServerContext | SpawnContext, int]:
    """Return how processes are started, and who is then their parent; 0 for another process.

    Interpreted ranks are forked from one process that has imported what they need. A GPU cannot
    be used in a forked process that knew it before, and altered sources need their own imports.
    """
    if kind != "cpu" or sources:
        return multiprocessing.get_context("spawn"), os.getpid()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["smoke_tests.preloaded"])
    return context, 0


@contextlib.contextmanager
def _environment(kind: Kind, sources: Path | None, *, one_gpu: bool) -> Iterator[None]:
    """What a new process must find set before its first import."""
    saved = dict(os.environ)
    path = [str(p) for p in (sources, ROOT / "kernels" / "src", ROOT) if p and p.is_dir()]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, saved.get("PYTHONPATH", "")]).strip(":")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if one_gpu:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if kind != "virtual":
        # One thread each: idle workers would spin on the cores that other ranks need.
        os.environ["OMP_NUM_THREADS"] = "1"
    if kind == "cpu":
        os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
