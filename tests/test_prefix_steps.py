"""A verb on a prefix, killed before each of its steps: the state is always whole, and goes on."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdstack.errors import HostError
from tdstack.prefix.lock import locked
from tdstack.prefix.place import Prefix
from tdstack.prefix.switch import switch
from tdstack.prefix.uninstall import uninstall
from tdstack.prefix.version import publish
from tests.small_prefixes import a_prefix, a_version, whole

OLD, NEW = "a" * 20, "b" * 20
# Everything that changes a folder, as Python's audit events name it (PEP 578).
CHANGES = {"os.rename", "os.remove", "os.symlink", "os.mkdir", "os.rmdir", "os.link"}
Verb = Callable[[Prefix], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder; in memory, where there is one, as every step of every run is synced."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="tdstack-steps-", dir="/dev/shm") as name:
        yield Path(name)


def killed_before(step: int, verb: Verb, prefix: Prefix) -> bool:
    """Run a verb in a process that is killed before its `step`th change; return whether it was."""
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"step {step}"
        return status != 0
    done = 0

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal done
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in CHANGES or writes:
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        verb(prefix)
        os._exit(0)
    except BaseException:
        os._exit(1)


def every_step(
    folder: Path,
    keys: tuple[str, ...],
    verb: Verb,
    check: Callable[[Prefix], None],
    beside: str = "",
) -> int:
    """Kill the verb before each step, each time in a new prefix, and check; return how many.

    `beside` is a version that is there, and was never in use.
    """
    step = 0
    while True:
        step += 1
        prefix = a_prefix(folder / str(step) / "p", *keys)
        if beside:
            a_version(prefix, beside)
        before = killed_before(step, verb, prefix)
        check(prefix)
        if not before:
            return step - 1


def assert_gone(prefix: Prefix) -> None:
    # The folder itself stays if the kill fell between it and the note that says who made it.
    assert not prefix.root.exists() or not list(prefix.root.iterdir())


def in_use(prefix: Prefix) -> str:
    key = prefix.named_by(prefix.current)
    assert whole(prefix.current), key
    return key


def settled(prefix: Prefix) -> None:
    """What is derived agrees with the version in use, after any verb."""
    now = prefix.named_by(prefix.current)
    with locked(prefix, make=False):
        assert in_use(prefix) == now
    assert not list(prefix.own.glob("*.json.new"))
    assert {p.name for p in prefix.own.iterdir()} == {"prefix.json", "lock"}
    modules = {f"cu124-{key[:8]}{end}" for key in prefix.version_keys() for end in ("", ".lua")}
    assert {p.name for p in prefix.modules.iterdir()} == {*modules, ".version", "default"}
    assert os.readlink(prefix.modules / "default") == f"cu124-{now[:8]}.lua"
    assert now[:8] in (prefix.modules / ".version").read_text()


def test_a_switch_happens_or_does_not(folder: Path) -> None:
    def verb(prefix: Prefix) -> None:
        with locked(prefix, make=False):
            switch(prefix, NEW)

    found = []

    def check(prefix: Prefix) -> None:
        now = in_use(prefix)
        found.append(now)
        settled(prefix)
        # Whoever goes back after a kill must not end where they are.
        assert prefix.named_by(prefix.previous) == {NEW: OLD, OLD: ""}[now]

    assert every_step(folder, (OLD,), verb, check, beside=NEW) > 10
    assert found == sorted(found)
    assert {OLD, NEW} == set(found)


def test_a_version_has_its_name_when_it_is_whole(folder: Path) -> None:
    def verb(prefix: Prefix) -> None:
        with locked(prefix, make=False):
            made = a_version(prefix, NEW, prefix.staging / "x")
            publish(made, prefix.versions / NEW, prefix.trash)

    def check(prefix: Prefix) -> None:
        assert all(whole(prefix.versions / key) for key in prefix.version_keys())
        settled(prefix)

    every_step(folder, (OLD,), verb, check)


def test_a_version_made_again_is_never_missing(folder: Path) -> None:
    def verb(prefix: Prefix) -> None:
        with locked(prefix, make=False):
            made = a_version(prefix, OLD, prefix.staging / "x")
            (made / "again").touch()
            publish(made, prefix.versions / OLD, prefix.trash)

    def check(prefix: Prefix) -> None:
        assert in_use(prefix) == OLD
        settled(prefix)

    every_step(folder, (OLD,), verb, check)
    assert any((p / "again").is_file() for p in folder.glob("*/p/versions/*"))


def test_an_uninstalled_version_goes_whole(folder: Path) -> None:
    def verb(prefix: Prefix) -> None:
        uninstall(prefix, OLD, everything=False, dry=False)

    def check(prefix: Prefix) -> None:
        assert in_use(prefix) == NEW
        assert all(whole(prefix.versions / key) for key in prefix.version_keys())
        settled(prefix)

    every_step(folder, (OLD, NEW), verb, check)


def test_an_uninstall_of_all_goes_on_until_nothing_is_left(folder: Path) -> None:
    def verb(prefix: Prefix) -> None:
        uninstall(prefix, "", everything=True, dry=False)

    def check(prefix: Prefix) -> None:
        assert all(whole(prefix.versions / key) for key in prefix.version_keys())
        uninstall(prefix, "", everything=True, dry=False)
        assert_gone(prefix)

    assert every_step(folder, (OLD, NEW), verb, check) > 30


def test_a_first_install_that_is_killed_can_be_run_again_or_uninstalled(folder: Path) -> None:
    step = 0
    while True:
        step += 1
        prefix = Prefix.of(str(folder / str(step)))

        def verb(prefix: Prefix) -> None:
            with locked(prefix, make=True):
                made = a_version(prefix, NEW, prefix.staging / "x")
                publish(made, prefix.versions / NEW, prefix.trash)
                switch(prefix, NEW)

        killed = killed_before(step, verb, prefix)
        verb(prefix) if not prefix.version_keys() else switch(prefix, NEW)
        assert in_use(prefix) == NEW
        uninstall(prefix, "", everything=True, dry=False)
        assert_gone(prefix)
        if not killed:
            return


def test_an_error_in_a_first_install_leaves_nothing(folder: Path) -> None:
    prefix = Prefix.of(str(folder / "a" / "b" / "c"))

    def fail() -> None:
        with locked(prefix, make=True):
            (prefix.staging / "x" / "y").mkdir(parents=True)
            raise HostError("the disk is full")

    with pytest.raises(HostError):
        fail()
    assert not list(folder.iterdir())
