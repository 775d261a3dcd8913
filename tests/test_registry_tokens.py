"""Tokens: fetched once, renewed, and told to nobody."""

from __future__ import annotations

import base64
import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE
from tdstack.errors import UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Repository
from tests.registry_logins import (
    BLOB,
    LAYER,
    REFRESH,
    USER,
    WithTokens,
    authority,
    auths,
    home,
    log_in,
    push_and_pull,
    with_tokens,
)

__all__ = ["authority", "home", "with_tokens"]


def test_tokens_are_fetched_once_for_each_use(with_tokens: WithTokens, home: Path) -> None:
    host = with_tokens.registry.host
    log_in(home, auths(host))
    given = len(with_tokens.tokens.given)
    registry, repository = Registry(host), Repository(host, "tokens")
    for number in range(3):
        blob = b"layer %d" % number
        registry.put_blob(repository, blob, Descriptor.of(blob, LAYER_TYPE))
    # One to read, one to write.
    assert len(with_tokens.tokens.given) == given + 2
    other = repository.child("other")
    assert registry.mount_blob(other, Descriptor.of(blob, LAYER_TYPE), repository) is True


def test_threads_at_once_share_a_token(with_tokens: WithTokens, home: Path) -> None:
    host = with_tokens.registry.host
    log_in(home, auths(host))
    registry, repository = Registry(host), Repository(host, "threads")
    registry.put_blob(repository, BLOB, LAYER)
    fresh, given = Registry(host), len(with_tokens.tokens.given)
    with ThreadPoolExecutor(8) as pool:
        read = [pool.submit(fresh.get_blob, repository, LAYER) for _ in range(24)]
    assert {future.result() for future in read} == {BLOB}
    assert len(with_tokens.tokens.given) == given + 1


def test_a_token_to_delete(with_tokens: WithTokens, home: Path) -> None:
    host = with_tokens.registry.host
    log_in(home, auths(host))
    registry, repository = Registry(host), Repository(host, "delete")
    empty = Descriptor.of(b"{}", CONFIG_TYPE)
    registry.put_blob(repository, b"{}", empty)
    document = ImageManifest(empty, ()).document()
    registry.put_document(repository, "v1", document)
    registry.delete(repository, document.digest)
    assert registry.head(repository, "v1") is None


def test_an_identity_token_is_sent_as_a_form_only(with_tokens: WithTokens, home: Path) -> None:
    host = with_tokens.registry.host
    log_in(home, {"auths": {host: {"identitytoken": REFRESH}}})
    push_and_pull(host, "identity")
    assert with_tokens.tokens.server is not None
    posted = with_tokens.tokens.server.of("POST")
    assert posted
    assert all(REFRESH not in request.path + str(request.headers) for request in posted)


def test_a_token_that_ended_is_fetched_anew(
    with_tokens: WithTokens, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tokens = with_tokens.registry.host, with_tokens.tokens
    log_in(home, auths(host))
    registry, repository = Registry(host), Repository(host, "ended")
    # The server tells that tokens are good for five minutes; the registry takes this one for two
    # seconds.
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "ends_in_s", -58)
        assert registry.tags(repository) == []
    given = len(tokens.given)
    assert registry.tags(repository) == []
    assert len(tokens.given) == given
    time.sleep(3)
    assert registry.tags(repository) == []
    assert len(tokens.given) == given + 1


def test_tokens_that_stay_bad_end_it(
    with_tokens: WithTokens, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, tokens = with_tokens.registry.host, with_tokens.tokens
    log_in(home, auths(host))
    monkeypatch.setattr(tokens, "ends_in_s", -120)
    given = len(tokens.given)
    with pytest.raises(UpstreamError, match="refuses your credentials") as caught:
        push_and_pull(host, "bad")
    assert len(tokens.given) == given + 1
    assert tokens.given[-1] not in "".join(traceback.format_exception(caught.value))


def test_a_token_server_that_refuses(
    with_tokens: WithTokens, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = with_tokens.registry.host
    log_in(home, auths(host, "Wr0ng-of-a-test"))
    with pytest.raises(UpstreamError, match="refuses your credentials") as caught:
        push_and_pull(host, "refused")
    seen = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "Wr0ng" not in seen
    assert base64.b64encode(f"{USER}:Wr0ng-of-a-test".encode()).decode() not in seen
