"""What the verbs do with Triton-distributed: inspect, record, install, mend."""

from __future__ import annotations

from pathlib import Path

from tdstack.console import emit_json, megabytes, say, table
from tdstack.errors import CheckFailed, HostError, IntegrityError, TdstackError, UsageError
from tdstack.fork.acquire import locate, source_of, take_file
from tdstack.fork.facts import read_facts
from tdstack.fork.inspection import Inspection, inspect
from tdstack.fork.model import ForkSource, ForkWheel
from tdstack.lock.io import load_lock, write_lock
from tdstack.prefix.place import OWN, Prefix
from tdstack.prefix.triton import check_environment, install, installer_of
from tdstack.verify.environment import Environment, NoEnvironmentError, find_environment
from tdstack.verify.main import Options, Report, verify
from tdstack.verify.triton.diagnosis import Diagnosis, diagnose
from tdstack.verify.triton.mend import Installer, MendError
from tdstack.verify.triton.swap import SwapError
from tdstack.workspace import Workspace


def inspect_wheel(workspace: Workspace, source: ForkSource, *, as_json: bool) -> Inspection:
    """Print what a wheel is, without importing it.

    Raises: IntegrityError for one that would not be taken, after the table.
    """
    pinned = load_lock(workspace.root)[0].triton_distributed
    path = locate(source.wheel, workspace.store)
    found = inspect(read_facts(path), pinned.base_version, incomplete=source.incomplete)
    facts = found.facts
    title = f"{facts.file}, {megabytes(facts.size)}, sha256 {facts.sha256}"
    rows = [["ok" if f.ok else "FAIL", f.check, f.detail] for f in found.findings]
    table(title, ["", "check", "finding"], rows)
    found.require()
    if as_json:
        emit_json(found.as_dict())
    return found


def record_wheel(workspace: Workspace, source: ForkSource, *, dry: bool) -> ForkWheel | None:
    """Write the hash of a wheel into versions.lock, so that another one is noticed from then on.

    Raises: IntegrityError for a wheel that is not taken.
    """
    lock = load_lock(workspace.root)[0]
    pinned = lock.triton_distributed
    path = locate(source.wheel, workspace.store)
    if dry:
        found = inspect(read_facts(path), pinned.base_version, incomplete=source.incomplete)
        found.require()
        say(f"dry run: {source_of(found).name}, sha256 {source_of(found).sha256}, is not recorded")
        return None
    # Another wheel of a recorded name is what this verb is for.
    unnamed = pinned.model_copy(update={"wheels": []})
    fork = take_file(path, workspace.store, unnamed, incomplete=source.incomplete)
    wheels = {w.sha256: w for w in [*pinned.wheels, fork.source]}
    listed = sorted(wheels.values(), key=lambda w: (w.name, w.sha256))
    new = lock.model_copy(
        update={"triton_distributed": pinned.model_copy(update={"wheels": listed})}
    )
    what = f"{fork.source.name}, sha256 {fork.source.sha256}, installed as triton {fork.version}"
    if write_lock(workspace.root, new):
        say(f"recorded in versions.lock: {what}")
    else:
        say(f"recorded before: {what}")
    return fork


def install_verb(
    workspace: Workspace, prefix: str, source: ForkSource, *, as_json: bool, dry: bool
) -> Report | None:
    """Put Triton-distributed into an environment in place of its Triton; return what is there then.

    Raises: UsageError without a prefix; HostError for no environment; IntegrityError as
    install does; CheckFailed when the environment is not right afterwards.
    """
    environment = _environment(prefix)
    pinned = load_lock(workspace.root)[0].triton_distributed
    fork = workspace.fork(source, environment.version)
    if fork is None:
        raise UsageError(
            "no Triton-distributed to install",
            where="--wheel",
            expected="FILE, or URL#sha256=HEX",
            remedy=f"name it, or record one with `invoke lock --wheel`; the pinned commit "
            f"{pinned.commit[:12]} is built by `invoke fetch --triton distributed`",
        )
    check_environment(environment, fork)
    before = diagnose(environment).judgement
    say(f"{environment.prefix}: Triton is {before.verdict}")
    if dry:
        say(f"dry run: triton {fork.version} would take its place")
        return None
    install(environment, fork, workspace.store)
    say(f"installed triton {fork.version}")
    return report_on(environment.prefix, "distributed", as_json=as_json)


def verify_verb(
    workspace: Workspace,
    prefix: str,
    expected: str,
    source: ForkSource,
    *,
    fix: bool,
    deep: bool,
    as_json: bool,
) -> Report:
    """Check an environment, ours or not, and mend it if asked.

    Raises: CheckFailed or IntegrityError with the findings.
    """
    options = Options(_environment(prefix).prefix, expected, deep=deep)
    installer = make_installer(source.wheel, source.incomplete, workspace) if fix else None
    try:
        report = verify(options, installer, fix=fix)
    except MendError as error:
        raise CheckFailed(error.why, where=prefix, remedy=error.remedy) from error
    except SwapError as error:
        raise HostError("nothing was mended", where=prefix, got=str(error)) from error
    return _judged(report, as_json=as_json)


def report_on(prefix: Path, expected: str, *, as_json: bool) -> Report:
    """Check an environment after it was changed, and print the findings.

    Raises: CheckFailed or IntegrityError with the findings.
    """
    return _judged(verify(Options(prefix, expected)), as_json=as_json)


def make_installer(
    wheel: str = "", incomplete: bool = False, workspace: Workspace | None = None
) -> Installer:
    """Return what tdstack-verify --fix installs with, in this checkout."""
    at = workspace or Workspace.here()
    pinned = load_lock(at.root)[0].triton_distributed

    def installer(diagnosis: Diagnosis) -> str:
        try:
            return installer_of(pinned, at.store, ForkSource(wheel, incomplete), diagnosis)
        except TdstackError as error:
            where = f" ({error.where})" if error.where else ""
            raise MendError(f"{error.what}{where}", error.remedy) from error

    return installer


def _environment(prefix: str) -> Environment:
    if not prefix:
        raise UsageError(
            "no environment named", where="--prefix", expected="the folder of a venv or the like"
        )
    place = Path(prefix).expanduser()
    # Of an install on bare metal it is the version in use that is meant.
    if (place / OWN).is_dir():
        place = Prefix.of(prefix).require_current()
    try:
        return find_environment(place)
    except NoEnvironmentError as error:
        raise HostError(
            "no Python environment there",
            where=f"--prefix {prefix}",
            got=str(error),
            remedy="make one: python -m venv DIR",
        ) from error


def _judged(report: Report, *, as_json: bool) -> Report:
    bad = [f for f in report.findings if not f.ok]
    rows = [["ok" if f.ok else "FAIL", f.check, f.detail] for f in report.findings]
    table(f"{report.environment.prefix}", ["", "check", "finding"], rows)
    for line in report.mended:
        say(f"fixed: {line}")
    if bad:
        kind = IntegrityError if report.code == 4 else CheckFailed
        raise kind(
            bad[0].detail,
            where=f"{report.environment.prefix}: {bad[0].check}",
            expected=next((f"no {f.symptom!r}" for f in bad if f.symptom), ""),
            got="; ".join(f.detail for f in bad[1:]),
            remedy=bad[0].remedy,
            # With --json stdout holds one document: on failure that of the error.
            details=report.as_dict(),
        )
    if as_json:
        emit_json(report.as_dict())
    return report
