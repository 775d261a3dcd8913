"""From the records of a run to the files that people and CI look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from smoke_tests.records import RecordError, Result, read
from tdstack.errors import HostError, IntegrityError
from tdstack.smoke.html import run_page
from tdstack.smoke.junit import junit


@dataclass(frozen=True)
class Reports:
    """The files that ``write_reports`` wrote."""

    page: Path
    junit: Path


def write_reports(run_file: Path, folder: Path) -> Reports:
    """Write ``index.html`` and ``junit.xml`` of a run into a folder; make the folder.

    A run that was cut off has reports as well; they say so.

    Raises: HostError for a file that is not there; IntegrityError for one that is no run.
    """
    result = read_run(run_file)
    reports = Reports(folder / "index.html", folder / "junit.xml")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(reports.page, run_page(result))
    write_whole(reports.junit, junit(result))
    return reports


def read_run(file: Path) -> Result:
    """Return the records of a run.

    Raises: HostError for a file that is not there; IntegrityError naming the damaged line.
    """
    try:
        return read(file)
    except FileNotFoundError:
        raise HostError("no such file of records", where=str(file)) from None
    except RecordError as error:
        raise IntegrityError(
            "this is not the record of a run, or it was damaged",
            where=f"{file}, line {error.line}" if error.line else str(file),
            got=error.what,
            expected="JSON lines, schema 2 (docs/smoke-report.md)",
            remedy="copy the file again from where the run wrote it, or run the checks again",
        ) from None


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: it is the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
