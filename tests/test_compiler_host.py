"""Which compiler a host gets, and what is said when there is none for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tdstack.compiler.environment import Compiler, compiler_of
from tdstack.compiler.host import Host, compiler_stack
from tdstack.errors import HostError, UsageError
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import Lock
from tdstack.stack import Request, Stack
from tdstack.wheelhouse.store import Store
from tests.triton_wheels import a_fork

HERE = Host("x86_64", "3.11", "2.36", Path("/usr/bin/python3.11"))
STOCK = Request("12.4", "stock")
DISTRIBUTED = Request("12.4", "distributed")


def stack_of(
    lock: Lock, request: Request, host: Host = HERE, fork: ForkWheel | None = None
) -> Stack:
    return compiler_stack(lock, host, request, lambda: fork)


def names(stack: Stack, layer: str) -> list[str]:
    return [f"{p.name} {p.version}" for p in stack.packages[layer]]  # type: ignore[index]


def test_this_host_is_described() -> None:
    host = Host.here()
    assert host.platform == "linux/amd64"
    assert host.interpreter.is_file()
    assert not (host.interpreter.parent.parent / "pyvenv.cfg").exists()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_stock_comes_from_the_lock_for_the_hosts_python(lock: Lock, python: str) -> None:
    stack = stack_of(lock, STOCK, replace(HERE, python=python))
    file = next(p.file for p in stack.packages["triton"] if p.name == "triton")
    assert file is not None
    assert f"-cp{python.replace('.', '')}-" in file.name
    assert names(stack, "cuda") == ["nvidia-cuda-nvcc-cu12 12.4.131"]


def test_every_line_has_its_own_ptxas_and_archs(lock: Lock) -> None:
    found = {cuda: stack_of(lock, Request(cuda, "stock")) for cuda in lock.lines}
    assert len({tuple(names(stack, "cuda")) for stack in found.values()}) == len(lock.lines)
    assert all(list(stack.archs) == lock.lines[cuda].archs for cuda, stack in found.items())


def test_fork_takes_the_place_of_stock(lock: Lock) -> None:
    stack = stack_of(lock, DISTRIBUTED, fork=a_fork())
    assert "triton 3.4.0+dist.0a" in names(stack, "triton")
    assert "triton 3.4.0" not in names(stack, "triton")


def test_no_fork_names_the_ways_out(lock: Lock) -> None:
    with pytest.raises(HostError) as caught:
        stack_of(lock, DISTRIBUTED)
    assert "--wheel FILE" in caught.value.remedy
    assert "--triton stock" in caught.value.remedy


@pytest.mark.parametrize(
    ("fork", "got"),
    [
        (a_fork("cp312-cp312-linux_x86_64"), "Python 3.12"),
        (a_fork(python="3.12"), "Python 3.12"),
        (a_fork(glibc="2.38"), "glibc 2.38"),
        (a_fork(machine="aarch64"), "aarch64"),
    ],
)
def test_fork_for_another_host_leads_to_the_image(lock: Lock, fork: ForkWheel, got: str) -> None:
    with pytest.raises(HostError, match="does not run on this host") as caught:
        stack_of(lock, DISTRIBUTED, fork=fork)
    assert got in caught.value.got
    assert "`invoke build`" in caught.value.remedy


@pytest.mark.parametrize(
    "host",
    [
        replace(HERE, machine="aarch64"),
        replace(HERE, machine="riscv64"),
        replace(HERE, python="3.10"),
        replace(HERE, python="3.14"),
    ],
)
def test_host_without_a_locked_triton_is_told(lock: Lock, host: Host) -> None:
    with pytest.raises(HostError) as caught:
        stack_of(lock, STOCK, host)
    assert f"Python {host.python} on {host.machine}" in caught.value.what
    assert "Python 3.11 on linux/amd64" in caught.value.expected
    assert "`invoke build`" in caught.value.remedy


def test_arm64_compiles_where_the_lock_has_its_triton(lock: Lock) -> None:
    stack = stack_of(lock, Request("13.0", "stock"), replace(HERE, machine="aarch64"))
    assert stack.platform == "linux/arm64"


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (Request("12.5", "stock"), "--cuda"),
        (Request("12.4", "fork"), "--triton"),
        (Request("12.4", "stock", archs=("sm_100",)), "--arch"),
        (Request("13.0", "distributed"), "--triton distributed"),
    ],
)
def test_usage_is_checked_before_a_fork_is_looked_for(
    lock: Lock, request_: Request, where: str
) -> None:
    def find() -> ForkWheel:
        raise AssertionError("looked for")

    with pytest.raises(UsageError) as caught:
        compiler_stack(lock, HERE, request_, find)
    assert caught.value.where == where


def test_environment_is_named_by_all_that_decides_it(lock: Lock, root: Path, store: Store) -> None:
    def of(request: Request, host: Host = HERE, fork: ForkWheel | None = None) -> Compiler:
        return compiler_of(stack_of(lock, request, host, fork), host, root, store)

    own = of(STOCK)
    others = [
        of(Request("12.6", "stock")),
        of(DISTRIBUTED, fork=a_fork()),
        of(STOCK, replace(HERE, python="3.12")),
        of(STOCK, replace(HERE, interpreter=Path("/opt/python/bin/python3.11"))),
    ]
    assert len({c.folder for c in [own, *others]}) == 5
    assert of(replace(STOCK, archs=("sm_90",))).folder == own.folder
    assert not own.made
