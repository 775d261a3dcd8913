"""The checks on the ranks of one or several nodes, all in step: what torchrun starts on each rank.

torchrun --nnodes N --nproc-per-node G ... -m smoke_tests.node --out DIR

Rank 0 leads: it names the next check, all run it, all say what came of it. Every rank has a watch
(watch.py). Exit code 0, 1 a check failed or a rank died, 2 usage, 3 no torchrun, 6 a rank did not
come in time; torchrun itself makes 1 of all but 0, `python -m smoke_tests.launch` does not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

ROOT = Path(__file__).resolve().parent.parent
# As in conftest.py: an image has its own gemm_allreduce, and no checkout.
for _folder in (ROOT, ROOT / "kernels" / "src"):
    if _folder.is_dir() and str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

from smoke_tests.board import Board, BoardLostError, Failure  # noqa: E402
from smoke_tests.ending import FILE, Ending, verdict_of  # noqa: E402
from smoke_tests.everyone import CHECKS, integers_add_up_over_gloo  # noqa: E402
from smoke_tests.interfaces import link_to  # noqa: E402
from smoke_tests.kinds import Kind  # noqa: E402
from smoke_tests.launched import Launched  # noqa: E402
from smoke_tests.place import Place, PlaceError  # noqa: E402
from smoke_tests.rank_process import STEP_LIMIT_S  # noqa: E402
from smoke_tests.records import (  # noqa: E402
    Check,
    Measure,
    RankState,
    Record,
    Run,
    Tier,
    Writer,
    dump,
    load,
)
from smoke_tests.steps import Steps  # noqa: E402
from smoke_tests.watch import SILENT_S, Progress, Sibling, Watch  # noqa: E402

if TYPE_CHECKING:
    import torch

    from gemm_allreduce import Workspace
    from smoke_tests.ranks import Ranks

START_LIMIT_S: Final = 120.0
PEER_LIMIT_S: Final = 20.0
"""For a rank to wait for a peer within a call of the kernels."""
GRACE_S: Final = PEER_LIMIT_S + 10.0
"""For the other ranks, once one has failed."""
WORLDS: Final = (1, 2, 4, 8)
"""Numbers of ranks that the kernels are made for."""


@dataclass(frozen=True)
class Step:
    """What the leader names: one of everyone.py, where ``kind`` is empty, or of the kernels."""

    name: str
    check: str
    kind: str
    limit_s: float


@dataclass(frozen=True)
class Plant:
    """A fault to plant: the rank stops, or dies, where all ranks add up over gloo."""

    fault: str
    rank: int

    @classmethod
    def of(cls, text: str) -> Plant:
        """Read ``stall:RANK`` or ``die:RANK``."""
        fault, _, rank = text.partition(":")
        if fault not in ("stall", "die") or not rank.isdigit():
            raise argparse.ArgumentTypeError("expected stall:RANK or die:RANK")
        return cls(fault, int(rank))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; return the exit code, or end the process where the launch ends early."""
    given = _parser().parse_args(arguments)
    try:
        place = Place.of(os.environ)
    except PlaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    cpu = given.kind == "cpu"
    if not cpu and not _gpus():
        print("error: this node has no GPU; --kind cpu runs interpreted ranks", file=sys.stderr)
        return 3
    _prepare(place, cpu=cpu)
    return _Rank(place, given, cpu=cpu).work()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smoke_tests.node", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for run.jsonl")
    kind = "gpu (default), or cpu: Triton's interpreter"
    parser.add_argument("--kind", choices=("cpu", "gpu"), default="gpu", help=kind)
    parser.add_argument("--check", action="append", help="only this check; repeatable")
    parser.add_argument("--limit-s", type=float, help="for each check, in place of its own limit")
    parser.add_argument("--label", default="", help="name of the host in the report")
    parser.add_argument("--where", default="host", help="host, or image REF")
    parser.add_argument("--plant", type=Plant.of, help="stall:RANK or die:RANK, to see it caught")
    parser.add_argument("--silent-s", type=float, default=SILENT_S, help=argparse.SUPPRESS)
    return parser


