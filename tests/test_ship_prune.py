"""Pruning a real registry: dry by default, then what rolling tags reach still works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tdstack.errors import ExitCode
from tdstack.registry.client import Registry
from tdstack.registry.oci import Index
from tdstack.registry.reference import parse_repository
from tdstack.ship import verbs
from tdstack.ship.names import full_tag, is_attachment
from tdstack.stack import LAYER_ORDER
from tests.registries import RunningRegistry, plain_registry, running_registry
from tests.shipped import OPTIONS, Host, Tiny, buildah_host, load_tiny, tiny_plan
from tests.test_ship_failures import make_key

__all__ = ["plain_registry"]
pytestmark = pytest.mark.engine
OTHER = ["--cuda", "12.8", *OPTIONS[2:]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with buildah_host(tmp_path) as host:
        yield host


def everything(registry: Registry, at: str) -> dict[str, list[str]]:
    root = parse_repository(at)
    places = [root, *(root.child(name) for name in LAYER_ORDER)]
    return {str(place): registry.tags(place) for place in places}


def test_what_nothing_reaches_goes_and_the_rest_can_be_pulled(
    host: Host, plain_registry: RunningRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    at = f"{plain_registry.host}/pruned/tdstack"
    registry, root = Registry(plain_registry.host), parse_repository(at)
    make_key(host.folder / "key.pem")
    sign = ["--sign", str(host.folder / "key.pem")]
    for cuda, options in (("12.8", OTHER), ("12.4", OPTIONS)):
        load_tiny(tiny_plan(cuda), host.engine, host.folder / cuda, Tiny(size=5_000))
        pushed = host.invoke("push", *options, *sign, "--registry", at)
        assert pushed.code == 0, pushed.err
    # The rolling tag of 12.8 moves on to what 12.4's means: its own image is reached no more.
    old, new = tiny_plan("12.8"), tiny_plan("12.4")
    index = registry.document(root, full_tag(new))
    assert index
    registry.put_document(root, "cu128-stock-torch-none-sm_80", index)
    before = everything(registry, at)

    def prune(*keep: str, yes: bool = False) -> dict[str, Any]:
        capsys.readouterr()
        verbs.prune(at, keep, yes=yes, as_json=True)
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        return report

    dry = prune()
    assert everything(registry, at) == before
    assert full_tag(old) in {tag for one in dry["goes"] for tag in one["tags"]}
    assert dry["freed_bytes"] > 5_000
    assert prune(full_tag(old), yes=True)["goes"] == []
    done = host.invoke("push", "--prune", "--registry", at, "--yes", "--json")
    assert done.code == 0, done.err
    after = everything(registry, at)
    assert full_tag(old) not in after[at]
    assert after[f"{at}/cuda"] != before[f"{at}/cuda"]
    assert after[f"{at}/triton"] == before[f"{at}/triton"]  # both stand on it
    # What is attached stays with its image and goes with it.
    attached = {tag.partition(".")[0] for tag in after[at] if is_attachment(tag)}
    assert len(attached) == 1
    assert prune(yes=True)["goes"] == []
    host.wipe()
    key = ["--key", str(host.folder / "key.pub")]
    pulled = host.invoke("pull", *OPTIONS, *key, "--registry", at)
    assert pulled.code == 0, pulled.err
    gone = host.invoke("pull", *OTHER, "--registry", at)
    assert gone.code == ExitCode.UPSTREAM, gone.err


def test_a_registry_that_deletes_nothing_says_what_to_do(host: Host, tmp_path: Path) -> None:
    with running_registry(tmp_path / "registry") as running:
        at = f"{running.host}/kept/tdstack"
        plan = tiny_plan()
        load_tiny(plan, host.engine, host.folder, Tiny(size=100))
        assert host.invoke("push", *OPTIONS, "--registry", at).code == 0
        registry, root = Registry(running.host), parse_repository(at)
        index = registry.document(root, full_tag(plan))
        assert index
        older = Index(Index.parse(index.data).manifests, {"of": "another build"}).document()
        registry.put_document(root, f"{full_tag(plan)[:-12]}{'0' * 12}", older)
        tags = registry.tags(root)
        ended = host.invoke("push", "--prune", "--yes", "--registry", at)
        assert ended.code == ExitCode.UPSTREAM, ended.err
        assert "allow deletion" in ended.err
        assert registry.tags(root) == tags
