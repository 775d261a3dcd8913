"""Triton-distributed into an environment, in place of whatever Triton is there, or not at all."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tdstack.assemble.unpack import write_entry
from tdstack.assemble.wheel import WheelEntries
from tdstack.errors import HostError, IntegrityError
from tdstack.fork.acquire import by_version, take_file, take_wheel
from tdstack.fork.inspection import REMEDIES
from tdstack.fork.model import ForkSource, ForkWheel
from tdstack.fork.repack import repack
from tdstack.lock.model import LockedTritonDistributed
from tdstack.tags import numbers
from tdstack.verify.environment import Environment, ask
from tdstack.verify.installed import distributions
from tdstack.verify.triton.diagnosis import Diagnosis
from tdstack.verify.triton.fork import FORK_NAME, LABEL
from tdstack.verify.triton.judge import Verdict, judge
from tdstack.verify.triton.mend import settings
from tdstack.verify.triton.ownership import SiteState, look
from tdstack.verify.triton.repair import foreign, removals
from tdstack.verify.triton.swap import SwapError, staging, swap
from tdstack.wheelhouse.store import Store


def install(environment: Environment, fork: ForkWheel, store: Store) -> None:
    """Put the fork and its alias into the environment, alone, with the constraints that hold it.

    Files of any other Triton go, with their metadata; then ownership is checked, and if it is not
    as it must be, or anything fails on the way, the old state is back.
    Raises: IntegrityError for a fork that does not fit the environment, or files that belong to
    others; HostError when the environment cannot be changed.
    """
    check_environment(environment, fork)
    site = environment.site
    wheels = [(store.verify(file), file.name) for file in (fork.file, fork.alias)]
    try:
        with staging(site) as folder:
            state = look(site)
            if refusal := foreign(state):
                raise IntegrityError(refusal.why, where=str(site), remedy=refusal.remedy)
            ins = dict(settings(environment, fork.version, folder))
            ins |= _stage(environment, wheels, folder / "tree")
            outs = removals(state, None)
            outs += _in_the_way(state, environment, ins, outs)
            swap(site, outs, ins, lambda: _check(site, fork.version))
    except SwapError as error:
        raise HostError(
            "Triton-distributed was not installed; the environment is as it was",
            where=str(environment.prefix),
            got=str(error),
            remedy="mend that and run the verb again",
        ) from error
    # A convenience: without it the first import by each user who may not write compiles anew.
    ask([str(environment.python), "-m", "compileall", "-q", str(site / "triton")])


def check_environment(environment: Environment, fork: ForkWheel) -> None:
    """Refuse an environment that is not ours to change, or whose Python or glibc does not fit.

    Raises: HostError for the former, IntegrityError for the latter.
    """
    if environment.managed:
        raise HostError(
            "the packages of this Python belong to the system's package manager",
            where=str(environment.prefix),
            expected="a virtual environment, or a Python without EXTERNALLY-MANAGED (PEP 668)",
            remedy="make one: python -m venv DIR",
        )
    source = fork.source
    python_fits = source.python in ("", environment.version)
    if python_fits and numbers(source.glibc) <= numbers(environment.glibc):
        return
    raise IntegrityError(
        f"{source.name} does not run in this environment",
        where=str(environment.prefix),
        expected=f"a wheel for Python {environment.version}, glibc {environment.glibc} or older",
        got=f"one for Python {source.python or 'any'}, glibc {source.glibc or 'any'} or newer",
        remedy="give a wheel that was built for this Python and this system",
    )


def installer_of(
    pinned: LockedTritonDistributed, store: Store, source: ForkSource, diagnosis: Diagnosis
) -> str:
    """Install what `source` names, or else what the environment had; return its label.

    Without a wheel: the one whose label the metadata still carries, if the store has it; or the
    installed files themselves, if they are whole under another name.
    Raises: as install; IntegrityError when there is nothing to install from.
    """
    fork = _fork_for(pinned, store, source, diagnosis)
    install(diagnosis.environment, fork, store)
    return f"triton {fork.version}"


def _fork_for(
    pinned: LockedTritonDistributed, store: Store, source: ForkSource, diagnosis: Diagnosis
) -> ForkWheel:
    if source.wheel:
        return take_wheel(source.wheel, store, pinned, incomplete=source.incomplete)
    state = diagnosis.state
    keeper = diagnosis.judgement.keeper
    for dist in state.related:
        if LABEL in dist.version and (fork := by_version(dist.version, store)):
            return fork
    if keeper and diagnosis.judgement.library == "distributed":
        with tempfile.TemporaryDirectory(dir=store.work()) as folder:
            packed = repack(keeper.owner, Path(folder))
            return take_file(packed, store, pinned, incomplete=True)
    raise IntegrityError(
        "the files of Triton-distributed are gone, and no copy is in the store",
        where=str(state.site),
        expected=f"its wheel, or an installed {FORK_NAME} whose files are whole",
        remedy=REMEDIES.split(", put it")[0],
    )


def _stage(
    environment: Environment, wheels: Iterable[tuple[Path, str]], folder: Path
) -> Mapping[Path, Path]:
    """Unpack wheels below `folder`; return where each folder or file is to go."""
    site, ins = environment.site, {}
    # Of a system's own Python they lie under /usr/local, away from the interpreter.
    prefix = str(environment.scripts.parent).lstrip("/")
    python = str(environment.python)
    for wheel, name in wheels:
        own = WheelEntries(wheel, name, prefix, str(site).lstrip("/"), python)
        entries = own.entries(lambda _: False)
        with zipfile.ZipFile(wheel) as archive:
            for entry in entries:
                target = Path("/", entry.path)
                inside = target.is_relative_to(site)
                unit = site / target.relative_to(site).parts[0] if inside else target
                staged = folder / str(unit).lstrip("/")
                write_entry(entry, archive, staged / target.relative_to(unit))
                ins[unit] = staged
    return ins


def _in_the_way(
    state: SiteState, environment: Environment, ins: Mapping[Path, Path], outs: list[Path]
) -> list[Path]:
    """Return what lies where new files go and belongs to nobody.

    Raises: IntegrityError for a file of another distribution.
    """
    lying = [p for p in ins if (p.exists() or p.is_symlink()) and p not in outs]
    going = {d.info for d in state.related}
    owners = {
        file.path: dist.label
        for dist in distributions(environment.sites)
        if dist.info not in going
        for file in dist.files
    }
    for path in lying:
        if path in owners:
            raise IntegrityError(
                f"{path.name} belongs to {owners[path]}",
                where=str(path),
                expected="no other distribution with a file of this name",
                remedy=f"uninstall {owners[path].split()[0]} first",
            )
    return lying


def _check(site: Path, version: str) -> None:
    found = judge(look(site))
    keeper = found.keeper.owner.version if found.keeper else ""
    if found.verdict is not Verdict.DISTRIBUTED or keeper != version:
        raise IntegrityError(
            "after the install not every file of Triton belongs to Triton-distributed; the old "
            "state is back",
            where=str(site),
            expected=f"triton {version}, alone",
            got="; ".join(p.what for p in found.problems) or f"{found.verdict} {keeper}",
        )
