"""Options, and a pool of ranks for the checks: one at a time, new after a failure."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet
from packaging.version import Version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
for folder in (ROOT, ROOT / "kernels" / "src"):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from smoke_tests.checks.registry import load
from smoke_tests.controls import CONTROLS, SEQUENCE_FAULTS
from smoke_tests.drawn import Sequence
from smoke_tests.leash import die_with_parent
from smoke_tests.pool import Pool
from smoke_tests.recording import Found, Recording
from smoke_tests.records import TIERS, Run, Skip, Tier
from smoke_tests.report import installed_version, machine
from smoke_tests.tiers import (
    Host,
    Selection,
    Setting,
    select,
    settings,
    settings_of_checks,
    this_host,
)

KERNELS = {"auto": {}, "cubins": {"GEMM_AR_NO_JIT": "1"}, "jit": {"GEMM_AR_CUBINS": "none"}}
_HOST = pytest.StashKey[Host]()
_SELECTION = pytest.StashKey[Selection]()
_RECORDING = pytest.StashKey[Recording]()
_FOUND = pytest.StashKey[Found]()
_HUNG = pytest.StashKey[bool]()
_STATUS = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what decides which ranks run."""
    tier = "this tier and those below it; default: all that this host can run"
    parser.addoption("--tier", choices=("", *TIERS), default="", help=tier)
    self_test = "also plant faults, and catch them; only: nothing else"
    parser.addoption(
        "--self-test", nargs="?", const="also", default="", choices=("also", "only"), help=self_test
    )
    parser.addoption("--records", type=Path, help="write the report to this new file, as it comes")
    parser.addoption("--label", default="", help="name of this host in the report")
    parser.addoption("--place", default="host", help="host, or image REF: where this runs")
    parser.addoption("--parent", type=int, default=0, help="end when this parent process does")
    kernels = "cubins: nothing may be compiled; jit: everything is; auto: cubins where some fit"
    parser.addoption("--kernels", choices=list(KERNELS), default="auto", help=kernels)
    parser.addoption("--ranks", type=int, default=0, help="number of ranks; 0: the tier's own")
    limit = "seconds for each step that waits for other ranks; 0: each step's own"
    parser.addoption("--step-limit", type=float, default=0.0, help=limit)
    drawn = "draw so many sequences of calls for each number of ranks; 0: a few, with --self-test"
    parser.addoption("--sequences", type=int, default=0, help=drawn)
    parser.addoption("--replay", metavar="JSON", help="play one sequence, as a failure printed it")


def pytest_configure(config: pytest.Config) -> None:
    """See what this host can run."""
    if parent := config.getoption("--parent"):
        signal.signal(signal.SIGTERM, _interrupt)
        die_with_parent(signal.SIGTERM, parent)
    os.environ.update(KERNELS[config.getoption("--kernels")])
    config.stash[_HOST] = this_host()
    config.stash[_SELECTION] = select(config.getoption("--tier"), config.stash[_HOST])


def _interrupt(*_: object) -> None:
    # pytest then ends its fixtures, and with them the ranks. A second one must not stop that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin the report."""
    config = session.config
    selection = config.stash[_SELECTION]
    path = config.getoption("--records")
    run = Run(
        config.getoption("--label") or platform.node(),
        config.getoption("--place"),
        machine() if path else {},
    )
    recording = config.stash[_RECORDING] = Recording(path, run, selection.run)
    for skip in selection.skips:
        recording.skip(_with_faults(config, skip))


