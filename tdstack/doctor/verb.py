"""The doctor as a verb: facts of this host or of a record, judged, shown, kept."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tdstack.doctor.collect import collect
from tdstack.doctor.facts import Facts
from tdstack.doctor.record import host_name, names_here, read_record, write_record
from tdstack.doctor.show import Diagnosis, show
from tdstack.errors import ExitCode, HostError, UsageError


@dataclass(frozen=True)
class Options:
    """What to judge: `facts` a record in place of this host, `cuda` one line, `prefix` a folder.

    `record` is the file that gets this host's facts; `limit_s` bounds each question to the host,
    0 for the usual limits.
    """

    cuda: str = ""
    record: str = ""
    facts: str = ""
    prefix: str = ""
    limit_s: float = 0.0
    dry: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself. Raises: UsageError."""
        if self.facts and (self.record or self.prefix):
            raise UsageError(
                "a record can be judged, and this host can be recorded, but not both at once",
                where=f"--facts with {'--record' if self.record else '--prefix'}",
                expected="one of them",
            )
        if not (self.limit_s == 0 or 1 <= self.limit_s < math.inf):
            raise UsageError(
                "no number of seconds to wait",
                where=f"--limit {self.limit_s:g}",
                expected="1 or more; or 0 for the usual limits",
            )
        path = Path(self.record).expanduser().absolute()
        if self.record and (path.is_dir() or not path.parent.is_dir()):
            raise UsageError(
                "that is a folder" if path.is_dir() else "no such folder",
                where=f"--record {self.record}",
                expected="a file in a folder that exists",
            )


def doctor(options: Options, *, as_json: bool) -> int:
    """Look at a host, judge it, print what was found, and return the exit code.

    A host that can be recorded and not judged, for want of Python packages, is only recorded.
    Raises: UsageError for an unknown line or a file that is no record; HostError when what the
    checks need is not installed.
    """
    options.check()
    facts = facts_of(options)
    if options.record:
        _keep(facts, options)
    try:
        diagnosis = diagnose(facts, options.cuda)
    except HostError as error:
        if as_json or not options.record:
            raise
        print(f"not judged: {error.what} ({error.got})\n  remedy: {error.remedy}", file=sys.stderr)
        return int(ExitCode.DONE)
    show(diagnosis)
    if as_json:
        sys.stdout.write(json.dumps(diagnosis.as_dict(), indent=2, sort_keys=True) + "\n")
        sys.stdout.flush()
    return diagnosis.code


def facts_of(options: Options, look: Callable[[str, float], Facts] = collect) -> Facts:
    """Return the facts that are to be judged: a record's, or this host's."""
    if options.facts:
        path = Path(options.facts).expanduser()
        facts = read_record(path)
        return facts if facts.label else replace(facts, label=path.stem)
    prefix = str(Path(options.prefix).expanduser().absolute()) if options.prefix else ""
    return replace(look(prefix, options.limit_s or math.inf), label=host_name())


def diagnose(facts: Facts, cuda: str) -> Diagnosis:
    """Judge facts. Raises: UsageError for an unknown line; HostError without the checks' needs."""
    try:
        from tdstack.doctor.checks import checks, lines
    except ImportError as error:
        raise HostError(
            "the checks need Python packages that are not installed",
            where="python -m tdstack.doctor",
            got=str(error),
            remedy="run scripts/bootstrap.sh and use .venv/bin/python; or judge the record "
            "elsewhere, with --facts FILE",
        ) from error
    return Diagnosis(facts, checks(facts, cuda or None), lines(facts))


def _keep(facts: Facts, options: Options) -> None:
    path = Path(options.record).expanduser().absolute()
    if options.dry:
        print(f"would write {path.name}", file=sys.stderr)
        return
    write_record(facts, path, names_here())
    print(f"recorded: {path.name}; look through it before you pass it on", file=sys.stderr)
