"""push, wipe, pull, pull again, build: the whole way in each engine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tdstack.cluster import read
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import OPTIONS, Host, buildah_host, docker_host, load_tiny, tiny_plan

__all__ = ["plain_registry"]
pytestmark = pytest.mark.engine
HOSTS = {"buildah": buildah_host, "docker": docker_host}

# Both kinds, each read by a client of its own.
COMPRESSION = {"buildah": [], "docker": ["--compression", "gzip"]}


@pytest.fixture(params=HOSTS)
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    # A short path: the names of a daemon's sockets have a limit.
    with HOSTS[request.param](tmp_path_factory.mktemp("host")) as host:
        yield host


def pulled_by_its_own_means(host: Host, ref: str) -> str:
    """Have the engine pull an image without tdstack; return its id."""
    if host.engine.name == "docker":
        host.engine.pull(ref)
    else:
        command = ["buildah", "pull", "--quiet", "--tls-verify=false", ref]
        env = {**os.environ, **host.environment}
        subprocess.run(command, env=env, check=True, capture_output=True)
    stored = host.engine.image(ref)
    assert stored
    return stored.id


def test_what_was_pushed_is_pulled_verified_and_then_there(
    host: Host, plain_registry: RunningRegistry
) -> None:
    plan = tiny_plan()
    images = load_tiny(plan, host.engine, host.folder)
    names = {layer.ref for layer in plan.layers} | set(plan.final.tags)
    at = ["--registry", f"{plain_registry.host}/whole-{host.engine.name}/tdstack", "--json"]
    env_file = host.folder / "cluster.env"
    cluster = ["--cluster", str(env_file)]
    pushed = host.invoke("push", *OPTIONS, *at, *COMPRESSION[host.engine.name], *cluster)
    assert pushed.code == 0, pushed.err
    named = read(env_file)
    repository = str(pushed.report["ref"]).rpartition(":")[0]
    assert named.image == f"{repository}@{pushed.report['digest']}"
    env_file.unlink()
    host.wipe()
    assert host.names() == set()
    assert pulled_by_its_own_means(host, str(pushed.report["ref"])) == images["kernels"].id
    host.wipe()
    dry = host.invoke("pull", *OPTIONS, *at, *cluster, "--dry")
    assert (dry.code, dry.report["source"], dry.report["fetched"]) == (0, "registry", 0), dry.err
    assert not env_file.exists()
    assert host.names() == set()
    pulled = host.invoke("pull", *OPTIONS, *at, *cluster)
    assert pulled.code == 0, pulled.err
    assert read(env_file) == named
    assert pulled.report["image_id"] == images["kernels"].id
    assert (pulled.report["source"], pulled.report["checks"]) == ("registry", 1)
    assert host.names() == names
    begin = time.monotonic()
    again = host.invoke("pull", *OPTIONS, *at)
    assert time.monotonic() - begin < 10  # under 3 s on a quiet machine
    assert (again.report["source"], again.report["fetched"]) == ("local", 0)
    host.wipe()
    built = host.invoke("build", *OPTIONS, *at)
    assert built.code == 0, built.err
    layers = built.report["layers"]
    assert isinstance(layers, list)
    assert {layer["source"] for layer in layers} == {"registry"}
    assert host.names() == names
    assert not list((host.cache / "work").iterdir())
