"""Registries and networks that fail: what passes is tried again, what is wrong is never taken."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE
from tdstack.errors import ExitCode, IntegrityError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import (
    MAX_DOCUMENT,
    Descriptor,
    ImageManifest,
    Index,
)
from tdstack.registry.reference import Repository
from tests.registries import FlakyProxy, RunningRegistry, flaky_proxy, plain_registry
from tests.scripted import Asked, Reply, Scripted, scripted_server

__all__ = ["plain_registry"]

MANIFEST = ImageManifest(Descriptor.of(b"{}", CONFIG_TYPE), ()).document()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdstack.retry.FIRST_WAIT_S", 0.01)


@pytest.fixture
def proxy(plain_registry: RunningRegistry) -> Iterator[FlakyProxy]:
    with flaky_proxy(plain_registry.host) as flaky:
        yield flaky


Serve = Callable[[Callable[[Asked], Reply | None]], Scripted]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server whose answers a function makes."""
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(scripted_server(reply))


def quiet(host: str) -> Registry:
    return Registry(host, say=lambda line: None)


def store(plain: RunningRegistry, path: str, blob: bytes) -> Descriptor:
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    Registry(plain.host).put_blob(Repository(plain.host, path), blob, descriptor)
    return descriptor


def manifest_reply(**headers: str) -> Reply:
    return Reply(200, MANIFEST.data, {"Content-Type": MANIFEST.media_type, **headers})


# --------------------------------------------------------------------- dropped connections


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
    assert '"GET /v2/cut/blobs/' in plain_registry.log()


def test_a_file_goes_on_where_an_earlier_run_left_it(
    plain_registry: RunningRegistry, tmp_path: Path
) -> None:
    blob = os.urandom(500_000)
    descriptor = store(plain_registry, "left", blob)
    repository = Repository(plain_registry.host, "left")
    came: list[int] = []
    registry = Registry(plain_registry.host, progress=lambda _, amount: came.append(amount))
    partial = tmp_path / "partial"
    partial.write_bytes(blob[:350_000])
    registry.save_blob(repository, descriptor, partial)
    assert partial.read_bytes() == blob
    assert sum(came) == 150_000
    registry.save_blob(repository, descriptor, partial)  # whole already
    assert sum(came) == 150_000
    partial.write_bytes(b"x" * 600_000)  # longer than the blob
    registry.save_blob(repository, descriptor, partial)
    assert partial.read_bytes() == blob


def test_a_partial_file_of_other_bytes_is_not_kept(
    plain_registry: RunningRegistry, tmp_path: Path
) -> None:
    descriptor = store(plain_registry, "foreign", os.urandom(50_000))
    registry, repository = quiet(plain_registry.host), Repository(plain_registry.host, "foreign")
    partial = tmp_path / "partial"
    partial.write_bytes(b"x" * 20_000)
    with pytest.raises(IntegrityError):
        registry.save_blob(repository, descriptor, partial)
    assert not partial.exists()
    registry.save_blob(repository, descriptor, partial)


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


# ----------------------------------------------------------------------------- wrong bytes


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


# -------------------------------------------------------------------------- busy registries


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(serve: Serve, status: int) -> None:
    replies = iter([Reply(status), None, Reply(status), manifest_reply()])
    server = serve(lambda request: next(replies))
    assert quiet(server.host).document(Repository(server.host, "a"), "tag") == MANIFEST


def test_the_wait_that_is_asked_for_is_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    date = formatdate(time.time() + 20, usegmt=True)
    replies = iter(
        [*(Reply(429, headers={"Retry-After": t}) for t in ("7", date, "soon")), manifest_reply()]
    )
    server = serve(lambda request: next(replies))
    registry = quiet(server.host)
    monkeypatch.setattr("tdstack.retry.time.sleep", waits.append)
    registry.document(Repository(server.host, "a"), "tag")
    assert waits[0] == 7
    assert 17 < waits[1] <= 20
    assert waits[2] < 1


