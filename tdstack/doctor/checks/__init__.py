"""All checks of the doctor, by subject, and what they say of a host. Pure but for the two files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.doctor.answer import Check
from tdstack.doctor.check import Finding
from tdstack.doctor.checks import (
    clock,
    container,
    disk,
    driver,
    faults,
    gpus,
    links,
    memory,
    network,
    pcie,
    rdma,
    stack,
)
from tdstack.doctor.facts import Facts
from tdstack.doctor.host import Host, Line, release
from tdstack.doctor.lines import lines_of
from tdstack.doctor.thresholds import load_thresholds
from tdstack.doctor.verdicts import verdicts
from tdstack.errors import UsageError

if TYPE_CHECKING:
    from tdstack.lock.model import Lock

SUBJECTS: Mapping[str, tuple[Check, ...]] = {
    "stack": stack.CHECKS,
    "driver": driver.CHECKS,
    "gpus": gpus.CHECKS,
    "faults": faults.CHECKS,
    "memory": memory.CHECKS,
    "links": links.CHECKS,
    "pcie": pcie.CHECKS,
    "rdma": rdma.CHECKS,
    "container": container.CHECKS,
    "network": network.CHECKS,
    "disk": disk.CHECKS,
    "clock": clock.CHECKS,
}
"""The checks, in the order in which they are told."""


def every() -> tuple[Check, ...]:
    """Return all checks."""
    return tuple(check for group in SUBJECTS.values() for check in group)


def checks(facts: Facts, line: str | None = None, *, lock: Lock | None = None) -> list[Finding]:
    """Judge a host; one finding for each check that applies to it.

    `line` is the CUDA line that the host has to run, None for any. `lock` is by default the
    checkout's.
    Raises: UsageError for a line that the lock does not have, or if there is no lock.
    """
    host = make_host(facts, line, _lines(lock))
    found = (check.run(host) for check in every())
    return [finding for finding in found if finding is not None]


def lines(facts: Facts, *, lock: Lock | None = None) -> dict[str, dict[str, object]]:
    """Return for every CUDA line `runs` (None if not known) and `why`."""
    found = verdicts(make_host(facts, None, _lines(lock)))
    return {cuda: verdict.as_dict() for cuda, verdict in found.items()}


def make_host(facts: Facts, line: str | None, known: Mapping[str, Line]) -> Host:
    """Return what the checks look at. Raises: UsageError for an unknown line."""
    if line is not None and line not in known:
        raise UsageError(
            f"unknown CUDA line {line!r}",
            where="--cuda",
            expected=", ".join(sorted(known, key=release)),
        )
    return Host(facts, load_thresholds(), known, line)


def _lines(lock: Lock | None) -> Mapping[str, Line]:
    return lock.lines if lock is not None else lines_of(Path(__file__).resolve().parents[3])
