"""Real registries for tests: docker-registry on a loopback port, and a proxy that breaks things."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAM = "docker-registry"


@dataclass(frozen=True)
class RunningRegistry:
    """A docker-registry (Debian's, distribution 2.8) that answers at `host`."""

    host: str  # 127.0.0.1:PORT
    folder: Path

    def blob(self, digest: str) -> Path:
        """Return the file in which the registry stores a blob or a manifest."""
        hexadecimal = digest.removeprefix("sha256:")
        blobs = self.folder / "data" / "docker" / "registry" / "v2" / "blobs" / "sha256"
        return blobs / hexadecimal[:2] / hexadecimal / "data"

    def log(self) -> str:
        """Return what the registry logged so far: requests, errors."""
        return (self.folder / "log").read_text(errors="replace")


def installed_or_skip(program: str) -> None:
    """Skip where a program is not installed; CI must have it."""
    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is missing, and CI must not skip it")
        pytest.skip(f"{program} is not installed")


@contextmanager
def running_registry(
    folder: Path,
    *,
    deletion: bool = False,
    http: Mapping[str, object] | None = None,
    auth: Mapping[str, object] | None = None,
    redirecting: bool = True,
) -> Iterator[RunningRegistry]:
    """Run a registry whose data and log lie in `folder`, which must not exist.

    `http` and `auth` are merged into those parts of its configuration.
    """
    installed_or_skip(PROGRAM)
    folder.mkdir(parents=True)
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / "data")},
            "delete": {"enabled": deletion},
            "redirect": {"disable": not redirecting},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of a test", **(http or {})},
        **({"auth": dict(auth)} if auth else {}),
    }
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("w") as log:
        command = [PROGRAM, "serve", str(folder / "config.yml")]
        # It takes each REGISTRY_... for a part of its configuration, REGISTRY_AUTH_FILE too.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
        )
    running = RunningRegistry(f"127.0.0.1:{port}", folder)
    try:
        _wait_for(port, process, running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def password_file(folder: Path, user: str, password: str) -> Path:
    """Write a password for `running_registry(auth={"htpasswd": ...})`; return the file."""
    installed_or_skip("htpasswd")
    # bcrypt is the only kind that the registry takes; 4 is its least work.
    command = ["htpasswd", "-niB", "-C", "4", user]
    done = subprocess.run(command, input=password, text=True, capture_output=True, check=True)
    file = folder / "htpasswd"
    file.write_text(done.stdout)
    return file


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], running: RunningRegistry) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"{PROGRAM} ended: {running.log()[-2000:]}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    pytest.fail(f"{PROGRAM} did not answer within 20 s")


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """A registry without TLS or passwords, shared by all tests: use repositories of your own."""
    folder = tmp_path_factory.mktemp("registry") / "plain"
    with running_registry(folder, deletion=True) as running:
        yield running
        shutil.rmtree(folder / "data", ignore_errors=True)


@dataclass
class FlakyProxy:
    """What a TCP proxy on loopback does to connections, and how many it had."""

    host: str
    drop_every: int = 0  # close every Nth connection at once
    # Close a connection after so many bytes came from the registry; asked anew for each one.
    cut_after: Callable[[], int | None] = lambda: None
    # The same for bytes to the registry.
    cut_upload_after: Callable[[], int | None] = lambda: None
    connections: int = 0
    dropped: int = 0
    cut: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, cut: bool) -> None:
        """Note that one direction of a connection ended, and whether it was cut."""
        with self.lock:
            self.cut += cut


@contextmanager
def flaky_proxy(target: str) -> Iterator[FlakyProxy]:
    """Run a TCP proxy in front of the registry at `target`; it passes all on until told not to."""
    name, port = target.rsplit(":", 1)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        proxy = FlakyProxy(f"127.0.0.1:{listening.getsockname()[1]}")

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:  # the test is over
                    return
                threading.Thread(
                    target=_serve, args=(proxy, client, (name, int(port))), daemon=True
                ).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _serve(proxy: FlakyProxy, client: socket.socket, target: tuple[str, int]) -> None:
    with proxy.lock:
        proxy.connections += 1
        drop = proxy.drop_every and proxy.connections % proxy.drop_every == 0
        proxy.dropped += bool(drop)
        down, up = proxy.cut_after(), proxy.cut_upload_after()
    with client:
        if drop:
            return
        with socket.create_connection(target) as server:

            def send() -> None:
                proxy.count(cut=pass_on(client, server, up))

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            proxy.count(cut=pass_on(server, client, down))
            sender.join(30)


def pass_on(source: socket.socket, target: socket.socket, limit: int | None = None) -> bool:
    """Pass bytes on until one side ends or `limit` bytes went; return whether that cut them."""
    passed, cut = 0, False
    with suppress(OSError):
        while block := source.recv(1 << 16):
            if limit is not None and passed + len(block) > limit:
                target.sendall(block[: limit - passed])
                cut = True
                break
            target.sendall(block)
            passed += len(block)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    return cut