def test_a_registry_that_wants_an_hour_is_not_waited_for(serve: Serve) -> None:
    server = serve(lambda request: Reply(429, headers={"Retry-After": "3600"}))
    with pytest.raises(UpstreamError) as caught:
        quiet(server.host).document(Repository(server.host, "a"), "tag")
    assert "429" in caught.value.got
    assert len(server.asked) == 1


def test_tries_are_bounded(serve: Serve) -> None:
    server = serve(lambda request: Reply(503))
    with pytest.raises(UpstreamError) as caught:
        quiet(server.host).document(Repository(server.host, "a"), "tag")
    assert "503" in caught.value.got
    assert len(server.asked) == 6


def test_what_the_registry_says_is_passed_on(plain_registry: RunningRegistry) -> None:
    registry, repository = quiet(plain_registry.host), Repository(plain_registry.host, "unknown")
    document = ImageManifest(Descriptor.of(b"not there", CONFIG_TYPE), ()).document()
    with pytest.raises(UpstreamError) as caught:
        registry.put_document(repository, "v1", document)
    assert "MANIFEST_BLOB_UNKNOWN" in caught.value.got


def test_a_registry_that_forbids_deletion(serve: Serve) -> None:
    server = serve(lambda request: Reply(405, b'{"errors": [{"code": "UNSUPPORTED"}]}'))
    with pytest.raises(UpstreamError, match="does not delete") as caught:
        quiet(server.host).delete(Repository(server.host, "a"), MANIFEST.digest)
    assert "configuration" in caught.value.remedy


# -------------------------------------------------------------------- redirects and pages


