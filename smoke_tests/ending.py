"""How a launch ends early: every rank leaves evidence, one of them writes the report, all go.

The first rank that lives writes. Without a store there is no agreeing on who that is: then each
rank, in its turn, tries to be the first to claim the folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from smoke_tests.blame import blame
from smoke_tests.board import Board, BoardLostError, Failure
from smoke_tests.evidence import shown, topology
from smoke_tests.place import Place
from smoke_tests.records import (
    Check,
    Evidence,
    Record,
    Run,
    Tier,
    TierOutcome,
    Verdict,
    dump,
    load,
)
from smoke_tests.watch import Progress, Sibling

if TYPE_CHECKING:
    from gemm_allreduce import Workspace

FILE: Final = "run.jsonl"
_EVIDENCE_S: Final = 3.0
_TURN_S: Final = 0.3


@dataclass
class Ending:
    """What a rank needs to know when the launch ends early."""

    place: Place
    board: Board
    progress: Progress
    siblings: Mapping[int, Sibling]
    folder: Path
    run: Run
    tier: Tier
    workspaces: Iterable[Workspace] = ()
    checks: list[Record] = field(default_factory=list)
    """What the leader has written by now; empty on other ranks."""

    def __call__(self, failure: Failure) -> NoReturn:
        """Leave evidence, see that a report is written, and end this process."""
        # Whatever goes wrong from here on, and if the interpreter itself is stuck: it ends.
        faulthandler.dump_traceback_later(4 * _EVIDENCE_S, exit=True)
        try:
            evidence = self._evidence()
            try:
                self._together(failure, evidence)
            except BoardLostError:
                self._alone(failure, evidence)
        finally:
            os._exit(failure.exit_code)

    def _together(self, failure: Failure, evidence: Evidence) -> None:
        place, board = self.place, self.board
        if failure.state == "hung" and self.progress.in_check:
            late = [self.progress.steps, self.progress.where()]
            board.post(f"late/{failure.step}/{place.rank}", late)
        board.post(f"evidence/{place.rank}", dump(evidence))
        dead = set(failure.ranks) if failure.state == "died" else set()
        others = [r for r in range(place.world_size) if r not in dead | {place.rank}]
        deadline = time.monotonic() + _EVIDENCE_S
        while time.monotonic() < deadline:
            if all(board.read(f"evidence/{rank}") for rank in others):
                break
            time.sleep(0.1)
        found = {rank: board.read(f"evidence/{rank}") for rank in range(place.world_size)}
        present = [rank for rank, text in found.items() if text]
        if place.rank == min(present):
            texts = [text for text in found.values() if text]
            self._report(failure, self._told(failure), [load(text) for text in texts])
            board.post("reported", True)
        elif not board.wait(["reported"], _EVIDENCE_S):
            self._report(failure, self._told(failure), [evidence])
        if place.rank == min(r for r in place.node_ranks if r in {*present, place.rank}):
            if not self._is_reported():  # the folder is this node's own
                texts = [text for text in found.values() if text]
                self._report(failure, self._told(failure), [load(text) for text in texts])
            # Who has said nothing is stopped or stuck, and nobody else would end it.
            for rank, sibling in self.siblings.items():
                if rank not in present:
                    sibling.kill()

    def _alone(self, failure: Failure, evidence: Evidence) -> None:
        time.sleep(_TURN_S * min(self.place.rank, 8))
        with contextlib.suppress(FileExistsError):
            self.folder.joinpath(f".{self.run.id}").touch(exist_ok=False)
            where = {self.place.rank: self.progress.where()}
            states = blame(failure, self.place.world_size, {}, {}, where)
            step = Check(
                self.tier,
                self.progress.check,
                "died" if failure.state == "died" else "hung",
                0.0,
                "the ranks lost each other: this is what one of them knew",
                states,
            )
            self._report(failure, [*self._before(), step], [evidence])

    def _before(self) -> list[Record]:
        """What was written before, by this rank or, in a shared folder, by the leader."""
        if self.checks:
            return list(self.checks)
        with contextlib.suppress(OSError, ValueError):
            lines = self.folder.joinpath(FILE).read_text().splitlines()
            records = [load(line) for line in lines]
            if isinstance(records[0], Run) and records[0].id == self.run.id:
                return records[1:]
        return []

    def _is_reported(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            lines = self.folder.joinpath(FILE).read_text().splitlines()
            first, last = load(lines[0]), load(lines[-1])
            return isinstance(first, Run) and first.id == self.run.id and isinstance(last, Verdict)
        return False

    def _told(self, failure: Failure) -> list[Record]:
        """Every finished step as the leader told it, and the one that did not end."""
        board, ranks = self.board, range(self.place.world_size)
        records: list[Record] = []
        for step in range(max(0, failure.step)):
            records += [load(text) for text in board.read(f"check/{step}") or []]
        n = failure.step
        done = {r: text for r in ranks if (text := board.read(f"done/{n}/{r}")) is not None}
        late = {r: (at[0], at[1]) for r in ranks if (at := board.read(f"late/{n}/{r}"))}
        where = {r: self._last_seen(r, n) for r in ranks}
        said = {rank: value["problem"] for rank, value in done.items()}
        states = blame(failure, self.place.world_size, said, late, where)
        lead = board.read(f"lead/{n}") or {"name": self.progress.check, "limit_s": 0.0}
        worst = failure.state
        records.append(Check(self.tier, lead["name"], worst, lead["limit_s"], "", states))
        return records

    def _last_seen(self, rank: int, step: int) -> str:
        """Return where a rank was by its last beat, or what it began since."""
        beat = self.board.read(f"beat/{rank}")
        if beat and beat[2] == step:
            return str(beat[1])
        return str(self.board.read(f"began/{step}/{rank}") or "")

    def _report(self, failure: Failure, records: list[Record], evidence: list[Record]) -> None:
        step = next((r.name for r in reversed(records) if isinstance(r, Check)), "")
        kept = [
            Evidence(step, e.rank, e.stacks, e.status, e.environment, e.topology)
            for e in evidence
            if isinstance(e, Evidence)
        ]
        verdict = verdict_of(self.tier, records, failure.exit_code)
        lines = [dump(r) for r in (self.run, *records, *kept, verdict)]
        target = self.folder / FILE
        temporary = target.with_name(f".{FILE}.{self.place.rank}")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(target)

    def _evidence(self) -> Evidence:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()[-16000:]
        gpus = any(Path("/dev").glob("nvidia[0-9]*"))
        return Evidence(
            self.progress.check,
            self.place.rank,
            stacks,
            {"where": self.progress.where(), "workspaces": self._status()},
            shown(os.environ),
            topology(gpus) if self.place.local_rank == 0 else "",
        )

    def _status(self) -> list[dict[str, Any]]:
        from smoke_tests.rank_process import status_of

        found = []
        for workspace in list(self.workspaces):
            with contextlib.suppress(Exception):  # it may be half made, or half closed
                found.append(status_of(workspace))
        return found


def verdict_of(tier: Tier, records: list[Record], exit_code: int) -> Verdict:
    """Return the last line of a run. Pure."""
    checks = [r for r in records if isinstance(r, Check)]
    counts: dict[str, int] = {}
    for check in checks:
        counts[check.outcome] = counts.get(check.outcome, 0) + 1
    outcome: TierOutcome = "failed" if exit_code else "passed"
    return Verdict(exit_code, {tier: outcome}, counts)
