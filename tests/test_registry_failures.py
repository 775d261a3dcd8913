"""Registries that are busy, refuse, redirect, or give long lists."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE
from tdstack.errors import UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import (
    Descriptor,
    ImageManifest,
    Index,
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
)
from tests.scripted import Asked, Reply, scripted_server

__all__ = ["plain_registry", "serve", "short_waits"]


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


@pytest.mark.parametrize("times", [2, 9])
def test_a_blob_that_another_push_hides_for_a_moment_is_waited_for(
    serve: Serve, times: int
) -> None:
    body = json.dumps({"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob"}]}).encode()
    left = iter([Reply(400, body)] * times)
    server = serve(lambda request: next(left, Reply(201)))
    registry = quiet(server.host)
    repository = Repository(server.host, "a")
    if times == 2:
        registry.put_document(repository, "tag", MANIFEST)
        return
    with pytest.raises(UpstreamError, match="does not take a manifest"):
        registry.put_document(repository, "tag", MANIFEST)
    assert len(server.asked) == 4


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


def test_an_address_that_is_a_key_is_not_told(serve: Serve) -> None:
    address = "http://127.0.0.1:1/blob?X-Amz-Signature=Pa55"
    server = serve(lambda request: Reply(307, headers={"Location": address}))
    said: list[str] = []
    with pytest.raises(UpstreamError) as caught:
        Registry(server.host, said.append).get_blob(
            Repository(server.host, "a"), Descriptor.of(b"abc", LAYER_TYPE)
        )
    assert "Pa55" not in "".join([*said, *traceback.format_exception(caught.value)])


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
