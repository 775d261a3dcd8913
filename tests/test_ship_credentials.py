"""A password for a registry is in no output, log, process list, label or layer."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdstack.errors import ExitCode
from tests.registries import RunningRegistry, password_file, running_registry
from tests.shipped import OPTIONS, Host, Tiny, buildah_host, load_tiny, tiny_plan

pytestmark = pytest.mark.engine
USER, PASSWORD = "shipper", "marker-Zq7vK2xW9pLs"
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    folder = tmp_path_factory.mktemp("guarded")
    auth = {"htpasswd": {"realm": "tests", "path": str(password_file(folder, USER, PASSWORD))}}
    with running_registry(folder / "registry", auth=auth) as running:
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with buildah_host(tmp_path) as host:
        yield host


class Watch:
    """Collects the arguments of every process while it runs; a context manager."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for entry in os.scandir("/proc"):
                if entry.name.isdecimal():
                    try:
                        self.seen.add(Path(entry.path, "cmdline").read_bytes())
                    except OSError:
                        continue


def log_in(host: Host, registry: str, password: str) -> None:
    secret = base64.b64encode(f"{USER}:{password}".encode()).decode()
    config = {"auths": {registry: {"auth": secret}}}
    Path(host.environment["DOCKER_CONFIG"], "config.json").write_text(json.dumps(config))


def test_a_password_shows_nowhere(host: Host, guarded: RunningRegistry) -> None:
    load_tiny(tiny_plan(), host.engine, host.folder)
    log_in(host, guarded.host, PASSWORD)
    at = ["--registry", f"{guarded.host}/team/tdstack"]
    with Watch() as watch:
        pushed = host.invoke("push", *OPTIONS, *at, "--json")
        assert pushed.code == 0, pushed.err
        host.wipe()
        pulled = host.invoke("pull", *OPTIONS, *at, "--json")
        assert pulled.code == 0, pulled.err
    shown = [pushed.out, pushed.err, pulled.out, pulled.err, guarded.log()]
    assert any(b"push" in line and b"--registry" in line for line in watch.seen)
    for secret in SECRETS:
        assert not any(secret in text for text in shown)
        assert not any(secret.encode() in line for line in watch.seen)
        # Blobs, manifests, what is attached; the engine's images and their configurations; the
        # store, with its folder for files in the making.
        for place in (guarded.folder / "data", host.folder / "engine", host.cache):
            found = subprocess.run(
                ["grep", "-rlF", "-e", secret, str(place)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert found.stdout == ""
    for ref in tiny_plan().final.tags:
        stored = host.engine.image(ref)
        assert stored
        assert PASSWORD not in json.dumps([dict(stored.labels), dict(stored.env)])


def test_a_wrong_or_absent_credential_ends_with_5_and_is_not_repeated(
    host: Host, guarded: RunningRegistry
) -> None:
    load_tiny(tiny_plan(), host.engine, host.folder, Tiny(size=100))
    at = ["--registry", f"{guarded.host}/wrong/tdstack"]
    absent = host.invoke("pull", *OPTIONS, *at)
    wrong = "not-Zq7vK2xW9pLs"
    log_in(host, guarded.host, wrong)
    for ended in (absent, host.invoke("push", *OPTIONS, *at)):
        assert ended.code == ExitCode.UPSTREAM, ended.err
        assert "login" in ended.err
        assert wrong not in ended.err
    assert host.names() == {x.ref for x in tiny_plan().layers} | set(tiny_plan().final.tags)
