"""`invoke lock --wheel`: what is recorded, who is refused because of it, who is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tdstack.errors import ExitCode, IntegrityError, UsageError
from tdstack.fork.acquire import fork_wheel, take_file
from tdstack.fork.model import ForkSource, ForkWheel
from tdstack.fork_verbs import record_wheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedForkWheel, LockedTritonDistributed
from tdstack.verify.triton.fork import LIBRARY
from tdstack.wheelhouse.store import Store, sha256_of
from tdstack.workspace import Workspace
from tests.checkouts import copy_checkout
from tests.conftest import ROOT
from tests.odd_wheels import odd_wheel
from tests.test_cli import Ended, invoke
from tests.triton_wheels import TAG, library

NOBODY = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
UNRECORDED = "is not in versions.lock"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout whose lock records no wheel yet."""
    copy = copy_checkout(ROOT, tmp_path / "checkout")
    assert recorded(copy) == []
    return copy


def recorded(checkout: Path) -> list[LockedForkWheel]:
    return load_lock(checkout)[0].triton_distributed.wheels


def run(checkout: Path, *words: str) -> Ended:
    return invoke(checkout, *words, TDSTACK_CACHE=str(checkout.parent / "cache"), **NOBODY)


def lock_bytes(checkout: Path) -> bytes:
    return (checkout / "versions.lock").read_bytes()


def test_a_wheel_is_recorded_once_and_stays(checkout: Path, tmp_path: Path) -> None:
    wheel = odd_wheel(tmp_path / "given")
    before = lock_bytes(checkout)

    planned = run(checkout, "plan", f"--wheel={wheel}")
    assert planned.code == 0, planned.err
    assert UNRECORDED in planned.err
    assert f"{wheel.name} (sha256 {sha256_of(wheel)[:12]}...)" in planned.err

    dry = run(checkout, "lock", f"--wheel={wheel}", "--dry")
    assert dry.code == 0, dry.err
    assert "dry run" in dry.err
    assert lock_bytes(checkout) == before

    first = run(checkout, "lock", f"--wheel={wheel}")
    assert first.code == 0, first.err
    assert f"recorded in versions.lock: {wheel.name}, sha256 {sha256_of(wheel)}" in first.err
    (entry,) = recorded(checkout)
    assert entry == LockedForkWheel(
        name=wheel.name, sha256=sha256_of(wheel), size=wheel.stat().st_size,
        python="3.11", glibc="2.2.5",
    )  # fmt: skip
    after = lock_bytes(checkout)
    moved = {**json.loads(after), "triton_distributed": None}
    assert moved == {**json.loads(before), "triton_distributed": None}, "nothing else moved"

    second = run(checkout, "lock", f"--wheel={wheel}")
    assert second.code == 0, second.err
    assert "recorded before" in second.err
    assert run(checkout, "lock", "--check").code == 0
    assert run(checkout, "lock").code == 0
    assert lock_bytes(checkout) == after, "a lock without a change keeps what is recorded"

    planned = run(checkout, "plan", f"--wheel={wheel}")
    assert planned.code == 0, planned.err
    assert UNRECORDED not in planned.err


def test_another_wheel_of_a_recorded_name_is_refused_until_it_is_recorded_too(
    checkout: Path, tmp_path: Path
) -> None:
    one = odd_wheel(tmp_path / "one")
    other = odd_wheel(tmp_path / "other", {"triton/x.py": ""})
    assert run(checkout, "lock", f"--wheel={one}").code == 0
    for verb in (["plan"], ["build", "--dry"]):
        ended = run(checkout, *verb, f"--wheel={other}", "--json")
        assert ended.code == ExitCode.INTEGRITY
        told = json.loads(ended.out)
        assert told["expected"] == f"sha256 {sha256_of(one)}"
        assert told["got"] == f"sha256 {sha256_of(other)}"
        assert "invoke lock --wheel" in told["remedy"]
    assert run(checkout, "lock", f"--wheel={other}").code == 0
    assert {w.sha256 for w in recorded(checkout)} == {sha256_of(one), sha256_of(other)}
    for wheel in (one, other):
        ended = run(checkout, "plan", f"--wheel={wheel}")
        assert ended.code == 0, ended.err


def test_a_refused_wheel_is_not_recorded(checkout: Path, tmp_path: Path) -> None:
    before = lock_bytes(checkout)
    stock = odd_wheel(tmp_path / "stock", {LIBRARY: library(fork=False)})
    lacking = odd_wheel(tmp_path / "lacking", {"triton_dist/language/core.py": None})
    for wheel in (stock, lacking):
        for dry in ([], ["--dry"]):
            ended = run(checkout, "lock", f"--wheel={wheel}", *dry)
            assert ended.code == ExitCode.INTEGRITY, ended.err
    assert run(checkout, "lock", "--wheel=nowhere.whl").code == ExitCode.USAGE
    assert lock_bytes(checkout) == before
    assert run(checkout, "lock", f"--wheel={lacking}", "--incomplete").code == 0
    assert [w.sha256 for w in recorded(checkout)] == [sha256_of(lacking)]


