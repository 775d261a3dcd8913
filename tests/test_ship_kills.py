"""Push and pull killed at several points: no half images, and the next run ends well."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdstack.assemble.image import Image
from tdstack.registry.client import Registry
from tdstack.registry.oci import INDEX_TYPES, ImageManifest, Index
from tdstack.registry.reference import Repository, parse_repository
from tdstack.stack import LAYER_ORDER
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import OPTIONS, ROOT, Host, Tiny, buildah_host, load_tiny, tiny_plan

__all__ = ["plain_registry"]
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with buildah_host(tmp_path_factory.mktemp("kills")) as host:
        yield host


def kill_when_it_says(host: Host, words: str, verb: str, *options: str) -> str:
    """Start a verb and kill it, and nothing that it started, at this line of its output."""
    running = subprocess.Popen(
        host.command(verb, *OPTIONS, *options),
        cwd=ROOT,
        env={**os.environ, **host.environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    heard = ""
    assert running.stderr is not None
    for line in running.stderr:
        heard += line
        if words in line:
            running.send_signal(signal.SIGKILL)
            break
    running.stderr.close()
    assert running.wait(60) == -signal.SIGKILL, heard
    return heard


def tagged_images_are_whole(registry: Registry, root: Repository) -> int:
    """Follow every tag down to the blobs; return how many tags there are."""
    count = 0
    for repository in (root, *(root.child(name) for name in LAYER_ORDER)):
        for tag in registry.tags(repository):
            count += 1
            waiting = [registry.document(repository, tag)]
            while waiting:
                document = waiting.pop()
                assert document, f"{repository}:{tag} points at nothing"
                if document.media_type in INDEX_TYPES:
                    entries = Index.parse(document.data).manifests
                    waiting += [registry.document(repository, entry.digest) for entry in entries]
                    continue
                manifest = ImageManifest.parse(document.data)
                for blob in (manifest.config, *manifest.layers):
                    assert registry.has_blob(repository, blob.digest), f"{repository}:{tag}"
    return count


# Where blobs go, between layers, before the final image has a tag.
PUSHES = ["sent ", "  nvshmem ", "  kernels "]


@pytest.mark.parametrize("words", PUSHES, ids=[words.split()[0] for words in PUSHES])
def test_a_killed_push_leaves_no_tag_without_its_image_and_goes_on(
    host: Host, plain_registry: RunningRegistry, tmp_path: Path, words: str
) -> None:
    plan = tiny_plan()
    # Bytes of its own for each point, or the records of an earlier one would help.
    images = load_tiny(plan, host.engine, tmp_path, Tiny(seed=PUSHES.index(words), size=900_000))
    at = f"{plain_registry.host}/killed-{words.split()[0]}/tdstack"
    kill_when_it_says(host, words, "push", "--registry", at)
    registry, root = Registry(plain_registry.host), parse_repository(at)
    tags = tagged_images_are_whole(registry, root)
    final = [tag for tag in registry.tags(root) if not tag.startswith("sha256-")]
    assert final == []
    again = host.invoke("push", *OPTIONS, "--registry", at, "--json")
    assert again.code == 0, again.err
    assert tagged_images_are_whole(registry, root) > tags
    assert again.report["image_id"] == images["kernels"].id
    # What was sent stays sent; when the layers have names nothing is even read again.
    assert isinstance(again.report["sent"], int)
    assert again.report["sent"] < sum(900_000 for _ in plan.layers)
    assert ("reading " in again.err) == (words == "sent ")
    assert not (host.cache / "work" / "push").exists()


PULLS = ["fetching ", "  base ", "  kernels "]


@pytest.fixture(scope="module")
def pushed(
    host: Host, plain_registry: RunningRegistry, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Image]:
    images = load_tiny(
        tiny_plan(), host.engine, tmp_path_factory.mktemp("pushed"), Tiny(size=900_000)
    )
    ended = host.invoke("push", *OPTIONS, "--registry", f"{plain_registry.host}/pulled/tdstack")
    assert ended.code == 0, ended.err
    return images


@pytest.mark.parametrize("words", PULLS, ids=[words.strip() for words in PULLS])
def test_a_killed_pull_leaves_whole_layers_at_most_and_goes_on(
    host: Host, plain_registry: RunningRegistry, pushed: dict[str, Image], words: str
) -> None:
    plan = tiny_plan()
    at = ["--registry", f"{plain_registry.host}/pulled/tdstack"]
    host.wipe()
    kill_when_it_says(host, words, "pull", *at)
    # What the killed verb had started may go on for a moment; a layer's name means the whole.
    for layer in plan.layers:
        stored = host.engine.image(layer.ref)
        assert stored is None or stored.id == pushed[layer.name].id
    assert not set(plan.final.tags) & host.names()
    again = host.invoke("pull", *OPTIONS, *at, "--json")
    assert again.code == 0, again.err
    assert again.report["checks"] == 1  # also when all that the killed one lacked were its tags
    expected = {layer.ref for layer in plan.layers} | set(plan.final.tags)
    assert host.names() == expected
    assert not list((host.cache / "work").iterdir())
    assert not list((host.cache / "blobs").iterdir())
