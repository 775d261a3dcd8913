"""push, wipe, pull, pull again, build: the whole way with tiny images and a real registry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registries import RunningRegistry, plain_registry
from tests.shipped import OPTIONS, Host, buildah_host, load_tiny, tiny_plan

__all__ = ["plain_registry"]
pytestmark = pytest.mark.engine


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with buildah_host(tmp_path) as host:
        yield host


def test_what_was_pushed_is_pulled_verified_and_then_there(
    host: Host, plain_registry: RunningRegistry
) -> None:
    plan = tiny_plan()
    images = load_tiny(plan, host.engine, host.folder)
    at = ["--registry", f"{plain_registry.host}/whole/tdstack"]
    pushed = host.invoke("push", *OPTIONS, *at, "--json")
    print(pushed.err)
    assert pushed.code == 0, pushed.err
    host.wipe()
    assert host.names() == set()
    pulled = host.invoke("pull", *OPTIONS, *at, "--json")
    print(pulled.err)
    assert pulled.code == 0, pulled.err
    assert pulled.report["image_id"] == images["kernels"].id
    begin = time.monotonic()
    again = host.invoke("pull", *OPTIONS, *at, "--json")
    print(again.err, time.monotonic() - begin)
    built = host.invoke("build", *OPTIONS, *at, "--json")
    print(built.err)
