"""`invoke smoke`: the checks of smoke_tests/, on all tiers that this host can run, as a verdict."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir
from typing import Any, Final

from smoke_tests.layers import diagnose, seen_of
from smoke_tests.records import TIERS, Check, Measure, RecordError, Result, read
from tdstack.console import say, warn
from tdstack.engines.choose import choose_engine
from tdstack.errors import (
    CheckFailed,
    ExitCode,
    HostError,
    TdstackError,
    TimeLimitError,
    UsageError,
)
from tdstack.smoke.image import OUT, USER, Inside, find_image, host_gpus
from tdstack.smoke.image import run_checks as run_in_image
from tdstack.smoke.prefix import command as prefix_command
from tdstack.smoke.prefix import find_python

RANKS: Final = (0, 1, 2, 4, 8)
KERNELS: Final = ("auto", "cubins", "jit")
FILE: Final = "run.jsonl"
_END_S: Final = 5.0
_SHOWN: Final = 6


@dataclass(frozen=True)
class Options:
    """What to run, and where its report goes; empty or 0 leaves it to the tiers."""

    tier: str = ""
    ranks: int = 0
    kernels: str = "auto"
    self_test: bool = False
    out: str = ""
    label: str = ""
    limit: float = 0.0
    image: str = ""
    engine: str = "auto"
    prefix: str = ""

    def require_valid(self) -> None:
        """Raises: UsageError for what does not exist or contradicts itself."""
        if self.tier and self.tier not in TIERS:
            raise UsageError("unknown tier", where=f"--tier {self.tier}", expected=", ".join(TIERS))
        if self.ranks not in RANKS:
            expected = "1, 2, 4 or 8; 0 for the tier's own"
            where = f"--ranks {self.ranks}"
            raise UsageError("no such number of ranks", where=where, expected=expected)
        if self.kernels not in KERNELS:
            expected = ", ".join(KERNELS)
            raise UsageError("unknown value", where=f"--kernels {self.kernels}", expected=expected)
        if self.kernels != "auto" and self.tier in ("import", "compile", "cpu"):
            raise UsageError(
                "cubins need a GPU: on CPUs the kernels are interpreted",
                where=f"--kernels {self.kernels}",
                expected="--tier gpu or multi-gpu",
            )
        if self.prefix and (self.image or self.tier == "multi-node"):
            raise UsageError(
                "a prefix is checked on this host, by itself",
                where="--prefix with " + ("--image" if self.image else "--tier multi-node"),
                expected="one of them",
            )
        if self.image and self.tier == "multi-node":
            raise UsageError(
                "an image is run on one host; on many its container is started by their scheduler",
                where="--image --tier multi-node",
                remedy="docs/smoke-places.md has the command for each",
            )
        if self.engine != "auto" and not self.image:
            raise UsageError("an engine runs images, and none is named", where="--engine")
        if self.limit < 0:
            expected = "seconds; 0 for each step's own"
            raise UsageError("no time limit", where=f"--limit {self.limit:g}", expected=expected)


def smoke(root: Path, options: Options) -> dict[str, Any]:
    """Run the checks; write the report's files; return the verdict (docs/smoke.md).

    Raises: UsageError; HostError for what this host lacks, or a folder that has a report already;
    CheckFailed naming the checks that failed, and of ranks that died their steps; TimeLimitError
    when ranks hung. Each but the first two has the verdict as its details.
    """
    options.require_valid()
    if not importlib.util.find_spec("pytest"):
        remedy = "scripts/bootstrap.sh smoke"
        raise HostError("the checks cannot run here", got="not installed: pytest", remedy=remedy)
    if options.image:
        inside = open_image(root, options)
        folder = _folder(root, options)
        status = run_inside(inside, root, options, folder)
    elif options.prefix:
        python = find_python(root, options.prefix)
        folder = _folder(root, options)
        with prefix_command(root, python, selection(options, folder / FILE)) as words:
            status = run_checks(folder, words)
    else:
        folder = _folder(root, options)
        nodes = options.tier == "multi-node"
        words = nodes_command(options, folder) if nodes else command(options, folder / FILE)
        status = run_checks(root, words)
    file = folder / FILE
    if options.tier == "multi-node" and not file.exists():
        return _elsewhere(folder, status)
    try:
        result = read(file)
    except (OSError, RecordError) as error:
        raise HostError(
            "the checks did not run", where=str(folder), got=f"pytest's exit code {status}: {error}"
        ) from None
    _write_reports(file, folder)
    found = summary(result, folder)
    _say(result, folder)
    if failure := error_of(result, found, status):
        raise failure
    return found


def command(options: Options, file: Path) -> list[str]:
    """Return what runs the checks, with their records in a file, while this process lives."""
    words = [sys.executable, "-m", "pytest", "smoke_tests", "-p", "no:cacheprovider"]
    return [*words, f"--parent={os.getpid()}", *selection(options, file)]


def selection(options: Options, file: Path) -> list[str]:
    """Return pytest's options: what runs, and where its records go. Pure."""
    words = ["-ra", "-q", f"--records={file}", f"--ranks={options.ranks}"]
    words += [f"--tier={options.tier}"] if options.tier else []
    words += ["--self-test=only"] if options.self_test else []
    words += [f"--kernels={options.kernels}"] if options.kernels != "auto" else []
    words += [f"--label={options.label}"] if options.label else []
    words += [f"--step-limit={options.limit:g}"] if options.limit else []
    return words


