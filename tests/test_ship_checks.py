"""What a pull compares before it fetches a layer, and what it takes back. No engine, no network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tdstack.assemble.entries import from_bytes
from tdstack.assemble.image import CONFIG_TYPE, MANIFEST_TYPE, Image, Step
from tdstack.assemble.stored import BLOBS, described
from tdstack.assemble.tar import write_tar
from tdstack.engines.base import Engine, StoredImage
from tdstack.errors import IntegrityError
from tdstack.plan import LABEL, slice_of
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Reference, Repository
from tdstack.ship.config import parse_config
from tdstack.ship.remote import Remote, check_layer
from tdstack.ship.rollback import Names
from tdstack.ship.scratch import scratch
from tdstack.ship.slices import PLACE, check_slice
from tdstack.wheelhouse.store import Store
from tests.shipped import image_of_layer, tiny_plan

AT = Reference(Repository("127.0.0.1:5000", "team/tdstack"), "tag")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    blobs = [write_tar([from_bytes("srv/x", bytes([n]))], tmp_path) for n in range(2)]
    steps = tuple(Step(blob, f"tdstack part {n}") for n, blob in enumerate(blobs))
    return image_of_layer(tiny_plan(), tiny_plan().final, steps)


def remote(image: Image, data: bytes = b"") -> Remote:
    data = data or image.config()
    config = Descriptor.of(data, CONFIG_TYPE)
    layers = tuple(Descriptor("", step.blob.digest, step.blob.size) for step in image.steps)
    manifest = ImageManifest(config, layers)
    descriptor = Descriptor(MANIFEST_TYPE, manifest.document().digest, 1)
    return Remote(AT, descriptor, manifest, parse_config(data, manifest))


def test_an_image_as_the_plan_makes_it_passes(image: Image) -> None:
    check_layer(remote(image), tiny_plan(), tiny_plan().final)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "0:0"},
        {"command": ("/srv/x",)},
        {"workdir": "/"},
        {"healthcheck": ()},
        {"platform": "linux/arm64"},
        {"env": {"LD_PRELOAD": "/srv/x"}},
        {"labels": {f"{LABEL}.key": "0" * 64}},
        {"labels": {f"{LABEL}.lock-slice": "0" * 64}},
        {"labels": {f"{LABEL}.parent": "0" * 64}},
        {"labels": {"another": "label"}},
        {"labels": {BLOBS: "[]"}},
    ],
    ids=str,
)
def test_whatever_else_a_configuration_says_is_refused(image: Image, change: Any) -> None:
    merged: dict[str, Any] = {
        name: {**getattr(image, name), **value} if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(IntegrityError, match="not what the lock says"):
        check_layer(remote(replace(image, **merged)), tiny_plan(), tiny_plan().final)


def test_fields_that_we_do_not_write_are_refused(image: Image) -> None:
    top = json.loads(image.config())
    top["config"]["Entrypoint"] = ["/srv/x"]
    with pytest.raises(IntegrityError, match="not made by tdstack"):
        check_layer(remote(image, json.dumps(top).encode()), tiny_plan(), tiny_plan().final)


@pytest.mark.parametrize(
    "damage",
    [
        lambda top: top.pop("rootfs"),
        lambda top: top["rootfs"].update(diff_ids="x"),
        lambda top: top["rootfs"]["diff_ids"].pop(),
        lambda top: top["rootfs"]["diff_ids"].reverse(),
        lambda top: top.update(config=[]),
        lambda top: top["config"].update(Labels={"a": 1}),
        lambda top: top["config"]["Labels"].update({BLOBS: "[[1]]"}),
        lambda top: top["config"]["Labels"].update({BLOBS: "{"}),
    ],
)
def test_a_malformed_configuration_is_an_integrity_error(image: Image, damage: Any) -> None:
    top = json.loads(image.config())
    damage(top)
    with pytest.raises(IntegrityError):
        check_layer(remote(image, json.dumps(top).encode()), tiny_plan(), tiny_plan().final)


def test_the_topmost_slice_decides(tmp_path: Path) -> None:
    plan = tiny_plan()
    right = json.dumps(slice_of(plan.stack)).encode()
    wrong = json.dumps(slice_of(plan.stack) | {"triton": "distributed", "more": 1}).encode()
    texts = {"right": right, "wrong": wrong, "none": b"[]", "odd": b"{"}
    steps = {
        name: Step(write_tar([from_bytes(PLACE, text)], tmp_path), name)
        for name, text in texts.items()
    }
    other = Step(write_tar([from_bytes("srv/manifest.json", b"")], tmp_path), "other")
    check_slice(plan, tmp_path, [steps["wrong"], steps["right"], other], "here")
    with pytest.raises(IntegrityError) as caught:
        check_slice(plan, tmp_path, [steps["right"], steps["wrong"]], "here")
    assert caught.value.got == "differs in more, triton"
    for bad in ([steps["none"]], [steps["odd"]], [other], []):
        with pytest.raises(IntegrityError, match="another slice"):
            check_slice(plan, tmp_path, bad, "here")
    (tmp_path / other.blob.sha256).write_bytes(b"no tar at all" * 100)
    with pytest.raises(IntegrityError, match="no tar"):
        check_slice(plan, tmp_path, [other], "here")


def test_an_image_in_an_engine_follows_from_its_labels(image: Image) -> None:
    digests = tuple(step.blob.digest for step in image.steps)
    stored = StoredImage(image.id, "", image.labels, image.env, digests, 1)
    assert described(stored, "ref", "linux/amd64") == image
    altered = replace(stored, id="0" * 64)
    with pytest.raises(IntegrityError, match="not as tdstack made it"):
        described(altered, "ref", "linux/amd64")


class Shelf:
    """The names of an engine, without an engine."""

    def __init__(self, **names: str) -> None:
        self.names = names

    def image(self, ref: str) -> StoredImage | None:
        return StoredImage(self.names[ref], "", {}, {}, (), 0) if ref in self.names else None

    def tag(self, ref: str, name: str) -> None:
        self.names[name] = ref

    def untag(self, ref: str) -> None:
        self.names.pop(ref, None)


def test_names_are_taken_back_after_an_error_and_kept_without(tmp_path: Path) -> None:
    shelf = Shelf(old="image-1", moved="image-2")
    engine = cast(Engine, shelf)
    with pytest.raises(KeyboardInterrupt), Names(engine) as names:  # noqa: PT012
        for name in ("new", "moved", "moved"):
            names.about_to_give(name)
            shelf.names[name] = "image-3"
        raise KeyboardInterrupt
    assert shelf.names == {"old": "image-1", "moved": "image-2"}
    with Names(engine) as names:
        names.about_to_give("new")
        shelf.names["new"] = "image-3"
    assert shelf.names["new"] == "image-3"


def test_what_a_killed_verb_left_is_cleared_by_the_next(store: Store) -> None:
    left = store.work() / "pull" / "layout"
    left.mkdir(parents=True)
    (left / "half").write_text("of a layer")
    (left.parent / "tdstack-load-0123").symlink_to("layout")
    shelf = Shelf(**{"localhost/tdstack-load-0123:latest": "image-1", "kept": "image-1"})
    with scratch(store, cast(Engine, shelf), "pull") as layout:
        assert not (layout / "half").exists()
        assert (layout / "blobs" / "sha256").is_dir()
    assert shelf.names == {"kept": "image-1"}
    assert not list(store.work().iterdir())
