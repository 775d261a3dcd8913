"""Registries behind a proxy, and certificates of token servers and storage beside them."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tdstack.assemble.image import LAYER_TYPE
from tdstack.errors import UpstreamError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tests.authorities import make_authority
from tests.registries import pass_on, running_registry
from tests.scripted import Asked, Reply, scripted_server

BLOB = b"a layer"
LAYER = Descriptor.of(BLOB, LAYER_TYPE)


@contextmanager
def tunnel(port: int) -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that knows CONNECT alone; every tunnel ends at `port` of this machine.

    Yield its address and the first lines of its requests.
    """
    lines: list[str] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:  # the test is over
                    return
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                lines.append(head.decode().splitlines()[0])
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                server = socket.create_connection(("127.0.0.1", port))
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", lines
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the host's own proxies and certificates out."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tdstack.retry.FIRST_WAIT_S", 0.01)


def test_tls_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make_authority(tmp_path / "authority")
    certificate, key = authority.sign("server", "registry.test")
    tls = {"certificate": str(certificate), "key": str(key)}
    with (
        running_registry(
            tmp_path / "r", http={"tls": tls, "host": "https://registry.test"}
        ) as running,
        tunnel(int(running.host.rpartition(":")[2])) as (address, lines),
    ):
        monkeypatch.setenv("HTTPS_PROXY", address)
        repository = Repository("registry.test", "a")
        with pytest.raises(UpstreamError, match="not trusted"):
            Registry("registry.test").tags(repository)
        folder = tmp_path / ".config" / "containers" / "certs.d" / "registry.test"
        folder.mkdir(parents=True)
        shutil.copy(authority.path, folder)
        registry = Registry("registry.test")
        registry.put_blob(repository, BLOB, LAYER)
        assert registry.get_blob(repository, LAYER) == BLOB
        assert {line.rpartition(" ")[0] for line in lines} == {"CONNECT registry.test:443"}


def test_a_named_host_without_tls_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda request: Reply(404)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:Pa55@{proxy.host}")
        monkeypatch.setenv("TDSTACK_PLAIN_HTTP", "other.test:5000, registry.test:5000")
        repository = Repository("registry.test:5000", "a")
        assert Registry("registry.test:5000").tags(repository) == []
    assert proxy.asked[0].path.startswith("http://registry.test:5000/v2/a/tags/list")
    with pytest.raises(UpstreamError) as caught:
        Registry("registry.test:5000").tags(repository)
    assert "Pa55" not in str(caught.value)


def test_a_host_is_not_spoken_to_in_the_clear_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scripted_server(lambda request: Reply(404)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with pytest.raises(UpstreamError):
            Registry("registry.test:5000").tags(Repository("registry.test:5000", "a"))
    assert not [request for request in proxy.asked if request.path.startswith("http:")]


def test_loopback_is_never_asked_for_by_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Asked) -> Reply:
        return Reply(403)

    with scripted_server(refuse) as proxy, scripted_server(lambda request: Reply(404)) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        assert Registry(server.host).tags(Repository(server.host, "a")) == []
        assert not proxy.asked


def test_a_registry_that_speaks_no_tls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        scripted_server(lambda request: Reply(404)) as server,
        tunnel(int(server.host.rpartition(":")[2])) as (address, _),
    ):
        monkeypatch.setenv("HTTPS_PROXY", address)
        with pytest.raises(UpstreamError, match="does not speak TLS") as caught:
            Registry("registry.test:5000").tags(Repository("registry.test:5000", "a"))
    assert "TDSTACK_PLAIN_HTTP" in caught.value.remedy
