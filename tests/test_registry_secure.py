"""Registries with TLS, passwords and tokens: who gets in, and that no secret gets out."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tdstack.assemble.image import LAYER_TYPE
from tdstack.errors import ExitCode, HostError, UpstreamError
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
        running_registry(folder / "r", auth=tokens.configuration()) as running,
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
    folder = home / ".config" / "containers" / "certs.d" / host
    folder.mkdir(parents=True)
    shutil.copy(authority.path, folder / "ca.crt")
    return folder


def log_in(home: Path, config: dict[str, object], name: str = ".docker/config.json") -> None:
    file = home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config))


def auths(host: str, secret: str = SECRET) -> dict[str, object]:
    return {"auths": {host: {"auth": base64.b64encode(f"{USER}:{secret}".encode()).decode()}}}


def push_and_pull(host: str, path: str) -> None:
    registry, repository = Registry(host), Repository(host, path)
    registry.put_blob(repository, BLOB, LAYER)
    assert registry.get_blob(repository, LAYER) == BLOB


# ---------------------------------------------------------------------------- certificates


def test_an_unknown_authority_ends_it_at_once(with_password: RunningRegistry) -> None:
    said: list[str] = []
    registry = Registry(with_password.host, said.append)
    with pytest.raises(UpstreamError, match="certificate is not trusted") as caught:
        registry.tags(Repository(with_password.host, "a"))
    assert "certs.d" in caught.value.remedy
    assert not said  # no new try would change it


def test_an_authority_in_certs_d_is_trusted_for_its_host_only(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    trust(home, "127.0.0.1:1", authority)
    with pytest.raises(UpstreamError, match="not trusted"):
        Registry(with_password.host).tags(Repository(with_password.host, "a"))
    trust(home, with_password.host, authority)
    log_in(home, auths(with_password.host))
    push_and_pull(with_password.host, "trusted")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_that_a_variable_names(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(authority.path))
    log_in(home, auths(with_password.host))
    push_and_pull(with_password.host, "variable")


def test_a_certificate_for_another_host_is_refused(
    authority: Authority, home: Path, tmp_path: Path
) -> None:
    certificate, key = authority.sign("elsewhere", "elsewhere.test")
    tls = {"certificate": str(certificate), "key": str(key)}
    with running_registry(tmp_path / "r", http={"tls": tls}) as running:
        trust(home, running.host, authority)
        with pytest.raises(UpstreamError, match="not trusted"):
            Registry(running.host).tags(Repository(running.host, "a"))


def test_a_client_certificate_of_certs_d(authority: Authority, home: Path, tmp_path: Path) -> None:
    certificate, key = authority.sign("server", "127.0.0.1")
    tls = {"certificate": str(certificate), "key": str(key), "clientcas": [str(authority.path)]}
    with running_registry(tmp_path / "r", http={"tls": tls}) as running:
        folder = trust(home, running.host, authority)
        ours, ours_key = authority.sign("client")
        shutil.copy(ours, folder / "client.cert")
        shutil.copy(ours_key, folder / "client.key")
        push_and_pull(running.host, "client")
        (folder / "client.cert").unlink()
        with pytest.raises(UpstreamError, match="breaks TLS off") as caught:
            Registry(running.host).tags(Repository(running.host, "a"))
        assert "certs.d" in caught.value.remedy


def test_a_damaged_certificate_is_named(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    folder = trust(home, with_password.host, authority)
    (folder / "more.crt").write_text("no certificate")
    with pytest.raises(HostError) as caught:
        Registry(with_password.host).tags(Repository(with_password.host, "a"))
    assert caught.value.where == str(folder / "more.crt")


# ------------------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        (".docker/config.json", ""),
        (".config/containers/auth.json", ""),
        ("d/config.json", "DOCKER_CONFIG"),
        ("run/containers/auth.json", "XDG_RUNTIME_DIR"),
        ("named.json", "REGISTRY_AUTH_FILE"),
    ],
)
def test_where_credentials_are_found(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variable: str,
) -> None:
    trust(home, with_password.host, authority)
    log_in(home, auths(with_password.host), name)
    places = {"DOCKER_CONFIG": "d", "XDG_RUNTIME_DIR": "run", "REGISTRY_AUTH_FILE": name}
    if variable:
        monkeypatch.setenv(variable, str(home / places[variable]))
    push_and_pull(with_password.host, "found")


def test_what_a_real_login_saves_is_understood(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    folder = trust(home, with_password.host, authority)
    command = ["skopeo", "login", "--username", USER, "--password-stdin", with_password.host]
    command += ["--authfile", str(home / "auth.json"), "--cert-dir", str(folder)]
    subprocess.run(command, input=SECRET, text=True, check=True, capture_output=True)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "auth.json"))
    push_and_pull(with_password.host, "login")


def test_credentials_of_a_path_come_before_those_of_the_host(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    host = with_password.host
    trust(home, host, authority)
    entries = [auths(host, "wrong"), auths(f"{host}/team/special")]
    log_in(home, {"auths": {k: v for e in entries for k, v in e["auths"].items()}})  # type: ignore[attr-defined]
    push_and_pull(host, "team/special/a")
    with pytest.raises(UpstreamError, match="refuses"):
        push_and_pull(host, "team/other")


def test_a_wrong_password_is_told_without_the_password(
    with_password: RunningRegistry,
    authority: Authority,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    trust(home, with_password.host, authority)
    wrong = "Wr0ng-of-a-test"
    log_in(home, auths(with_password.host, wrong))
    with pytest.raises(UpstreamError, match="refuses your credentials") as caught:
        push_and_pull(with_password.host, "wrong")
    assert caught.value.code == ExitCode.UPSTREAM
    assert USER in caught.value.got
    assert "login" in caught.value.remedy
    assert "REGISTRY_AUTH_FILE" in caught.value.remedy
    seen = "".join(traceback.format_exception(caught.value)) + caplog.text
    seen += "".join(capfd.readouterr()) + json.dumps(caught.value.as_dict())
    assert with_password.host in seen
    assert wrong not in seen
    assert base64.b64encode(f"{USER}:{wrong}".encode()).decode() not in seen
    # A password that was refused is not sent again: that locks accounts.
    assert with_password.log().count('"HEAD /v2/wrong/') == 2


def test_no_credentials_is_told(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    trust(home, with_password.host, authority)
    with pytest.raises(UpstreamError, match="there are none for it"):
        push_and_pull(with_password.host, "none")


def test_netrc_is_not_read(
    with_password: RunningRegistry, authority: Authority, home: Path
) -> None:
    trust(home, with_password.host, authority)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {SECRET}\n")
    with pytest.raises(UpstreamError, match="there are none for it"):
        push_and_pull(with_password.host, "netrc")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"HOST": {"auth": "UGE1NQ=="}}}',
        '{"auths": {"HOST": {"auth": "Pa55-of-a-test"}}}',
        '{"credHelpers": {"HOST": "../Pa55-of-a-test"}}',
        '{"credHelpers": {"HOST": "not-installed-here"}}',
        "\udcff",
    ],
)
def test_a_damaged_file_of_credentials_is_named(
    with_password: RunningRegistry, authority: Authority, home: Path, text: str
) -> None:
    trust(home, with_password.host, authority)
    log_in(home, {})
    file = home / ".docker" / "config.json"
    file.write_text(text.replace("HOST", with_password.host), errors="surrogateescape")
    with pytest.raises(HostError) as caught:
        push_and_pull(with_password.host, "damaged")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --------------------------------------------------------------------------------- helpers


HELPER = """#!/bin/sh
echo "$0 $*" >>"$HOME/arguments"
read -r server
echo "$server" >>"$HOME/servers"
if [ "$server" = "{host}" ]; then {answer}; fi
echo "credentials not found in native keychain"
exit 1
"""


@pytest.fixture
def helper(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for helpers, first on PATH."""
    folder = home / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "docker-credential-test"


