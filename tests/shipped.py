"""Tiny images under the names, keys and labels of a real plan: what ships them sees no difference.

Their layers hold some bytes each; the topmost one also the lock slice, a manifest of cubins, and a
static program in the place of tdstack-verify.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import docker
import pytest

from tdstack.assemble.entries import Entry, arrange, from_bytes
from tdstack.assemble.image import Image, Step
from tdstack.assemble.stored import BLOBS, blobs_label, health_check
from tdstack.assemble.tar import write_tar
from tdstack.engines.base import Engine
from tdstack.engines.choose import choose_engine
from tdstack.lock.io import load_lock
from tdstack.plan import PREFIX, Layer, Plan, make_plan, slice_of
from tdstack.stack import Request, make_stack
from tdstack.tags import line_tag
from tests.engine_stores import buildah_store, docker_daemon

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--cuda", "12.4", "--triton", "stock", "--torch", "none", "--arch", "sm_80"]
VERIFY = """
#include <stdio.h>
int main(void) {
  puts("{\\"findings\\": [{\\"check\\": \\"tiny\\", \\"ok\\": true, \\"detail\\": \\"-\\"}]}");
  return %d;
}
"""


@lru_cache(maxsize=4)
def tiny_plan(cuda: str = "12.4", root: Path = ROOT) -> Plan:
    """Return the plan that OPTIONS name."""
    request = Request(cuda=cuda, triton="stock", torch="none", archs=("sm_80",))
    return make_plan(make_stack(load_lock(root)[0], request), root)


@lru_cache(maxsize=2)
def verifier(status: int = 0) -> bytes:
    """Return a static program that reports one finding and ends with `status`."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is missing, and CI must not skip it")
        pytest.skip("gcc is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "verify.c"), Path(folder, "verify")
        source.write_text(VERIFY % status)
        command = ["gcc", "-static", "-Os", "-s", "-o", str(made), str(source)]
        subprocess.run(command, check=True, capture_output=True)
        return made.read_bytes()


@dataclass(frozen=True)
class Tiny:
    """How the images differ: random bytes of `seed`, `size` of them in each layer."""

    seed: int = 1
    size: int = 20_000
    status: int = 0
    slice_: dict[str, object] = field(default_factory=dict)


def load_tiny(plan: Plan, engine: Engine, folder: Path, tiny: Tiny = Tiny()) -> dict[str, Image]:
    """Load an image for each layer of the plan, tagged as a build tags; return them by layer."""
    layout = folder / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    steps: tuple[Step, ...] = ()
    images: dict[str, Image] = {}
    for layer in plan.layers:
        blob = write_tar(entries_of(plan, layer, tiny), blobs)
        steps = (*steps, Step(blob, f"tdstack {layer.name}"))
        images[layer.name] = image_of_layer(plan, layer, steps)
        engine.load(layout, images[layer.name], layer.ref)
    for tag in plan.final.tags:
        engine.tag(plan.final.ref, tag)
    return images


def image_of_layer(plan: Plan, layer: Layer, steps: tuple[Step, ...]) -> Image:
    labels = {**layer.labels, BLOBS: blobs_label(steps)}
    health = health_check(layer.name)
    return Image(plan.stack.platform, steps, env=layer.env, labels=labels, healthcheck=health)


def entries_of(plan: Plan, layer: Layer, tiny: Tiny) -> list[Entry]:
    noise = random.Random(f"{tiny.seed} {layer.key}").randbytes(tiny.size)
    found = [from_bytes(f"srv/{layer.name}", noise)]
    if layer.name == "base":
        found += [Entry(name, "folder", 0o755) for name in ("etc", "tmp", "proc", "sys", "dev")]
        found.append(from_bytes("etc/passwd", b"root:x:0:0:root:/:/bin/false\n"))
    if layer.name == "kernels":
        text = json.dumps(tiny.slice_ or slice_of(plan.stack), indent=1, sort_keys=True) + "\n"
        cubins = [
            {"arch": a, "ptxas": "12.4.131"} for a, n in plan.cubins.items() for _ in range(n)
        ]
        bundle = {"version": "0.1", "triton": {"distribution": "3.4.0"}, "cubins": cubins}
        found += [
            from_bytes(f"{PREFIX}/manifest.json", text.encode()),
            from_bytes(
                f"{plan.site}/gemm_allreduce_cubins/{line_tag(plan.stack.cuda)}/manifest.json",
                json.dumps(bundle).encode(),
            ),
            from_bytes(f"{plan.site}/gemm_allreduce-0.1.dist-info/RECORD", b"\n"),
            from_bytes(f"{PREFIX}/bin/tdstack-verify", verifier(tiny.status), 0o755),
        ]
    return arrange(found)


@dataclass(frozen=True)
class Ended:
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, object]:
        data: dict[str, object] = json.loads(self.out)
        return data


@dataclass(frozen=True)
class Host:
    """A machine in small: an engine's store, a cache and a home of its own."""

    engine: Engine
    environment: dict[str, str]
    folder: Path

    def invoke(self, *arguments: str, root: Path = ROOT, **environment: str) -> Ended:
        """Run a verb as a user of this machine does."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=root,
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def command(self, *arguments: str) -> list[str]:
        """Return a verb's command line; of those that need one, with this machine's engine."""
        options = ["--engine", self.engine.name] if "--prune" not in arguments else []
        return [str(Path(sys.executable).with_name("invoke")), *arguments, *options]

    def names(self) -> set[str]:
        """Return the names of all images in the engine's store."""
        if self.engine.name == "docker":
            images = docker.from_env(environment=self.environment).images.list()
            return {tag for image in images for tag in image.tags}
        command = ["buildah", "images", "--format", "{{.Name}}:{{.Tag}}"]
        env = {**os.environ, **self.environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    def wipe(self) -> None:
        """Remove every image and the whole cache."""
        if self.engine.name == "docker":
            client = docker.from_env(environment=self.environment)
            for name in self.names():
                client.images.remove(name, force=True)
        else:
            command = ["buildah", "rmi", "--all", "--force"]
            env = {**os.environ, **self.environment}
            subprocess.run(command, env=env, check=True, capture_output=True)
        subprocess.run(["rm", "-rf", *self.cache.glob("*")], check=True)

    @property
    def cache(self) -> Path:
        """Return the folder of the store."""
        return Path(self.environment["TDSTACK_CACHE"])


@contextmanager
def buildah_host(folder: Path) -> Iterator[Host]:
    """Yield a machine with buildah."""
    with buildah_store(folder / "engine") as store, _host("buildah", folder, store) as host:
        yield host


@contextmanager
def docker_host(folder: Path) -> Iterator[Host]:
    """Yield a machine with a Docker daemon."""
    with docker_daemon(folder / "engine") as store, _host("docker", folder, store) as host:
        yield host


@contextmanager
def _host(engine: str, folder: Path, store: dict[str, str]) -> Iterator[Host]:
    cache, home = folder / "cache", folder / "home"
    cache.mkdir()
    home.mkdir()
    (home / "config.json").write_text("{}")  # buildah insists on it
    environment = {**store, "TDSTACK_CACHE": str(cache), "DOCKER_CONFIG": str(home)}
    environment |= {name: str(home) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Host(choose_engine(engine).engine, environment, folder)
