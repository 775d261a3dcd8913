"""A host without Triton-distributed's wheel pulls the image that was built with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdstack.attest.lockslice import parse_slice
from tdstack.errors import ExitCode, IntegrityError
from tdstack.lock.io import load_lock, write_lock
from tdstack.lock.model import LockedForkWheel
from tdstack.plan import Plan, make_plan, slice_of
from tdstack.registry.client import registry_of
from tdstack.registry.reference import parse_repository
from tdstack.ship.adopt import fork_of
from tdstack.ship.push import Pusher
from tdstack.ship.target import Target
from tdstack.stack import Request, make_stack
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.checkouts import copy_checkout
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import ROOT, Host, Tiny, buildah_host, load_tiny, tiny_plan
from tests.triton_wheels import a_fork

__all__ = ["plain_registry"]
OPTIONS = ["--cuda", "12.4", "--torch", "none", "--arch", "sm_80"]


def fork_plan() -> Plan:
    request = Request(cuda="12.4", torch="none", archs=("sm_80",), fork=a_fork())
    return make_plan(make_stack(load_lock(ROOT)[0], request), ROOT)


def test_a_slice_names_the_whole_fork() -> None:
    plan = fork_plan()
    text = json.dumps(slice_of(plan.stack)).encode()
    found = fork_of(parse_slice(text, "a test"), "a test")
    assert found.source == a_fork().source
    request = Request(cuda="12.4", torch="none", archs=("sm_80",), fork=found)
    assert make_plan(make_stack(load_lock(ROOT)[0], request), ROOT).final.key == plan.final.key
    stock = json.dumps(slice_of(tiny_plan().stack)).encode()
    with pytest.raises(IntegrityError, match="no Triton-distributed"):
        fork_of(parse_slice(stock, "a test"), "a test")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with buildah_host(tmp_path) as host:
        yield host


@pytest.mark.engine
def test_the_image_says_which_wheel_it_was_and_the_key_follows(
    host: Host, plain_registry: RunningRegistry, tmp_path: Path
) -> None:
    plan = fork_plan()
    at = f"{plain_registry.host}/distributed/tdstack"
    images = load_tiny(plan, host.engine, host.folder, Tiny(size=2_000))
    repository = parse_repository(at)
    workspace = Workspace(ROOT, Store(host.cache))
    Pusher(plan, host.engine, workspace, Target(registry_of(repository), repository), print).push()
    host.wipe()
    pulled = host.invoke("pull", *OPTIONS, "--registry", at, "--json")
    assert pulled.code == 0, pulled.err
    assert pulled.report["image_id"] == images["kernels"].id
    assert pulled.report["ref"] == plan.final.tags[0]
    assert "is not in versions.lock" in pulled.err
    again = host.invoke("pull", *OPTIONS, "--registry", at, "--json")
    assert again.report["source"] == "local"
    # A lock that records another wheel of this name does not take it.
    checkout = copy_checkout(ROOT, tmp_path / "checkout")
    other = LockedForkWheel(**(a_fork().source.model_dump() | {"sha256": "1" * 64}))
    lock = load_lock(checkout)[0]
    recorded = lock.triton_distributed.model_copy(update={"wheels": [other]})
    write_lock(checkout, lock.model_copy(update={"triton_distributed": recorded}))
    refused = host.invoke("pull", *OPTIONS, "--registry", at, root=checkout)
    assert refused.code == ExitCode.INTEGRITY, refused.err
    assert "not the wheel of that name that the lock records" in refused.err
    absent = host.invoke("pull", *OPTIONS, "--registry", f"{plain_registry.host}/nothing/here")
    assert absent.code == ExitCode.UPSTREAM, absent.err
