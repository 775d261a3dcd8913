"""Every order in which Triton and Triton-distributed get installed and removed, told right.

The orders are walked exhaustively: an environment's future depends on its files alone, so every
state that up to five operations can reach is reached by walking from state to state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tdstack.fork.acquire import take_file
from tdstack.fork_verbs import make_installer
from tdstack.lock.io import load_lock
from tdstack.verify.environment import find_environment
from tdstack.verify.triton.diagnosis import check_triton, diagnose
from tdstack.verify.triton.judge import Verdict
from tdstack.verify.triton.mend import MendError, mend
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.conftest import ROOT
from tests.triton_environments import Venv, Wheels, contents, remove, truth
from tests.triton_wheels import (
    FORK_BACKENDS,
    FORK_FILES,
    STOCK_BACKENDS,
    STOCK_FILES,
    TAG,
    TRAP_FILES,
)

if TYPE_CHECKING:
    from tests.conftest import MakeWheel

PINNED = load_lock(ROOT)[0].triton_distributed
LENGTH = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, make_wheel: MakeWheel, store: Store) -> Wheels:
    folder = tmp_path_factory.mktemp("wheels")
    fork = make_wheel(
        folder, "triton_dist", "3.4.0", FORK_FILES, tag=TAG, entry_points=FORK_BACKENDS
    )
    taken = take_file(fork, store, PINNED)
    labelled, alias = (folder / f.name for f in (taken.file, taken.alias))
    labelled.write_bytes(store.verify(taken.file).read_bytes())
    alias.write_bytes(store.verify(taken.alias).read_bytes())
    stock = make_wheel(folder, "triton", "3.4.0", STOCK_FILES, tag=TAG, entry_points=STOCK_BACKENDS)
    trap = make_wheel(folder, "triton_dist", "0.0.0", TRAP_FILES)
    return Wheels(stock, fork, labelled, alias, trap)


Operation = Callable[[Venv, Wheels], None]
OPERATIONS: Mapping[str, Operation] = {
    "stock": lambda v, w: v.install(w.stock),
    "fork": lambda v, w: v.install(w.fork),
    "labelled": lambda v, w: v.install(w.labelled, w.alias),
    "trap": lambda v, w: v.install(w.trap),
    "uninstall triton": lambda v, w: v.uninstall("triton"),
    "uninstall triton_dist": lambda v, w: v.uninstall("triton_dist"),
    # What upstream's own instructions say to do before an install.
    "rm -rf triton": lambda v, w: remove(v, ["triton"]),
}


def _key(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        # Installers note when and from where; Triton does not depend on it.
        if not name.endswith(("/RECORD", "/direct_url.json", "/REQUESTED", "/uv_cache.json")):
            digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def states(
    tmp_path_factory: pytest.TempPathFactory, wheels: Wheels
) -> tuple[Venv, dict[tuple[str, ...], dict[str, bytes]]]:
    """Every state that up to LENGTH operations reach, by the shortest way to it."""
    venv = Venv(tmp_path_factory.mktemp("walk") / "venv")
    found: dict[tuple[str, ...], dict[str, bytes]] = {(): {}}
    known = {_key({})}
    edge: list[tuple[str, ...]] = [()]
    for _ in range(LENGTH):
        new = []
        for way in edge:
            for name, operation in OPERATIONS.items():
                venv.restore(found[way])
                operation(venv, wheels)
                files = venv.files()
                if (key := _key(files)) not in known:
                    known.add(key)
                    found[(*way, name)] = files
                    new.append((*way, name))
        edge = new
    return venv, found


def test_the_walk_reaches_every_verdict_and_ends(
    states: tuple[Venv, dict[tuple[str, ...], dict[str, bytes]]], wheels: Wheels
) -> None:
    venv, found = states
    verdicts = set()
    for files in found.values():
        venv.restore(files)
        verdicts.add(truth(venv, wheels))
    assert verdicts == {v.value for v in Verdict}
    assert len(found) > 20


def test_the_verdict_of_every_state_is_the_truth_of_its_files(
    states: tuple[Venv, dict[tuple[str, ...], dict[str, bytes]]], wheels: Wheels
) -> None:
    venv, found = states
    environment = find_environment(venv.prefix)
    wrong = []
    for way, files in found.items():
        venv.restore(files)
        told = diagnose(environment).judgement
        if told.verdict.value != (true := truth(venv, wheels)):
            wrong.append((way, true, told))
    assert wrong == []


def test_with_a_wheel_fix_leaves_triton_distributed_alone_in_every_state(
    states: tuple[Venv, dict[tuple[str, ...], dict[str, bytes]]],
    wheels: Wheels,
    store: Store,
) -> None:
    venv, found = states
    environment = find_environment(venv.prefix)
    installer = make_installer(str(wheels.fork), workspace=Workspace(ROOT, store))
    for way, files in found.items():
        venv.restore(files)
        mend(environment, "distributed", installer)
        assert truth(venv, wheels) == "distributed", way
        assert all(f.ok for f in check_triton(diagnose(environment))), way
        assert mend(environment, "distributed", installer) == [], (way, "twice is once")


def test_without_a_wheel_fix_mends_what_is_there_or_leaves_everything_as_it_was(
    states: tuple[Venv, dict[tuple[str, ...], dict[str, bytes]]],
    wheels: Wheels,
    tmp_path: Path,
) -> None:
    venv, found = states
    environment = find_environment(venv.prefix)
    # An empty store: the wheel itself is out of reach.
    installer = make_installer(workspace=Workspace(ROOT, Store(tmp_path)))
    refused, mended = [], []
    for way, files in found.items():
        venv.restore(files)
        whole = _whole_fork_on_disk(venv, wheels)
        try:
            mend(environment, "distributed", installer)
        except MendError as error:
            assert error.remedy, way
            assert venv.files() == files, way
            assert not whole, way
            refused.append(way)
        else:
            assert whole, way
            assert diagnose(environment).judgement.verdict is Verdict.DISTRIBUTED, way
            mended.append(way)
    assert len(refused) > 3
    assert len(mended) > 3


def _whole_fork_on_disk(venv: Venv, wheels: Wheels) -> bool:
    """Whether the fork's own files are all there, with metadata that says so."""
    infos = {p.name for p in venv.site.glob("triton*.dist-info")}
    for wheel in (wheels.fork, wheels.labelled):
        if f"{'-'.join(wheel.name.split('-')[:2])}.dist-info" not in infos:
            continue
        there = all(
            (venv.site / name).is_file() and (venv.site / name).read_bytes() == data
            for name, data in contents(wheel).items()
        )
        if there and (venv.prefix / "bin/proton").exists():
            return True
    return False