def install(helper: Path, host: str, answer: str) -> None:
    helper.write_text(HELPER.format(host=host, answer=answer))
    helper.chmod(0o755)


@pytest.mark.parametrize("field", ["credHelpers", "credsStore"])
def test_a_helper_is_asked_over_stdin(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path, field: str
) -> None:
    host = with_password.host
    trust(home, host, authority)
    answer = json.dumps({"ServerURL": host, "Username": USER, "Secret": SECRET})
    install(helper, host, f"echo '{answer}'; exit 0")
    log_in(home, {field: {host: "test"} if field == "credHelpers" else "test"})
    push_and_pull(host, "helped")
    assert (home / "arguments").read_text() == f"{helper} get\n"
    assert (home / "servers").read_text() == f"{host}\n"


def test_a_helper_without_credentials_leaves_it_to_the_next_file(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path
) -> None:
    trust(home, with_password.host, authority)
    install(helper, "another", "exit 0")
    log_in(home, {"credsStore": "test"})
    log_in(home, auths(with_password.host), ".config/containers/auth.json")
    push_and_pull(with_password.host, "next")


@pytest.mark.parametrize("answer", [f"echo {SECRET}; exit 2", f"echo {SECRET}; exit 0"])
def test_what_a_broken_helper_says_is_not_repeated(
    with_password: RunningRegistry, authority: Authority, home: Path, helper: Path, answer: str
) -> None:
    trust(home, with_password.host, authority)
    install(helper, with_password.host, answer)
    log_in(home, {"credHelpers": {with_password.host: "test"}})
    with pytest.raises(HostError, match="docker-credential-test") as caught:
        push_and_pull(with_password.host, "broken")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# ---------------------------------------------------------------------------------- tokens


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
    assert registry.put_blob(other, b"", Descriptor.of(blob, LAYER_TYPE), repository) is False


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
