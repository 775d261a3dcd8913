"""Whom a client trusts, and who it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tdstack.errors import HostError, UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.reference import Repository
from tests.authorities import Authority
from tests.registries import RunningRegistry, running_registry
from tests.registry_logins import (
    authority,
    auths,
    home,
    log_in,
    push_and_pull,
    trust,
    with_password,
)

__all__ = ["authority", "home", "with_password"]


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