# The rest of it without a process for each step.


@pytest.fixture
def workspace(checkout: Path, store: Store) -> Workspace:
    return Workspace(checkout, store)


def record(workspace: Workspace, *wheels: Path) -> LockedTritonDistributed:
    for wheel in wheels:
        record_wheel(workspace, ForkSource(str(wheel)), dry=False)
    return load_lock(workspace.root)[0].triton_distributed


def labelled(fork: ForkWheel, store: Store, folder: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / fork.file.name
    path.write_bytes(store.path(fork.file).read_bytes())
    return path


def test_a_dry_recording_leaves_nothing_anywhere(workspace: Workspace, tmp_path: Path) -> None:
    wheel = odd_wheel(tmp_path / "given")
    assert record_wheel(workspace, ForkSource(str(wheel)), dry=True) is None
    assert recorded(workspace.root) == []
    assert [p for p in workspace.store.root.rglob("*") if p.is_file()] == []


def test_a_relabelled_wheel_is_recorded_as_what_it_was_made_from(
    workspace: Workspace, tmp_path: Path
) -> None:
    wheel = odd_wheel(tmp_path / "given")
    fork = take_file(wheel, workspace.store, record(workspace))
    pinned = record(workspace, labelled(fork, workspace.store, tmp_path / "out"))
    assert [(w.name, w.sha256) for w in pinned.wheels] == [(wheel.name, sha256_of(wheel))]
    assert take_file(wheel, workspace.store, pinned) == fork


def test_a_relabelled_wheel_does_not_pass_by_its_new_name(
    workspace: Workspace, tmp_path: Path
) -> None:
    pinned = record(workspace, odd_wheel(tmp_path / "one"))
    other = odd_wheel(tmp_path / "other", {"triton/x.py": ""})
    elsewhere = Store(tmp_path / "elsewhere")
    fork = take_file(other, elsewhere, pinned.model_copy(update={"wheels": []}))
    disguised = labelled(fork, elsewhere, tmp_path / "out")
    for _ in range(2):  # what is remembered is no way round it either
        with pytest.raises(IntegrityError, match="not the wheel of that name") as caught:
            take_file(disguised, workspace.store, pinned)
        assert caught.value.got == f"sha256 {sha256_of(other)}"
        take_file(disguised, workspace.store, pinned.model_copy(update={"wheels": []}))


def test_what_the_pinned_commit_built_needs_no_record(workspace: Workspace, tmp_path: Path) -> None:
    pinned = record(workspace, odd_wheel(tmp_path / "one"))
    built = odd_wheel(tmp_path / "built", {"triton/x.py": ""})
    fork = take_file(built, workspace.store, pinned, commit=pinned.commit)
    assert fork.source.commit == pinned.commit


def test_of_a_wheelhouse_with_two_forks_the_recorded_one_is_taken(
    workspace: Workspace, tmp_path: Path
) -> None:
    house = tmp_path / "house"
    one = odd_wheel(house, {LIBRARY: library(python="3.12")}, tag=TAG.replace("cp311", "cp312"))
    other = odd_wheel(house)
    with pytest.raises(UsageError, match="more than one"):
        fork_wheel(record(workspace), [house], workspace.store)
    for wheel in (one, other):
        pinned = record(workspace).model_copy(update={"wheels": []})
        own = take_file(wheel, Store(tmp_path / wheel.name), pinned).source
        found = fork_wheel(pinned.model_copy(update={"wheels": [own]}), [house], workspace.store)
        assert found is not None
        assert found.source == own


def test_with_nothing_given_the_recorded_one_in_the_store_is_taken(
    workspace: Workspace, tmp_path: Path
) -> None:
    wheel = odd_wheel(tmp_path / "given")
    unrecorded = odd_wheel(tmp_path / "other", {"triton/x.py": ""})
    take_file(unrecorded, workspace.store, record(workspace))
    assert fork_wheel(record(workspace), [], workspace.store) is None, "in the store, unrecorded"
    pinned = record(workspace, wheel)
    found = fork_wheel(pinned, [], workspace.store)
    assert found is not None
    assert found.source.sha256 == sha256_of(wheel)
    assert fork_wheel(pinned, [], Store(tmp_path / "empty")) is None


def test_of_two_recorded_ones_in_the_store_the_one_for_the_python_is_taken(
    workspace: Workspace, tmp_path: Path
) -> None:
    tag = TAG.replace("cp311", "cp312")
    older, newer = (
        odd_wheel(tmp_path / "given"),
        odd_wheel(tmp_path / "given", {LIBRARY: library(python="3.12")}, tag=tag),
    )
    pinned = record(workspace, older, newer)
    for python, wheel in (("3.11", older), ("3.12", newer)):
        found = fork_wheel(pinned, [], workspace.store, python=python)
        assert found is not None
        assert found.source.sha256 == sha256_of(wheel)
    # For another Python the pinned commit is built instead.
    assert fork_wheel(pinned, [], workspace.store, python="3.13") is None