def test_a_redirect_to_another_host_brings_no_credentials(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = os.urandom(1_000)
    storage = serve(lambda request: Reply(200, blob))

    def registry_reply(request: Asked) -> Reply:
        if "Authorization" not in request.headers:
            return Reply(401, headers={"WWW-Authenticate": 'Basic realm="a test"'})
        return Reply(307, headers={"Location": f"http://{storage.host}/blob?signature=x"})

    server = serve(registry_reply)
    config = tmp_path / "auth.json"
    config.write_text(json.dumps({"auths": {server.host: {"auth": "dXNlcjpQYTU1"}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(config))
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    assert quiet(server.host).get_blob(Repository(server.host, "a"), descriptor) == blob
    assert [request.path for request in storage.asked] == ["/blob?signature=x"]
    assert "Authorization" not in storage.asked[0].headers
    assert "Authorization" in server.asked[-1].headers


def test_a_redirect_within_the_host_keeps_them(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(request: Asked) -> Reply:
        if "Authorization" not in request.headers:
            return Reply(401, headers={"WWW-Authenticate": 'Basic realm="a test"'})
        if request.path.startswith("/v2/"):
            return Reply(308, headers={"Location": "/elsewhere"})
        return manifest_reply()

    server = serve(reply)
    config = tmp_path / "auth.json"
    config.write_text(json.dumps({"auths": {server.host: {"auth": "dXNlcjpQYTU1"}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(config))
    assert quiet(server.host).document(Repository(server.host, "a"), "tag") == MANIFEST


def test_a_redirect_to_a_foreign_host_without_tls_is_refused(serve: Serve) -> None:
    addresses = iter(["http://storage.invalid/b?secret=Pa55", "http://[b?secret=Pa55", "file:///a"])
    server = serve(lambda request: Reply(302, headers={"Location": next(addresses)}))
    for match in ("without TLS", "no address", "without TLS"):
        with pytest.raises(UpstreamError, match=match) as caught:
            quiet(server.host).document(Repository(server.host, "a"), "tag")
        assert "Pa55" not in "".join(traceback.format_exception(caught.value))


def test_redirects_end(serve: Serve) -> None:
    server = serve(lambda request: Reply(307, headers={"Location": "/v2/again"}))
    registry, repository = quiet(server.host), Repository(server.host, "a")
    with pytest.raises(UpstreamError, match="redirects"):
        registry.document(repository, "tag")
    assert len(server.of("GET")) == 6
    with pytest.raises(UpstreamError, match="redirects"):
        registry.put_document(repository, "tag", MANIFEST)
    assert len(server.of("PUT")) == 1


def test_all_pages_of_a_list_are_read(serve: Serve) -> None:
    def reply(request: Asked) -> Reply:
        page = int(request.path.rpartition("page=")[2]) if "page=" in request.path else 0
        link = {"Link": f'</v2/a/x?page={page + 1}>; rel="next"'} if page < 2 else {}
        if "tags" in request.path or ("x?page" in request.path and lists_tags[0]):
            return Reply(200, json.dumps({"tags": [f"t{page}", "not a tag"]}).encode(), link)
        kinds = [f"text/{page}", "text/all"]
        entries = [Descriptor(MANIFEST_TYPE, digest(k, page), 1, artifact_type=k) for k in kinds]
        return Reply(200, Index(tuple(entries)).document().data, link)

    def digest(kind: str, page: int) -> str:
        return f"sha256:{hashlib.sha256(f'{kind}{page}'.encode()).hexdigest()}"

    lists_tags = [True]
    server = serve(reply)
    registry, repository = quiet(server.host), Repository(server.host, "a")
    assert registry.tags(repository) == ["t0", "t1", "t2"]
    lists_tags[0] = False
    assert len(registry.referrers(repository, MANIFEST.digest)) == 6
    found = registry.referrers(repository, MANIFEST.digest, "text/all")
    assert [d.digest for d in found] == [digest("text/all", page) for page in range(3)]


def test_a_referrer_that_another_client_overwrote_is_added_again(
    plain_registry: RunningRegistry,
) -> None:
    repository = Repository(plain_registry.host, "two/clients")
    empty, subject = Descriptor.of(b"{}", CONFIG_TYPE), MANIFEST.descriptor()
    registry = quiet(plain_registry.host)
    registry.put_blob(repository, b"{}", empty)
    registry.put_document(repository, "v1", MANIFEST)
    documents = {k: ImageManifest(empty, (), subject, k).document() for k in ("text/a", "text/b")}
    for document in documents.values():
        registry.put_document(repository, document.digest, document)
    other = replace(documents["text/b"].descriptor(), artifact_type="text/b")
    tag = subject.digest.replace(":", "-")
    written: list[str] = []

    def reply(request: Asked) -> Reply:
        """Pass a request on; another client's index comes right after our first one."""
        headers = {k: v for k, v in request.headers.items() if k in ("Accept", "Content-Type")}
        answer = requests.request(
            request.method,
            f"http://{plain_registry.host}{request.path}",
            data=request.body,
            headers=headers,
        )
        if request.method == "PUT" and request.path.endswith(tag):
            written.append(tag)
            if len(written) == 1:
                registry.put_document(repository, tag, Index((other,)).document())
        kept = ("Content-Type", "Docker-Content-Digest")
        return Reply(
            answer.status_code,
            answer.content,
            {k: v for k, v in answer.headers.items() if k in kept},
        )

    with scripted_server(reply) as server:
        quiet(server.host).add_referrer(
            Repository(server.host, repository.path), subject, documents["text/a"], "text/a", {}
        )
    found = registry.referrers(repository, subject.digest)
    assert [d.artifact_type for d in found] == ["text/b", "text/a"]
    assert len(written) == 2


def test_a_registry_with_the_referrers_api_keeps_the_list_itself(serve: Serve) -> None:
    subject = MANIFEST.descriptor()
    referrer = ImageManifest(Descriptor.of(b"{}", CONFIG_TYPE), (), subject, "text/a").document()
    server = serve(lambda request: Reply(201, headers={"OCI-Subject": subject.digest}))
    registry, repository = quiet(server.host), Repository(server.host, "a")
    registry.add_referrer(repository, subject, referrer, "text/a", {})
    assert [(r.method, r.path) for r in server.asked] == [
        ("PUT", f"/v2/a/manifests/{referrer.digest}")
    ]
