"""A swap happens as a whole or not at all, wherever it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdstack.verify.triton.swap import FOLDER, SwapError, pending, recover, staging, swap
from tests.conftest import ROOT

Tree = dict[str, str]
BEFORE: Tree = {
    "triton/__init__.py": "old",
    "triton/only_old.py": "old",
    "triton-1.dist-info/RECORD": "old",
    "bin/proton": "old",
    "numpy/__init__.py": "other",
}
AFTER: Tree = {
    "triton/__init__.py": "new",
    "triton_dist/__init__.py": "new",
    "bin/proton": "new",
    "numpy/__init__.py": "other",
}
OUTS = ("triton", "triton-1.dist-info", "bin/proton")
INS = ("triton", "triton_dist", "bin/proton")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    for name, text in BEFORE.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return site


def tree(site: Path) -> Tree:
    return {str(p.relative_to(site)): p.read_text() for p in site.rglob("*") if p.is_file()}


def stage(folder: Path) -> None:
    for name in ("triton/__init__.py", "triton_dist/__init__.py", "bin/proton"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new")


def do_swap(
    site: Path, outs: tuple[str, ...] = OUTS, check: Callable[[], None] = lambda: None
) -> None:
    with staging(site) as folder:
        stage(folder)
        swap(site, [site / o for o in outs], {site / i: folder / i for i in INS}, check)


def test_a_swap_replaces_all_and_leaves_nothing_of_itself(site: Path) -> None:
    do_swap(site)
    assert tree(site) == AFTER
    assert not (site / FOLDER).exists()


# The first rename gives the journal its name; the others are the swap's.
RENAMES = 1 + len(OUTS) + len(INS)


@pytest.mark.parametrize("failing", range(RENAMES))
def test_a_rename_that_fails_puts_everything_back(
    site: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.rename, iter(range(100))

    def rename(source: str, target: str) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(SwapError, match="No space left"):
        do_swap(site)
    assert tree(site) == BEFORE
    assert not (site / FOLDER).exists()


def test_a_check_that_says_no_puts_everything_back(site: Path) -> None:
    class NoError(Exception):
        pass

    def check() -> None:
        assert (site / "triton/__init__.py").read_text() == "new"
        raise NoError

    with pytest.raises(NoError):
        do_swap(site, check=check)
    assert tree(site) == BEFORE


def test_a_file_that_is_in_the_way_stops_the_swap(site: Path) -> None:
    with pytest.raises(SwapError, match="would be overwritten"):
        do_swap(site, outs=("triton",))
    assert tree(site) == BEFORE


def test_what_was_staged_goes_away_when_nothing_is_swapped(site: Path) -> None:
    with staging(site) as folder:
        stage(folder)
    assert tree(site) == BEFORE
    assert not (site / FOLDER).exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests import test_verify_swap as t
real, left = os.rename, [int(sys.argv[3])]
def rename(source, target):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(source, target)
os.rename = rename
t.do_swap(Path(sys.argv[2]))
"""


@pytest.mark.parametrize("steps", range(1, RENAMES))
def test_a_killed_swap_is_undone_by_the_next_process(site: Path, steps: int) -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), str(site), str(steps)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pending(site)
    if steps > 1:
        assert tree(site).keys() != BEFORE.keys()
    assert recover(site)
    assert tree(site) == BEFORE
    assert not recover(site)


def test_the_next_swap_undoes_a_killed_one_first(site: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), str(site), "4"]
    subprocess.run(command, check=False, capture_output=True)
    assert pending(site)
    do_swap(site)
    assert tree(site) == AFTER


def test_an_undoing_that_is_killed_itself_is_taken_up_again(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), str(site), "5"]
    subprocess.run(command, check=False, capture_output=True)
    real, calls = os.rename, iter(range(100))

    def rename(source: str, target: str) -> None:
        if next(calls) == 2:
            raise OSError(5, "Input/output error", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(SwapError, match="cannot be undone"):
            recover(site)
    assert recover(site)
    assert tree(site) == BEFORE


@pytest.fixture
def holder(site: Path) -> Iterator[subprocess.Popen[str]]:
    code = (
        "import fcntl, os, sys, time\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(site)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "held\n"
    yield running
    running.kill()
    running.communicate()


def test_two_at_once_are_refused(site: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(SwapError, match="another process"):
        do_swap(site)
    assert tree(site) == BEFORE


def test_a_journal_that_makes_no_sense_is_not_acted_on(site: Path) -> None:
    (site / FOLDER).mkdir()
    (site / FOLDER / "journal").write_text("[{]")
    with pytest.raises(SwapError, match="cannot be undone"):
        recover(site)
    assert pending(site)


def test_another_file_system_is_refused_before_anything_moves(site: Path) -> None:
    elsewhere = Path("/dev/shm") / f"swap-{os.getpid()}"
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == site.stat().st_dev:
        pytest.skip("no second file system here")
    with staging(site) as folder:
        stage(folder)
        with pytest.raises(SwapError, match="another file system"):
            swap(site, [site / "triton"], {elsewhere: folder / "triton"})
    assert tree(site) == BEFORE
    assert not elsewhere.exists()
