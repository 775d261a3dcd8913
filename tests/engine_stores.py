"""Private engine stores for tests: a buildah store in a folder, a Docker daemon of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def root_or_skip(program: str) -> None:
    """Skip where the engine cannot be driven; CI runs as root and has both."""
    if os.geteuid() != 0:
        pytest.skip("private engine stores need root")
    if shutil.which(program) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is missing, and CI must not skip it")
        pytest.skip(f"{program} is not installed")


@contextmanager
def buildah_store(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment that points buildah to a store of its own."""
    root_or_skip("buildah")
    (folder / "graph").mkdir(parents=True)
    (folder / "run").mkdir()
    config = folder / "storage.conf"
    config.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    environment = {"CONTAINERS_STORAGE_CONF": str(config)}
    try:
        yield environment
    finally:
        env = {**os.environ, **environment}
        subprocess.run(["buildah", "rm", "--all"], env=env, capture_output=True, check=False)
        subprocess.run(
            ["buildah", "rmi", "--all", "--force"], env=env, capture_output=True, check=False
        )
        for mount in (folder / "graph" / "overlay", folder / "graph"):
            subprocess.run(["umount", str(mount)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def docker_daemon(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment of a Docker daemon that this test started."""
    root_or_skip("dockerd")
    folder.mkdir(parents=True)
    # A socket's path has 107 bytes at most, and that of containerd lies deep below this folder.
    sockets = Path(tempfile.mkdtemp(prefix="dockerd-", dir="/tmp"))
    socket = sockets / "docker.sock"
    command = ["dockerd", f"--host=unix://{socket}", f"--data-root={folder}/data"]
    command += [f"--exec-root={sockets}/exec", f"--pidfile={folder}/pid"]
    command += ["--bridge=none", "--iptables=false", "--ip-masq=false"]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(120):
                if socket.exists() and _answers(socket):
                    break
                if daemon.poll() is not None:
                    pytest.fail((folder / "log").read_text()[-2000:])
                time.sleep(0.5)
            else:
                pytest.fail("dockerd did not answer within 60 s")
            yield {"DOCKER_HOST": f"unix://{socket}"}
        finally:
            daemon.terminate()
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:
                daemon.kill()
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(sockets, ignore_errors=True)


def _answers(socket: Path) -> bool:
    import docker
    from docker.errors import DockerException

    try:
        return bool(docker.DockerClient(base_url=f"unix://{socket}", timeout=5).ping())
    except DockerException:
        return False
