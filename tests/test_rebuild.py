"""`invoke verify --rebuild`: what differs is named down to the byte, and nothing stays behind.

The images are tiny and the build that makes them again is replaced by what loads them; engines,
stores, exports and comparison are the real ones.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdstack.attest.contents import Kernels
from tdstack.attest.inside import Inside
from tdstack.attest.lockslice import parse_slice
from tdstack.diff import original, rebuild
from tdstack.diff.original import Configuration
from tdstack.diff.rebuild import rebuild_verb
from tdstack.diff.rebuilt import LayerPair, RebuildReport, configuration_differences, pair_layers
from tdstack.diff.sides import EngineImage, RegistryImage
from tdstack.diff.tars import compare_tars
from tdstack.diff.verb import Reader
from tdstack.engines.base import Engine
from tdstack.engines.buildah import Buildah
from tdstack.engines.throwaway import Renamed
from tdstack.errors import CheckFailed, HostError, IntegrityError
from tdstack.fork.model import ANYWHERE
from tdstack.plan import Plan, slice_of
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import (
    OPTIONS,
    ROOT,
    Host,
    Tiny,
    buildah_host,
    docker_host,
    load_tiny,
    tiny_plan,
)
from tests.small_images import plant

__all__ = ["plain_registry"]
Members = list[tarfile.TarInfo]
CONTENT = b"0123456789" * 1000


def member(name: str = "a/file", **changes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.mode, made.mtime = len(CONTENT), 0o644, 1_700_000_000
    for attribute, value in changes.items():
        setattr(made, attribute, value)
    if made.type != tarfile.REGTYPE:
        made.size = 0
    return made


def tar(path: Path, members: Members, content: bytes = CONTENT) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for each in members:
            archive.addfile(each, io.BytesIO(content[: each.size]))
    return path


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([member(mode=0o755)], "mode 0644 -> 0755"),
        ([member(mtime=1_700_000_001)], "mtime 1700000000 -> 1700000001"),
        ([member(uid=1000)], "owner 0:0 -> 1000:0"),
        ([member(uname="root")], "owner 0:0 -> 0:0 (root:)"),
        ([member(size=9_000)], "size 10000 -> 9000"),
        ([member(type=tarfile.SYMTYPE, linkname="x")], "kind file -> link"),
        ([member(pax_headers={"SCHILY.xattr.user.x": "1"})], "attributes - -> "),
        ([], "only in the image"),
    ],
)
def test_what_differs_of_a_file_is_named(tmp_path: Path, other: Members, words: str) -> None:
    theirs = tar(tmp_path / "theirs", [member("a/equal"), member()])
    ours = tar(tmp_path / "ours", [member("a/equal"), *other])
    (found,) = compare_tars(theirs, ours)
    assert found.path == "a/file"
    assert found.what[0].startswith(words)
    (turned,) = compare_tars(ours, theirs)
    assert turned.path == "a/file"
    assert compare_tars(theirs, theirs) == []


def test_a_changed_byte_is_named_by_its_offset(tmp_path: Path) -> None:
    theirs, ours = tar(tmp_path / "theirs", [member()]), tar(tmp_path / "ours", [member()])
    data = bytearray(ours.read_bytes())
    data[512 + 7_321] ^= 1
    ours.write_bytes(data)
    (found,) = compare_tars(theirs, ours)
    assert (found.path, found.what) == ("a/file", ("content, from byte 7321 on",))


def test_where_a_link_points_counts(tmp_path: Path) -> None:
    links = [member(type=tarfile.SYMTYPE, linkname=target) for target in ("x", "y")]
    theirs, ours = tar(tmp_path / "theirs", links[:1]), tar(tmp_path / "ours", links[1:])
    assert compare_tars(theirs, ours)[0].what == ("target x -> y",)


def test_order_and_framing_count_where_all_files_are_equal(tmp_path: Path) -> None:
    both = [member("a"), member("b")]
    theirs, ours = tar(tmp_path / "theirs", both), tar(tmp_path / "ours", both[::-1])
    assert compare_tars(theirs, ours)[0].what == ("the order of the files",)
    ours.write_bytes(theirs.read_bytes() + b"\0" * 512)
    size = theirs.stat().st_size
    assert compare_tars(theirs, ours)[0].what == (f"the framing, from byte {size} on",)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing" * 500)
    with pytest.raises(IntegrityError, match="no tar"):
        compare_tars(tmp_path / "x", tmp_path / "x")


def test_layers_are_paired_from_the_bottom_and_extra_ones_are_numbered() -> None:
    found = pair_layers(["a", "b", "c"], ["a", "x"], ["base", "torch"])
    assert found == [
        LayerPair("base", "a", "a"), LayerPair("torch", "b", "x"), LayerPair("layer 3", "c", ""),
    ]  # fmt: skip
    assert [pair.equal for pair in found] == [True, False, False]


def test_differences_of_the_configuration_are_words() -> None:
    theirs, ours = Configuration({"A": "1"}, {"x": "1"}), Configuration({}, {"x": "2"})
    assert configuration_differences(theirs, ours) == (
        "environment A: 1 -> None", "label x: 1 -> 2",
    )  # fmt: skip


def test_only_our_own_names_are_renamed() -> None:
    names = Renamed(Buildah(), "rebuild")
    assert names.renamed("localhost/tdstack:cu124") == "localhost/tdstack-rebuild:cu124"
    assert names.renamed("localhost/tdstack/base:0") == "localhost/tdstack-rebuild/base:0"
    for other in ("localhost/tdstackx:1", "debian@sha256:0", "localhost/other:1"):
        assert names.renamed(other) == other


@pytest.fixture(params=["buildah", "docker"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    hosts = {"buildah": buildah_host, "docker": docker_host}
    with hosts[request.param](tmp_path_factory.mktemp("h")) as host:
        yield host


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Tiny], None]:
    """Have the next rebuilds give tiny images; none of them is there before."""

    def of(tiny: Tiny) -> None:
        class LoadTiny:
            def __init__(
                self, plan: Plan, engine: Engine, store: Store, root: Path, say: object
            ) -> None:
                assert engine.image(plan.layers[0].ref) is None
                assert not list(store.cubins().iterdir())
                self._plan, self._engine = plan, engine

            def build(self, fetch: object) -> None:
                load_tiny(self._plan, self._engine, tmp_path / "rebuilt", tiny)

        monkeypatch.setattr(rebuild, "Builder", LoadTiny)

    monkeypatch.setattr(rebuild, "_materials", lambda plan: [])
    # The tiny image has no Python that could tell.
    slice_ = parse_slice(json.loads(json.dumps(slice_of(tiny_plan().stack))), "the plan")
    kernels = Kernels("0.1", {}, "3.4.0", "12.4.131")
    monkeypatch.setattr(original, "read_engine", lambda engine, ref: Inside(slice_, kernels))
    return of


def rebuilt(host: Host, ref: str) -> RebuildReport:
    workspace = Workspace(ROOT, Store(host.cache))
    try:
        return rebuild_verb(
            workspace, ref, ANYWHERE, engine=host.engine.name, platform="linux/amd64", as_json=False
        )
    finally:
        assert not list(workspace.store.work().iterdir())
        assert not any("rebuild" in name for name in host.names())


@pytest.mark.engine
def test_equal_images_are_told_so_and_a_planted_byte_is_located(
    host: Host, build: Callable[[Tiny], None], plain_registry: RunningRegistry, tmp_path: Path
) -> None:
    plan = tiny_plan()
    images = load_tiny(plan, host.engine, host.folder)
    build(Tiny())
    names = host.names()
    report = rebuilt(host, plan.final.tags[1])
    assert report.equal
    assert (report.id, report.differing) == (images["kernels"].id, ())
    assert host.names() == names
    offset = plant(host.engine, plan.final.ref, "srv/triton", "localhost/planted:1", tmp_path)
    with pytest.raises(IntegrityError) as caught:
        rebuilt(host, "localhost/planted:1")
    (layer,) = differing(caught.value)
    assert layer["title"] == "tdstack triton"
    assert layer["files"] == ({"path": "srv/triton", "what": (f"content, from byte {offset} on",)},)
    assert "srv/triton" in caught.value.got

    # Every layer is another one: the same of an image in a registry.
    at = f"{plain_registry.host}/{host.engine.name}/tdstack"
    assert host.invoke("push", *OPTIONS, "--registry", at).code == 0
    tag = plan.final.tags[0].rpartition(":")[2]
    assert rebuilt(host, f"{at}:{tag}").equal
    found = Reader(Workspace(ROOT, Store(host.cache)), host.engine.name, "linux/amd64").difference(
        EngineImage("localhost/planted:1"), RegistryImage(f"{at}:{tag}")
    )
    assert [change.name for change in found.files] == ["srv/triton"]
    assert [change.name for change in found.layers] == ["tdstack triton"]
    build(Tiny(seed=2))
    with pytest.raises(IntegrityError) as caught:
        rebuilt(host, f"{at}:{tag}")
    assert len(differing(caught.value)) == len(plan.layers)


def differing(error: IntegrityError) -> list[dict[str, Any]]:
    assert error.details is not None
    found: Any = error.details["differing"]
    return list(found)


@pytest.mark.engine
def test_an_image_of_another_checkout_is_not_built_at_all(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[[Tiny], None]
) -> None:
    build(Tiny())
    plan = tiny_plan()
    final = replace(plan.final, labels={**plan.final.labels, "io.tdstack.key": "0" * 64})
    moved = replace(plan, layers=(*plan.layers[:-1], final))
    with buildah_host(tmp_path_factory.mktemp("h")) as host:
        load_tiny(moved, host.engine, host.folder)
        with pytest.raises(CheckFailed, match="not the one that the image was built from"):
            rebuilt(host, plan.final.tags[1])
        with pytest.raises(HostError, match="no such image"):
            rebuilt(host, "localhost/tdstack:none")
        both = host.invoke("verify", "--rebuild", plan.final.tags[1], "--fix")
        assert both.code == 2
