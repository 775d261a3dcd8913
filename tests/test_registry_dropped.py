"""Connections that break: what came is kept, the rest is asked for again."""

from __future__ import annotations

import hashlib
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE
from tdstack.errors import ExitCode, IntegrityError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import (
    Descriptor,
    ImageManifest,
)
from tdstack.registry.reference import Repository
from tests.registries import FlakyProxy, RunningRegistry, plain_registry
from tests.registry_faults import (
    MANIFEST,
    Serve,
    manifest_reply,
    proxy,
    quiet,
    serve,
    short_waits,
    store,
)
from tests.scripted import Reply

__all__ = ["plain_registry", "proxy", "serve", "short_waits"]


def test_every_third_connection_dropped_ends_in_success(
    plain_registry: RunningRegistry, proxy: FlakyProxy
) -> None:
    proxy.drop_every = 3
    said: list[str] = []
    repository = Repository(proxy.host, "third")
    blobs = [random.Random(n).randbytes(40_000) for n in range(12)]
    for blob in blobs:
        registry = Registry(proxy.host, said.append)  # new connections each time
        registry.put_blob(repository, blob, Descriptor.of(blob, LAYER_TYPE))
    document = ImageManifest(
        Descriptor.of(blobs[0], CONFIG_TYPE), tuple(Descriptor.of(b, LAYER_TYPE) for b in blobs)
    ).document()
    Registry(proxy.host, said.append).put_document(repository, "v1", document)
    for blob in blobs:
        registry = Registry(proxy.host, said.append)
        assert registry.document(repository, "v1") == document
        with registry.open_blob(repository, Descriptor.of(blob, LAYER_TYPE)) as reader:
            assert reader.read() == blob
    assert proxy.dropped > 5
    assert any("trying again" in line for line in said)


def test_a_body_cut_at_random_places_goes_on_there(
    plain_registry: RunningRegistry, proxy: FlakyProxy
) -> None:
    blob = os.urandom(3_000_000)
    descriptor = store(plain_registry, "cut", blob)
    chance = random.Random(7)
    proxy.cut_after = lambda: chance.randrange(0, 900_000)
    came: list[int] = []
    registry = Registry(proxy.host, lambda line: None, lambda _, amount: came.append(amount))
    with registry.open_blob(Repository(proxy.host, "cut"), descriptor) as reader:
        parts = []
        while part := reader.read(chance.randrange(1, 70_000)):
            parts.append(part)
    assert b"".join(parts) == blob
    assert proxy.cut >= 3
    assert sum(came) == len(blob)  # what came is asked for once
    assert re.search(r'"GET /v2/cut/blobs/\S+ HTTP/1.1" 206', plain_registry.log())


def test_a_blob_goes_on_where_an_earlier_run_left_it(plain_registry: RunningRegistry) -> None:
    blob = os.urandom(500_000)
    descriptor = store(plain_registry, "left", blob)
    repository = Repository(plain_registry.host, "left")
    came: list[int] = []
    registry = Registry(plain_registry.host, progress=lambda _, amount: came.append(amount))
    for begin in (0, 350_000, 499_999, 500_000):
        came.clear()
        seen = hashlib.sha256(blob[:begin])
        with registry.open_blob(repository, descriptor, begin, seen) as reader:
            assert reader.read() == blob[begin:]
        assert sum(came) == len(blob) - begin


@pytest.mark.parametrize("begin", [20_000, 50_000])
def test_a_beginning_of_other_bytes_is_found_out(
    plain_registry: RunningRegistry, begin: int
) -> None:
    descriptor = store(plain_registry, "foreign", os.urandom(50_000))
    registry, repository = quiet(plain_registry.host), Repository(plain_registry.host, "foreign")
    seen = hashlib.sha256(b"x" * begin)
    with pytest.raises(IntegrityError), registry.open_blob(repository, descriptor, begin, seen):
        pass


def test_a_document_that_breaks_off_is_asked_for_again(serve: Serve) -> None:
    replies = iter([replace(manifest_reply(), cut=n) for n in (0, 20)])
    server = serve(lambda request: next(replies, manifest_reply()))
    assert quiet(server.host).document(Repository(server.host, "a"), "tag") == MANIFEST
    assert len(server.asked) == 3


def test_a_server_that_knows_no_ranges_sends_the_blob_anew(serve: Serve) -> None:
    blob = os.urandom(200_000)
    cuts = iter([50_000, 120_000, None])
    server = serve(lambda request: Reply(200, blob, cut=next(cuts)))
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    assert quiet(server.host).get_blob(Repository(server.host, "a"), descriptor) == blob
    ranges = [request.headers.get("Range", "") for request in server.asked]
    assert ranges[0] == ""
    assert len(ranges) == 3


def test_transfers_at_once_do_not_mix(plain_registry: RunningRegistry, proxy: FlakyProxy) -> None:
    proxy.drop_every = 3
    chance = random.Random(3)
    proxy.cut_after = lambda: chance.choice([None, None, 200_000])
    registry, repository = quiet(proxy.host), Repository(proxy.host, "at/once")
    blobs = [random.Random(n).randbytes(300_000 + n) for n in range(16)]

    def there_and_back(blob: bytes) -> bool:
        descriptor = Descriptor.of(blob, LAYER_TYPE)
        registry.put_blob(repository, blob, descriptor)
        with registry.open_blob(repository, descriptor) as reader:
            return reader.read() == blob

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, blobs))


def test_a_registry_that_is_not_there_is_an_upstream_error() -> None:
    said: list[str] = []
    with pytest.raises(UpstreamError, match="cannot be reached") as caught:
        Registry("127.0.0.1:1", said.append).tags(Repository("127.0.0.1:1", "a"))
    assert caught.value.code == ExitCode.UPSTREAM
    assert len(said) == 5