def nodes_command(options: Options, folder: Path) -> list[str]:
    """Return what runs this node's ranks of a launch over several nodes. Pure."""
    words = [sys.executable, "-m", "smoke_tests.launch", f"--out={folder}"]
    words += [f"--ranks-per-node={options.ranks}"] if options.ranks else []
    words += [f"--label={options.label}"] if options.label else []
    words += [f"--limit-s={options.limit:g}"] if options.limit else []
    return words


def open_image(root: Path, options: Options) -> Inside:
    """Return the image of the options, in an engine that can run what they ask for.

    Raises: HostError, UsageError and UpstreamError as choose_engine and find_image; HostError when
    GPUs are asked for that the host or the engine does not give.
    """
    choice = choose_engine(options.engine)
    say(f"engine: {choice.reason}")
    gpus = host_gpus()
    asked = options.tier in ("gpu", "multi-gpu")
    if asked and not gpus:
        remedy = "without --tier all tiers run that can run here"
        raise HostError(
            f"the tier {options.tier} needs a GPU, and this host has none", remedy=remedy
        )
    passes = choice.engine.name == "docker"
    if asked and not passes:
        raise HostError(
            f"{choice.engine.name} does not pass GPUs through to a container",
            where=f"--tier {options.tier} --image",
            remedy="--engine docker, with the NVIDIA Container Toolkit",
        )
    if gpus and not passes:
        warn(f"{choice.engine.name} does not pass the host's GPUs through; --engine docker does")
    return find_image(root, choice.engine, options.image, gpus=bool(gpus) and passes)


def run_inside(inside: Inside, root: Path, options: Options, folder: Path) -> int:
    """Run the checks in an image; return pytest's exit code."""
    say(f"in {inside.place}, as user {USER}, without a network")
    name = options.label or platform.node()  # a container's own name says nothing
    words = selection(replace(options, label=name), Path(OUT, FILE))
    words.append(f"--place={inside.place}")
    return run_in_image(inside, root, words, folder, say).status


def _elsewhere(folder: Path, status: int) -> dict[str, Any]:
    """Return what a node has that is not the first: the report is there."""
    if status == ExitCode.USAGE:
        raise UsageError(
            "which node this is cannot be told",
            where="--tier multi-node",
            remedy="what is missing is said above; docs/smoke-places.md has the commands",
        )
    if status:
        raise HostError(
            "the ranks of this node did not run",
            where="--tier multi-node",
            got=f"exit code {status}; what happened is said above, or in the first node's report",
        )
    say("this node's ranks passed; the report is on the first node")
    return {"ok": True, "exit_code": 0, "tiers": {"multi-node": "passed"}, "report": str(folder)}


