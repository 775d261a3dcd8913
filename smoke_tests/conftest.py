"""Options, and a pool of ranks for the checks: one at a time, new after a failure."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "kernels" / "src"):
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from smoke_tests.checks.registry import load
from smoke_tests.controls import CONTROLS, SEQUENCE_FAULTS
from smoke_tests.drawn import Sequence
from smoke_tests.kinds import Kind
from smoke_tests.pool import Pool
from smoke_tests.report import Report
from smoke_tests.tiers import TIERS, settings

KERNELS = {"auto": {}, "cubins": {"GEMM_AR_NO_JIT": "1"}, "jit": {"GEMM_AR_CUBINS": "none"}}
HUNG = 6
_hung: list[str] = []
_REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what decides which ranks run."""
    parser.addoption("--tier", choices=TIERS, default="cpu", help="which ranks to run on")
    parser.addoption("--controls", action="store_true", help="also plant faults, and catch them")
    parser.addoption("--report", type=Path, help="write the verdict to this file, as JSON")
    kernels = "cubins: nothing may be compiled; jit: everything is; auto: cubins where some fit"
    parser.addoption("--kernels", choices=list(KERNELS), default="auto", help=kernels)
    parser.addoption("--ranks", type=int, default=0, help="number of ranks; 0: the tier's own")
    drawn = "draw so many sequences of calls for each number of ranks; 0: a few, with --controls"
    parser.addoption("--sequences", type=int, default=0, help=drawn)
    parser.addoption("--replay", metavar="JSON", help="play one sequence, as a failure printed it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every check, or of every planted fault, on every set of ranks of the tier."""
    known = ("ranks", "check", "control", "kind", "world_size", "fault")
    names = [n for n in known if n in metafunc.fixturenames]
    if not names:
        return
    if missing := _missing(metafunc.config):
        reason = f"not installed: {', '.join(missing)}"
        nothing = [None] * len(names)
        marks = pytest.mark.skip(reason=reason)
        metafunc.parametrize(names, [pytest.param(*nothing, marks=marks, id="nothing")])
    elif "fault" in names:
        metafunc.parametrize(
            "fault", [pytest.param(f, id=f"cpu-{f.name}") for f in SEQUENCE_FAULTS]
        )
    elif "world_size" in names:
        metafunc.parametrize("world_size", _drawn_cases(metafunc.config))
    elif "control" in names:
        metafunc.parametrize(("control", "kind"), _control_cases(metafunc.config))
    else:
        metafunc.parametrize(("ranks", "check"), _check_cases(metafunc.config))


def _missing(config: pytest.Config) -> list[str]:
    # Only the interpreter, planted faults and kernels without a cubin need Triton.
    needs = ["torch", "numpy"]
    if config.getoption("--tier") == "cpu" or config.getoption("--controls"):
        needs.append("triton")
    return [name for name in needs if not importlib.util.find_spec(name)]


def _control_cases(config: pytest.Config) -> list[ParameterSet]:
    kinds = {"cpu": ["cpu"], "gpu": ["virtual", "nvshmem"], "multi-gpu": ["nvshmem"]}
    return [
        pytest.param(control, kind, id=f"{kind}-{control.name}")
        for control in CONTROLS
        for kind in kinds[config.getoption("--tier")]
        if kind in control.kinds
    ]


def _drawn_cases(config: pytest.Config) -> list[ParameterSet]:
    ranks = config.getoption("--ranks")
    counts = [ranks] if ranks else [1, 2, 4]
    if replay := config.getoption("--replay"):
        counts = [Sequence.from_json(replay).world_size]
    return [pytest.param(w, id=f"cpu-w{w}-drawn_sequences") for w in counts]


def _check_cases(config: pytest.Config) -> list[ParameterSet]:
    chosen = settings(config.getoption("--tier"), config.getoption("--ranks"))
    one_gpu = config.getoption("--tier") == "gpu"
    return [
        pytest.param(
            (kind, world_size),
            check,
            id=f"{kind}-w{world_size}-{check.name}",
            marks=_absent(check.needs),
        )
        for kind, world_size in chosen
        for check in load().values()
        if kind in check.kinds and world_size >= check.least_ranks
        if not check.needs_cubins or config.getoption("--kernels") == "cubins"
        if not (check.own_gpu and one_gpu)
    ]


def _absent(module: str) -> list[pytest.MarkDecorator]:
    if not module or importlib.util.find_spec(module):
        return []
    return [pytest.mark.skip(reason=f"not installed: {module}")]


@pytest.fixture(scope="session")
def pool_of() -> Iterator[Callable[[Kind, int], Pool]]:
    """Give the pool of a set of ranks, starting it if it is not the one that runs."""
    current: list[Pool] = []

    def give(kind: Kind, world_size: int) -> Pool:
        if current:
            same = (current[0].kind, current[0].world_size) == (kind, world_size)
            if same and current[0].usable:
                return current[0]
            current.pop().close()
        pool = Pool(kind, world_size)
        current.append(pool)
        return pool

    yield give
    for pool in current:
        pool.close()


@pytest.fixture(scope="session")
def hung() -> list[str]:
    """Names of checks that ran into their time limit."""
    return _hung


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Faults are planted and sequences drawn when asked for, sequences in the interpreter."""
    name = collection_path.name
    drawn = name in ("test_drawn.py", "test_drawn_controls.py")
    wished = config.getoption("--controls")
    if name == "test_drawn.py":
        wished = wished or config.getoption("--sequences") or config.getoption("--replay")
    if (drawn or name == "test_controls.py") and not wished:
        return True
    return True if drawn and config.getoption("--tier") != "cpu" else None


def pytest_configure(config: pytest.Config) -> None:
    """Start the report; keep the tier of one GPU to one, where the host has more."""
    if config.getoption("--tier") == "gpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.update(KERNELS[config.getoption("--kernels")])
    config.stash[_REPORT] = Report(config.getoption("--tier"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put every outcome into the report."""
    result = yield
    if result.when == "call" or result.outcome != "passed":
        detail = dict(item.user_properties).get("detail", "")
        text = str(result.longrepr) if result.failed else str(detail)
        name = item.name.partition("[")[2].rstrip("]") or item.name
        item.config.stash[_REPORT].add(name, result.outcome, result.duration, text)
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report. A hang is no ordinary failure: it has an exit code of its own."""
    if path := session.config.getoption("--report"):
        session.config.stash[_REPORT].write(path)
    if _hung:
        session.exitstatus = HUNG
