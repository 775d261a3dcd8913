"""Registries with TLS, a password or tokens, and a home of the test's own to log in from."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tdstack.assemble.image import LAYER_TYPE
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tests.authorities import Authority, make_authority
from tests.registries import RunningRegistry, password_file, running_registry
from tests.token_server import TokenServer, token_server

USER, SECRET, REFRESH = "builder", "Pa55-of-a-test", "Refresh-of-a-test"
BLOB = b"a layer"
LAYER = Descriptor.of(BLOB, LAYER_TYPE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signs for all of them."""
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def with_password(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[RunningRegistry]:
    """A registry with TLS and a password."""
    folder = tmp_path_factory.mktemp("registry")
    certificate, key = authority.sign("server", "127.0.0.1", "registry.test")
    tls = {"certificate": str(certificate), "key": str(key)}
    auth = {"htpasswd": {"realm": "a test", "path": str(password_file(folder, USER, SECRET))}}
    with running_registry(folder / "r", http={"tls": tls}, auth=auth) as running:
        yield running


@dataclass(frozen=True)
class WithTokens:
    """A registry and the server of its tokens."""

    registry: RunningRegistry
    tokens: TokenServer


@pytest.fixture(scope="module")
def with_tokens(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[WithTokens]:
    """A registry that takes the tokens of a server."""
    folder = tmp_path_factory.mktemp("registry")
    with (
        token_server(authority, USER, SECRET, REFRESH) as tokens,
        running_registry(folder / "r", deletion=True, auth=tokens.configuration()) as running,
    ):
        yield WithTokens(running, tokens)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, whatever the host has."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def trust(home: Path, host: str, authority: Authority) -> Path:
    """Trust an authority for one host; return the host's folder."""
    folder = home / ".config" / "containers" / "certs.d" / host
    folder.mkdir(parents=True)
    shutil.copy(authority.path, folder / "ca.crt")
    return folder


def log_in(home: Path, config: dict[str, object], name: str = ".docker/config.json") -> None:
    """Write a file of credentials."""
    file = home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))


def auths(host: str, secret: str = SECRET) -> dict[str, object]:
    """Return what a login saves."""
    return {"auths": {host: {"auth": base64.b64encode(f"{USER}:{secret}".encode()).decode()}}}


def push_and_pull(host: str, path: str) -> None:
    """Send a blob and read it, as a new client."""
    registry, repository = Registry(host), Repository(host, path)
    registry.put_blob(repository, BLOB, LAYER)
    assert registry.get_blob(repository, LAYER) == BLOB