def run_checks(root: Path, words: Sequence[str]) -> int:
    """Run pytest to its end, whose exit code is returned; leave nothing of its ranks.

    An interruption ends it at once.
    """
    # stdout is for the report: what pytest says goes where the rest of our words go.
    process = subprocess.Popen(words, cwd=root, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        raise
    finally:
        process.kill()
        process.wait()
        # It removes them itself, unless it was killed.
        for left in Path(gettempdir()).glob(f"smoke-{process.pid}-*"):
            rmtree(left, ignore_errors=True)


def summary(result: Result, folder: Path) -> dict[str, Any]:
    """Return what ``--json`` prints. Pure."""
    verdict = result.verdict
    return {
        "ok": bool(verdict and verdict.ok),
        "exit_code": verdict.exit_code if verdict else None,
        "tiers": dict(verdict.tiers) if verdict else {},
        "counts": dict(verdict.counts) if verdict else {},
        "skips": {skip.tier: skip.reason for skip in result.skips}
        | {left.check: left.reason for left in result.left_out},
        "failed": [describe(check) for check in result.checks if check.outcome != "passed"]
        + [_out_of_band(m) for m in result.measures if m.outcome == "failed"],
        "id": result.run.id,
        "report": str(folder),
    }


def error_of(result: Result, found: Mapping[str, Any], status: int) -> TdstackError | None:
    """Return what the verb raises, or None when all that ran passed. Pure."""
    failed: list[str] = found["failed"]
    where = "; ".join(failed[:_SHOWN])
    where += f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    cause = diagnose(seen_of(result.checks))
    report = f"{cause}; see {found['report']}" if cause else f"see {found['report']}"
    if result.verdict is None:
        text = "the run was cut off"
        return CheckFailed(text, where=where, got=f"exit code {status}", details=found)
    code = result.verdict.exit_code
    if code == 0:
        return None
    if code == ExitCode.TIME_LIMIT:
        text = "ranks hung, and were ended"
        return TimeLimitError(text, where=where, remedy=report, details=found)
    if code == ExitCode.HOST:
        reasons = [f"{tier}: {reason}" for tier, reason in found["skips"].items()]
        remedy = "without --tier all tiers run that this host can run"
        text = "the checks cannot run here"
        return HostError(text, got="; ".join(reasons), remedy=remedy, details=found)
    text = f"{len(failed)} of {len(result.checks) + len(result.measures)} checks failed"
    return CheckFailed(text, where=where, remedy=report, details=found)


def describe(check: Check) -> str:
    """Return a failed check's name, and which ranks died or hung in which step. Pure."""
    ranks = [
        f"rank {r.rank} {r.state} in step {r.step!r}"
        for r in check.ranks
        if r.state in ("died", "hung")
    ]
    return f"{check.name} ({', '.join(ranks)})" if ranks else check.name


def _out_of_band(measure: Measure) -> str:
    labels = ", ".join(f"{k} {v}" for k, v in measure.labels.items())
    low, high = measure.band or (None, None)
    return f"{measure.name} ({labels}): {measure.value:g} {measure.unit}, band {low} to {high}"


def _folder(root: Path, options: Options) -> Path:
    """Make the folder of the report."""
    if options.out:
        folder = Path(options.out).absolute()
        if (folder / FILE).exists():
            remedy = "name another folder, or remove that one"
            raise HostError("a report is there already", where=f"--out {folder}", remedy=remedy)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", options.label or platform.node() or "host")
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
    for number in range(100):
        folder = root / "smoke-reports" / (f"{stem}-{number}" if number else stem)
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise HostError("no folder for the report can be made", where=str(root / "smoke-reports"))


def _write_reports(file: Path, folder: Path) -> None:
    from tdstack.smoke.report import write_reports

    try:
        write_reports(file, folder)
    except OSError as error:  # the verdict matters more than its page
        warn(f"no page of the report: {error}")


def _say(result: Result, folder: Path) -> None:
    tiers = result.verdict.tiers if result.verdict else {}
    for tier in sorted(tiers, key=lambda name: TIERS.index(name)):
        reason = next((skip.reason for skip in result.skips if skip.tier == tier), "nothing")
        passed = sum(c.tier == tier and c.outcome == "passed" for c in result.checks)
        count = sum(c.tier == tier for c in result.checks)
        told = reason if tiers[tier] == "skipped" else f"{passed} of {count} checks"
        say(f"{tier:10}  {tiers[tier]:7}  {told}")
    for left in result.left_out:
        say(f"left out: {left.check}: {left.reason}")
    say(f"report: {folder / 'index.html'}")
