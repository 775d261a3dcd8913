"""Fixtures for tests of a registry that fails: servers that break, waits that are short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE
from tdstack.registry.client import Registry
from tdstack.registry.oci import (
    Descriptor,
    ImageManifest,
)
from tdstack.registry.reference import Repository
from tests.registries import FlakyProxy, RunningRegistry, flaky_proxy
from tests.scripted import Asked, Reply, Scripted, scripted_server

MANIFEST = ImageManifest(Descriptor.of(b"{}", CONFIG_TYPE), ()).document()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr("tdstack.retry.FIRST_WAIT_S", 0.01)


@pytest.fixture
def proxy(plain_registry: RunningRegistry) -> Iterator[FlakyProxy]:
    """A proxy before the plain registry; the test says what it breaks."""
    with flaky_proxy(plain_registry.host) as flaky:
        yield flaky


Serve = Callable[[Callable[[Asked], Reply | None]], Scripted]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server whose answers a function makes."""
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(scripted_server(reply))


def quiet(host: str) -> Registry:
    """Return a client that says nothing."""
    return Registry(host, say=lambda line: None)


def store(plain: RunningRegistry, path: str, blob: bytes) -> Descriptor:
    """Put a blob into the repository at `path`."""
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    Registry(plain.host).put_blob(Repository(plain.host, path), blob, descriptor)
    return descriptor


def manifest_reply(**headers: str) -> Reply:
    """Return an answer with a good manifest."""
    return Reply(200, MANIFEST.data, {"Content-Type": MANIFEST.media_type, **headers})
