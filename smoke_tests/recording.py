"""The records of a run of pytest: written line by line, ended by a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smoke_tests.bands import judge, read_bands
from smoke_tests.outcome import Outcome, states_of, worst
from smoke_tests.records import (
    Check,
    CheckOutcome,
    Evidence,
    LeftOut,
    Record,
    Run,
    Skip,
    Tier,
    TierOutcome,
    Verdict,
    Writer,
)

FAILED, HOST, HUNG = 1, 3, 6


@dataclass
class Found:
    """What a test of ranks leaves for the report, beside pytest's own outcome.

    ``environment`` and ``topology`` go with the traces of ranks that hung.
    """

    detail: str = ""
    outcomes: Sequence[Outcome] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    topology: str = ""


class Recording:
    """Writes a run's records; without a path it only counts, for the exit code."""

    def __init__(self, path: Path | None, run: Run, tiers: Sequence[Tier]) -> None:
        self._writer = Writer(path) if path else None
        self._tiers, self._skips = tiers, list[Skip]()
        self._failed: set[Tier] = set()
        self._ran: Counter[Tier] = Counter()
        self.counts: Counter[str] = Counter()
        self._bands = read_bands()
        self._device = next(iter(run.machine.get("devices") or []), "")
        self._write(run)

    def skip(self, skip: Skip) -> None:
        """Add a tier that does not run."""
        self._skips.append(skip)
        self._write(skip)

    def add(
        self, tier: Tier, name: str, passed: bool, seconds: float, text: str, found: Found
    ) -> None:
        """Add what became of one check, its numbers and its evidence.

        ``text`` is what pytest says of a failure.
        """
        outcome: CheckOutcome = "passed"
        if not passed:
            outcome = worst(found.outcomes)
            outcome = "failed" if outcome == "passed" else outcome
        ranks = () if passed else states_of(found.outcomes)
        detail = found.detail if passed else text
        self._write(Check(tier, name, outcome, round(seconds, 3), detail, ranks))
        self._count(tier, outcome)
        for result in found.outcomes:
            for measure in result.measures:
                if measure.band is None:
                    measure = judge(measure, self._device, self._bands)
                self._write(measure)
                if measure.outcome == "failed":
                    self._failed.add(tier)
                    self.counts["out of band"] += 1
            if not passed and result.traces:
                self._write(
                    Evidence(
                        name,
                        result.rank,
                        result.traces.stacks,
                        result.traces.status,
                        found.environment,
                        found.topology,
                    )
                )

    def leave_out(self, tier: Tier, check: str, reason: str) -> None:
        """Add a check that could not run here."""
        self.counts["skipped"] += 1
        self._write(LeftOut(tier, check, reason))

    def end(self, *, hung: bool, impossible: bool) -> int:
        """Write the verdict; return the exit code."""
        ran = bool(self._ran)
        code = HUNG if hung else FAILED if self._failed else HOST if impossible or not ran else 0
        tiers: dict[str, TierOutcome] = {skip.tier: "skipped" for skip in self._skips}
        for tier in self._tiers:
            if tier in self._failed:
                tiers[tier] = "failed"
            else:
                tiers[tier] = "passed" if self._ran[tier] else "skipped"
        self._write(Verdict(code, tiers, dict(self.counts)))
        return code

    def close(self) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()

    def _count(self, tier: Tier, outcome: CheckOutcome) -> None:
        self.counts[outcome] += 1
        self._ran[tier] += 1
        if outcome != "passed":
            self._failed.add(tier)

    def _write(self, record: Record) -> None:
        if self._writer:
            self._writer.write(record)
