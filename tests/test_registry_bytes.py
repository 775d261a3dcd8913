"""Bytes that are not those of their digest are never taken."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable

import pytest

from tdstack.assemble.image import CONFIG_TYPE, MANIFEST_TYPE
from tdstack.errors import ExitCode, IntegrityError
from tdstack.registry.oci import (
    MAX_DOCUMENT,
    Descriptor,
)
from tdstack.registry.reference import Repository
from tests.registries import RunningRegistry, plain_registry
from tests.registry_faults import (
    MANIFEST,
    Serve,
    manifest_reply,
    quiet,
    serve,
    short_waits,
    store,
)
from tests.scripted import Reply

__all__ = ["plain_registry", "serve", "short_waits"]


@pytest.mark.parametrize("at", [0, 70_000, 99_999])
def test_a_flipped_bit_in_a_stored_blob_is_an_integrity_error(
    plain_registry: RunningRegistry, at: int
) -> None:
    blob = bytearray(os.urandom(100_000))
    descriptor = store(plain_registry, "flipped", bytes(blob))
    stored = plain_registry.blob(descriptor.digest)
    blob[at] ^= 1
    stored.write_bytes(blob)
    registry, repository = quiet(plain_registry.host), Repository(plain_registry.host, "flipped")
    given = io.BytesIO()
    with (
        pytest.raises(IntegrityError) as caught,
        registry.open_blob(repository, descriptor) as reader,
    ):
        shutil.copyfileobj(reader, given, 10_000)
    assert caught.value.code == ExitCode.INTEGRITY
    assert descriptor.digest in caught.value.expected
    assert given.tell() < len(blob)  # the last bytes were kept back
    # Who reads only a part has it checked, too.
    with pytest.raises(IntegrityError), registry.open_blob(repository, descriptor) as reader:
        assert reader.read(10)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b""])
def test_a_stored_blob_of_another_size_is_an_integrity_error(
    plain_registry: RunningRegistry, change: Callable[[bytes], bytes]
) -> None:
    blob = os.urandom(5_000)
    descriptor = store(plain_registry, "sized", blob)
    plain_registry.blob(descriptor.digest).write_bytes(change(blob))
    with pytest.raises(IntegrityError, match="not the one"):
        quiet(plain_registry.host).get_blob(Repository(plain_registry.host, "sized"), descriptor)


def test_a_flipped_bit_in_a_stored_manifest_is_an_integrity_error(
    plain_registry: RunningRegistry,
) -> None:
    registry, repository = quiet(plain_registry.host), Repository(plain_registry.host, "manifest")
    registry.put_blob(repository, b"{}", Descriptor.of(b"{}", CONFIG_TYPE))
    registry.put_document(repository, "v1", MANIFEST)
    stored = plain_registry.blob(MANIFEST.digest)
    whole = stored.read_bytes()
    try:
        stored.write_bytes(whole.replace(b'"size":2', b'"size":3'))
        for reference in ("v1", MANIFEST.digest):
            with pytest.raises(IntegrityError):
                registry.document(repository, reference)
    finally:
        stored.write_bytes(whole)


def test_another_document_than_the_digest_names(serve: Serve) -> None:
    server = serve(lambda request: manifest_reply())
    registry, repository = quiet(server.host), Repository(server.host, "a")
    with pytest.raises(IntegrityError, match="not the one that its digest names"):
        registry.document(repository, "sha256:" + "0" * 64)


def test_a_wrong_docker_content_digest(serve: Serve) -> None:
    wrong = "sha256:" + "0" * 64
    server = serve(
        lambda request: (
            Reply(201, headers={"Docker-Content-Digest": wrong})
            if request.method == "PUT"
            else manifest_reply(**{"Docker-Content-Digest": wrong})
        )
    )
    registry, repository = quiet(server.host), Repository(server.host, "a")
    for action in (
        lambda: registry.document(repository, "tag"),
        lambda: registry.document(repository, MANIFEST.digest),
        lambda: registry.head(repository, MANIFEST.digest),
        lambda: registry.put_document(repository, "tag", MANIFEST),
    ):
        with pytest.raises(IntegrityError) as caught:
            action()
        assert wrong in (caught.value.expected, caught.value.got)


def test_without_a_docker_content_digest(serve: Serve) -> None:
    server = serve(lambda request: manifest_reply())
    registry, repository = quiet(server.host), Repository(server.host, "a")
    assert registry.head(repository, "tag") == MANIFEST.descriptor()


@pytest.mark.parametrize("announced", [True, False])
def test_a_document_too_large_is_not_read(serve: Serve, announced: bool) -> None:
    size = MAX_DOCUMENT + 1
    server = serve(lambda request: Reply(200, b" " * size, {"Content-Type": MANIFEST_TYPE}))
    registry, repository = quiet(server.host), Repository(server.host, "a")
    blob = Descriptor(CONFIG_TYPE, "sha256:" + "0" * 64, size)
    with pytest.raises(IntegrityError, match="too large"):
        registry.get_blob(repository, blob) if announced else registry.document(repository, "tag")
    assert len(server.asked) == (0 if announced else 1)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"tags": 3}', b"<html>"])
def test_malformed_lists_are_integrity_errors(serve: Serve, body: bytes) -> None:
    server = serve(lambda request: Reply(200, body))
    registry, repository = quiet(server.host), Repository(server.host, "a")
    with pytest.raises(IntegrityError):
        registry.tags(repository)
    with pytest.raises(IntegrityError):
        registry.referrers(repository, MANIFEST.digest)