def _gpus() -> int:
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _prepare(place: Place, *, cpu: bool) -> None:
    """Set what libraries read when they are first imported."""
    # The store's library writes a page of stack for every wait that ends without an answer.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if cpu:
        os.environ.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    if place.nodes > 1:
        for name, value in link_to(place.address, place.port).settings().items():
            os.environ.setdefault(name, value)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


class _Rank:
    """One rank's part."""

    def __init__(self, place: Place, given: argparse.Namespace, *, cpu: bool) -> None:
        self.place, self.given, self.cpu = place, given, cpu
        alone: Tier = "cpu" if cpu else "multi-gpu"
        self.tier: Tier = "multi-node" if place.nodes > 1 else alone
        self.progress = Progress()
        # A step within a check may take as long as the check: both are given by --limit-s.
        self.steps = Steps(place.rank, self.progress, STEP_LIMIT_S, given.limit_s or 0.0)
        self.workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()

    def work(self) -> int:
        """Meet, run the steps, part."""
        import torch
        import torch.distributed as dist

        torch.set_grad_enabled(False)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device = self._device()
        try:
            self.board = Board(self.place, START_LIMIT_S)
            facts = self._meet()
            run = self._run(facts)
        except BoardLostError as error:
            print(f"error: the ranks did not meet: {error}", file=sys.stderr)
            return 3
        self.given.out.mkdir(parents=True, exist_ok=True)
        others = {r: facts[r] for r in self.place.node_ranks if r != self.place.rank}
        siblings = {r: Sibling(f["pid"], f["started"]) for r, f in others.items()}
        self.ending = Ending(
            self.place,
            Board(self.place, START_LIMIT_S),
            self.progress,
            siblings,
            self.given.out,
            run,
            self.tier,
            self.workspaces,
        )
        watch = Watch(
            self.place,
            self.ending.board,
            self.progress,
            siblings,
            self.ending,
            self.given.silent_s,
        )
        self.board.post(f"beat/{self.place.rank}", [0, "start", -1])
        if not self.board.wait((f"beat/{r}" for r in self._all()), START_LIMIT_S):
            print("error: not all ranks came to the first step", file=sys.stderr)
            return 6
        watch.start()
        try:
            code = self._lead(facts, run) if self.place.rank == 0 else self._follow(facts)
        except BoardLostError:
            time.sleep(60)  # the watch has lost it too, and ends this process
            raise
        self.progress.done()
        watch.stop()
        # A process that is gone is a finding as long as any watch looks: all go together, and
        # last rank 0, whose agent keeps the store.
        with contextlib.suppress(BoardLostError):
            self.board.post(f"bye/{self.place.rank}", True)
            self.board.wait((f"bye/{r}" for r in self._all()), START_LIMIT_S)
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(code)  # a library's exit handlers may wait for peers that are gone

    def _device(self) -> torch.device:
        import torch

        if self.cpu:
            return torch.device("cpu")
        device = torch.device("cuda", self.place.local_rank % max(1, torch.cuda.device_count()))
        torch.cuda.set_device(device)
        return device

    def _meet(self) -> list[Mapping[str, Any]]:
        """Tell all what this rank is; return what everyone said, by rank."""
        from smoke_tests.report import machine

        own = Sibling.of(os.getpid())
        link = link_to(self.place.address, self.place.port)
        host = self.given.label or socket.gethostname()
        facts = machine() | {
            "host": host,
            "pid": own.pid,
            "started": own.started,
            "interface": link.interface,
            "family": link.family,
            "device": str(self.device),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }
        self.board.post(f"facts/{self.place.rank}", facts)
        keys = [f"facts/{rank}" for rank in range(self.place.world_size)]
        if not self.board.wait(keys, START_LIMIT_S):
            absent = [rank for rank, key in enumerate(keys) if self.board.read(key) is None]
            raise BoardLostError(f"within {START_LIMIT_S:g} s ranks {absent} did not start")
        return self.board.read_all(keys)

    def _run(self, facts: list[Mapping[str, Any]]) -> Run:
        """Return the run's record, which is the leader's on all ranks."""
        own = ("host", "pid", "started", "device", "visible")
        machine = {k: v for k, v in facts[0].items() if k not in own}
        size = self.place.local_size
        machine["nodes"] = [facts[r]["host"] for r in range(0, self.place.world_size, size)]
        machine["ranks_per_node"] = size
        if self.place.rank == 0:
            run = Run(facts[0]["host"], self.given.where, machine)
            self.board.post("run", dump(run))
            return run
        self.board.wait(["run"], START_LIMIT_S)
        run_of_leader = load(self.board.read("run"))
        assert isinstance(run_of_leader, Run)
        return run_of_leader

    def _lead(self, facts: list[Mapping[str, Any]], run: Run) -> int:
        records = self.ending.checks
        self.given.out.joinpath(FILE).unlink(missing_ok=True)
        with Writer(self.given.out / FILE) as writer:
            writer.write(run)
            for number, step in enumerate(self._steps(facts)):
                self.board.post(f"lead/{number}", asdict(step))
                begin = time.monotonic()
                self._take(number, step, facts)
                done = self._collect(number)
                found = self._judge(step, done, time.monotonic() - begin)
                self.board.post(f"check/{number}", [dump(record) for record in found])
                records += found
                for record in found:
                    writer.write(record)
                    _show(record)
            checks = [r for r in records if isinstance(r, Check)]
            code = 0 if all(c.outcome == "passed" for c in checks) else 1
            writer.write(verdict_of(self.tier, records, code))
        self.board.post(f"lead/{number + 1}", {"end": code})
        return code

    def _follow(self, facts: list[Mapping[str, Any]]) -> int:
        number = 0
        while True:
            # No limit: the leader's watch, and ours, look after the leader.
            while not self.board.wait([f"lead/{number}"], 5.0):
                pass
            told = self.board.read(f"lead/{number}")
            if "end" in told:
                return int(told["end"])
            self._take(number, Step(**told), facts)
            number += 1

    def _take(self, number: int, step: Step, facts: list[Mapping[str, Any]]) -> None:
        """Run a step; tell what came of it."""
        self.progress.begin(number, step.name, step.limit_s)
        self.board.post(f"began/{number}/{self.place.rank}", step.name)
        problem = detail = ""
        measures: list[Measure] = []
        try:
            launched = self._launched(facts, measures)
            detail = self._body(step)(launched)
        except Exception:
            problem = traceback.format_exc()[-4000:]
        self.progress.done()
        self.steps.rest()
        answer = {"problem": problem, "detail": detail, "measures": [dump(m) for m in measures]}
        answer["step"] = self.steps.failed_in if problem else ""
        self.board.post(f"done/{number}/{self.place.rank}", answer)

    def _body(self, step: Step) -> Callable[[Launched], str]:
        if not step.kind:
            check = CHECKS[step.check]
            if self.given.plant and check is integers_add_up_over_gloo:
                self._fault(self.given.plant)
            return check
        from smoke_tests.checks.registry import load as load_checks

        body = load_checks()[step.check].body
        kind: Kind = step.kind  # type: ignore[assignment]
        return lambda launched: str(body(launched.ranks(kind)) or "")

    def _fault(self, plant: Plant) -> None:
        if plant.rank != self.place.rank:
            return
        if plant.fault == "die":
            os.kill(os.getpid(), 9)
        time.sleep(3600)

    def _collect(self, number: int) -> list[Mapping[str, Any]]:
        """Return every rank's answer; end the launch if one has failed and the rest do not come.

        A rank that is late, or dead, is the watches' to find.
        """
        keys = [f"done/{number}/{rank}" for rank in range(self.place.world_size)]
        grace: float | None = None
        while not self.board.wait(keys, 1.0):
            if grace is None:
                said = [self.board.read(key) for key in keys]
                if any(answer and answer["problem"] for answer in said):
                    grace = time.monotonic() + GRACE_S
            elif time.monotonic() > grace:
                self.board.first("failure", Failure("failed", number).as_dict())
                time.sleep(60)  # the watch ends this process
        return self.board.read_all(keys)

    def _judge(
        self, step: Step, done: list[Mapping[str, Any]], seconds: float
    ) -> list[Check | Measure]:
        failed = tuple(
            RankState(rank, "failed", answer["step"], answer["problem"])
            for rank, answer in enumerate(done)
            if answer["problem"]
        )
        check = Check(
            self.tier,
            step.name,
            "failed" if failed else "passed",
            round(seconds, 3),
            failed[0].detail if failed else done[0]["detail"],
            failed,
        )
        measures = [load(text) for text in done[0]["measures"]]
        return [check, *(m for m in measures if isinstance(m, Measure))]

    def _steps(self, facts: list[Mapping[str, Any]]) -> list[Step]:
        """Return what is to be run: from everyone's versions to the kernels of each node."""
        from smoke_tests.checks.registry import load as load_checks

        place, limit_s = self.place, self.given.limit_s
        prefix = f"n{place.nodes}-w{place.world_size}"
        steps = [
            Step(f"{prefix}-{name}", name, "", limit_s or START_LIMIT_S)
            for name in CHECKS
            if not name.endswith("nccl") or self._own_gpus(facts)
        ]
        kinds: tuple[Kind, ...] = ("cpu",) if self.cpu else ("nvshmem", "symmetric")
        if not self.cpu and not self._own_gpus(facts):
            kinds = ("nvshmem",)
        for kind in kinds if place.local_size in WORLDS else ():
            for check in load_checks().values():
                fits = kind in check.kinds and place.local_size >= check.least_ranks
                # Nodes may differ in further packages, and transformers splits over all ranks.
                fits = fits and not check.needs
                if fits and not check.ends_ranks and not check.needs_cubins:
                    name = f"n{place.nodes}-{kind}-w{place.local_size}-{check.name}"
                    steps.append(Step(name, check.name, kind, limit_s or check.time_limit_s))
        wanted = self.given.check
        return [step for step in steps if not wanted or step.check in wanted]

    def _own_gpus(self, facts: list[Mapping[str, Any]]) -> bool:
        """Whether every rank has a GPU of its own: NCCL and PyTorch's symmetric memory need one."""
        if self.cpu:
            return False
        places = {(facts[r]["host"], facts[r]["visible"], facts[r]["device"]) for r in self._all()}
        return len(places) == self.place.world_size

    def _all(self) -> range:
        return range(self.place.world_size)

    def _launched(self, facts: list[Mapping[str, Any]], measures: list[Measure]) -> Launched:
        import torch.distributed as dist

        if not dist.is_initialized():
            self._connect()
        return Launched(
            self.place,
            self.tier,
            facts,
            self.device,
            self.everyone,
            self.node,
            (lambda: dist.new_group(backend="nccl")) if self._own_gpus(facts) else None,
            lambda kind: self._ranks(kind, measures),
            self.steps.step,
            measures,
        )

    def _connect(self) -> None:
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        # Longer than any step may take: the watch is to say who is late, not gloo.
        limit = timedelta(seconds=1800)
        store = PrefixStore("smoke-groups", Board(self.place, START_LIMIT_S).store)
        with self.steps.step("meet over gloo", START_LIMIT_S):
            dist.init_process_group(
                "gloo",
                store=store,
                rank=self.place.rank,
                world_size=self.place.world_size,
                timeout=limit,
            )
        assert dist.group.WORLD is not None
        self.everyone = dist.group.WORLD
        size = self.place.local_size
        with self.steps.step("meet within the node", START_LIMIT_S):
            self.node, _ = dist.new_subgroups(size, timeout=limit, backend="gloo")  # type: ignore[no-untyped-call]

    def _ranks(self, kind: Kind, measures: list[Measure]) -> Ranks:
        from smoke_tests.rank_process import transport_of
        from smoke_tests.ranks import Ranks

        place = self.place
        return Ranks(
            kind,
            place.local_size,
            place.local_rank,
            self.node,
            self.device,
            lambda: transport_of(kind, place.local_size, self.node, self.device),
            PEER_LIMIT_S,
            tier=self.tier,
            steps=self.steps,
            measures=measures,
            workspaces=self.workspaces,
        )


def _show(record: Record) -> None:
    if isinstance(record, Check):
        print(
            f"{record.name}: {record.outcome}, {record.seconds:.1f} s {record.detail}", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