def _with_faults(config: pytest.Config, skip: Skip) -> Skip:
    """Name the planted faults that a tier would have been needed for."""
    if not config.getoption("--self-test"):
        return skip
    kinds = [setting.kind for setting in _control_settings(skip.tier)]
    left = [c.name for c in CONTROLS if set(kinds) & set(c.kinds)] if kinds else []
    return (
        Skip(
            skip.tier, f"{skip.reason}; left out, on ranks {' and '.join(kinds)}: {', '.join(left)}"
        )
        if left
        else skip
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every check, or of every planted fault, on every set of ranks of the tiers."""
    names, config = metafunc.fixturenames, metafunc.config
    if "fault" in names:
        _parametrize(
            metafunc, "fault", [pytest.param(f, id=f"cpu-{f.name}") for f in SEQUENCE_FAULTS]
        )
    elif "world_size" in names:
        _parametrize(metafunc, "world_size", _drawn_cases(config))
    elif "control" in names:
        _parametrize(metafunc, ("setting", "control"), _control_cases(config))
    elif "check" in names:
        _parametrize(metafunc, ("setting", "check"), _check_cases(config))


def _parametrize(
    metafunc: pytest.Metafunc, names: str | tuple[str, ...], cases: list[ParameterSet]
) -> None:
    if not cases:
        count = 1 if isinstance(names, str) else len(names)
        marks = pytest.mark.skip(reason="no tier that runs here has any")
        cases = [pytest.param(*[None] * count, marks=marks, id="nothing")]
    metafunc.parametrize(names, cases)


def _tiers(config: pytest.Config) -> tuple[Tier, ...]:
    return config.stash[_SELECTION].run


def _control_settings(tier: Tier) -> list[Setting]:
    kinds = {"cpu": ["cpu"], "gpu": ["virtual", "nvshmem"], "multi-gpu": ["nvshmem"]}
    return [Setting(tier, kind, 2) for kind in kinds.get(tier, [])]  # type: ignore[arg-type]


def _control_cases(config: pytest.Config) -> list[ParameterSet]:
    return [
        pytest.param(
            setting,
            control,
            id=f"{setting.id}-{control.name}",
            marks=_absent(load()[control.check].needs),
        )
        for tier in _tiers(config)
        for setting in _control_settings(tier)
        for control in CONTROLS
        if setting.kind in control.kinds
    ]


def _drawn_cases(config: pytest.Config) -> list[ParameterSet]:
    ranks = config.getoption("--ranks")
    counts = [ranks] if ranks else [1, 2, 4]
    if replay := config.getoption("--replay"):
        counts = [Sequence.from_json(replay).world_size]
    return [pytest.param(w, id=f"cpu-w{w}-drawn_sequences") for w in counts]


def _check_cases(config: pytest.Config) -> list[ParameterSet]:
    ranks = config.getoption("--ranks")
    # The checks import torch, which the tiers without ranks do not need.
    tiers = [tier for tier in _tiers(config) if settings(tier, ranks)]
    cases = [
        (setting, check)
        for tier in tiers
        for setting, check in settings_of_checks(tier, ranks, list(load().values()))
    ]
    return [
        pytest.param(setting, check, id=f"{setting.id}-{check.name}", marks=_absent(check.needs))
        for setting, check in cases
        if setting.kind in check.kinds and setting.world_size >= check.least_ranks
        if not check.needs_cubins or config.getoption("--kernels") == "cubins"
        if not (check.own_gpu and setting.one_gpu)
    ]


REMEDIES = {
    "transformers": "pip install --no-deps --require-hashes -r requirements-models.lock",
}
"""How a module that a check needs comes into the environment, where that is known."""
LEAST = {"transformers": "5.19"}
"""The oldest release of a module that its check works with, where that is known."""


def _absent(module: str) -> list[pytest.MarkDecorator]:
    if not (reason := _lack(module)):
        return []
    remedy = f"; remedy: {REMEDIES[module]}" if module in REMEDIES else ""
    return [pytest.mark.skip(reason=f"{reason}{remedy}")]


def _lack(module: str) -> str:
    if not module:
        return ""
    if not importlib.util.find_spec(module):
        return f"not installed: {module}"
    found, least = installed_version(module), LEAST.get(module)
    if found and least and Version(found) < Version(least):
        return f"too old: {module} {found}, {least} or later is needed"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the lowest tier: what fails there is why others would."""
    items.sort(key=lambda item: TIERS.index(_tier_of(item)) if item.path.parent == HERE else -1)


@pytest.fixture(scope="session")
def pool_of(pytestconfig: pytest.Config) -> Iterator[Callable[[Setting], Pool]]:
    """Give the pool of a set of ranks, starting it if it is not the one that runs."""
    current: list[tuple[Setting, Pool]] = []

    def give(setting: Setting) -> Pool:
        if current:
            if current[0][0] == setting and current[0][1].usable:
                return current[0][1]
            current.pop()[1].close()
        pool = Pool(
            setting.kind,
            setting.world_size,
            step_limit_s=pytestconfig.getoption("--step-limit"),
            one_gpu=setting.one_gpu,
            tier=setting.tier,
        )
        current.append((setting, pool))
        return pool

    yield give
    for _, pool in current:
        pool.close()


@pytest.fixture
def host(pytestconfig: pytest.Config) -> Host:
    """Give what this host has."""
    return pytestconfig.stash[_HOST]


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Found:
    """Give what a test fills in for the report."""
    made: Found = request.node.stash.setdefault(_FOUND, Found())
    return made


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect what the tiers that run are made of; faults and drawn sequences when asked for."""
    name, tiers = collection_path.name, _tiers(config)
    self_test = config.getoption("--self-test")
    if config.stash[_SELECTION].impossible:
        return True if name.startswith("test_") and collection_path.parent == HERE else None
    wished = {
        "test_import.py": "import" in tiers and self_test != "only",
        "test_compile.py": "compile" in tiers and self_test != "only",
        "test_checks.py": self_test != "only",
        "test_drawn.py": "cpu" in tiers
        and (
            self_test == "also" or config.getoption("--sequences") or config.getoption("--replay")
        ),
        "test_drawn_controls.py": "cpu" in tiers and self_test,
        "test_controls.py": self_test,
        "test_self.py": self_test,
    }
    if collection_path.parent == HERE and not wished.get(name, True):
        return True
    return None


def _tier_of(item: pytest.Item) -> Tier:
    callspec = getattr(item, "callspec", None)
    setting = callspec.params.get("setting") if callspec else None
    if isinstance(setting, Setting):
        return setting.tier
    tier: Tier = getattr(getattr(item, "module", None), "TIER", "multi-node")
    return tier


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put every outcome into the report. After a hang nothing more is tried."""
    result = yield
    if item.path.parent != HERE:
        return result
    recording = item.config.stash[_RECORDING]
    if item.name.endswith("[nothing]"):
        return result
    name = item.name.partition("[")[2].rpartition("]")[0] or item.name
    tier = _tier_of(item)
    name = name if name.startswith(f"{tier}-") else f"{tier}-{name.removeprefix('test_')}"
    if result.outcome == "skipped":
        reason = result.longrepr[2] if isinstance(result.longrepr, tuple) else result.longrepr
        recording.leave_out(tier, name, str(reason).removeprefix("Skipped: "))
    elif result.when == "call" or result.failed:
        found = item.stash.get(_FOUND, Found())
        text = str(result.longrepr) if result.failed else ""
        recording.add(tier, name, not result.failed, result.duration, text, found)
        if result.failed and any(o.state == "hung" for o in found.outcomes):
            item.config.stash[_HUNG] = True
            item.session.shouldstop = "ranks hung"
    return result


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the verdict. A hang is no ordinary failure: it has an exit code of its own."""
    config = session.config
    recording = config.stash[_RECORDING]
    hung = config.stash.get(_HUNG, False)
    ended = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if hung or exitstatus in ended:
        impossible = bool(config.stash[_SELECTION].impossible)
        code = recording.end(hung=hung, impossible=impossible)
        # Other tests may run beside these, by `invoke test`: theirs is the say, but of a hang.
        if config.getoption("--records") or hung:
            session.exitstatus = code
    recording.close()
    config.stash[_STATUS] = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once where a parent waits: a library's exit handlers may wait for dead ranks."""
    if config.getoption("--parent") and (status := config.stash.get(_STATUS, None)) is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
