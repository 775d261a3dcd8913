"""A version checks itself: its own tdstack-verify, run as its users would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdstack.errors import CheckFailed, HostError, IntegrityError
from tdstack.prefix.record import read_record
from tdstack.process import json_report, last_words, run

# Importing torch from a cold network file system takes a minute or two.
LIMIT_S = 900


def check_version(version: Path, *, quick: bool = False) -> list[dict[str, Any]]:
    """Run tdstack-verify in a version; return its findings. Quick leaves out imports.

    Raises: HostError when its Python does not run; CheckFailed, or IntegrityError when bytes
    differ, with every finding; TimeLimitError.
    """
    record = read_record(version)
    if record is None:
        raise CheckFailed(
            "the version does not say what it is",
            where=str(version),
            expected="share/tdstack/install.json",
            remedy="run `invoke install` again",
        )
    python = version / "bin" / "python"
    if not python.exists():
        raise HostError(
            "the Python that the version was made with is gone",
            where=str(python),
            expected=record.interpreter,
            remedy="install that Python again; or run `invoke install`, which finds another one",
        )
    command = [str(version / "bin" / "tdstack-verify"), "--json", *(["--quick"] if quick else [])]
    done = run(command, environment=record.environment, cwd=version, limit_s=LIMIT_S)
    report = json_report(done.stdout)
    if "findings" not in report:
        raise CheckFailed(
            "tdstack-verify gave no report",
            where=str(version),
            got=f"exit status {done.returncode}: {last_words(done)}",
            remedy="run `invoke install` again",
        )
    findings: list[dict[str, Any]] = report["findings"]
    bad = [f for f in findings if not f["ok"]]
    if bad or done.returncode:
        kind = IntegrityError if done.returncode == 4 else CheckFailed
        raise kind(
            "the version does not hold what its lock slice says",
            where=str(version),
            got="; ".join(f"{f['check']}: {f['detail']}" for f in bad),
            remedy=bad[0]["remedy"] if bad else "",
            details=report,
        )
    return findings
