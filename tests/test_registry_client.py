"""The client against a real registry: documents, blobs, tags, referrers, deletion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE
from tdstack.errors import IntegrityError
from tdstack.registry.client import Registry
from tdstack.registry.oci import EMPTY, EMPTY_TYPE, Descriptor, Document, ImageManifest, Index
from tdstack.registry.reference import Repository
from tests.registries import RunningRegistry, plain_registry

__all__ = ["plain_registry"]


def push(registry: Registry, repository: Repository, *layers: bytes) -> Document:
    config = b"{}"
    described = Descriptor.of(config, CONFIG_TYPE)
    registry.put_blob(repository, config, described)
    found = tuple(Descriptor.of(layer, LAYER_TYPE) for layer in layers)
    for layer, descriptor in zip(layers, found, strict=True):
        registry.put_blob(repository, layer, descriptor)
    return ImageManifest(described, found).document()


def test_what_is_pushed_comes_back(plain_registry: RunningRegistry, tmp_path: Path) -> None:
    registry = Registry(plain_registry.host)
    repository = Repository(plain_registry.host, "round/trip")
    assert registry.document(repository, "v1") is None
    assert registry.head(repository, "v1") is None
    assert registry.tags(repository) == []
    layer = os.urandom(300_000)
    document = push(registry, repository, layer)
    registry.put_document(repository, "v1", document)
    registry.put_document(repository, "v2", document)
    assert registry.document(repository, "v1") == document
    assert registry.document(repository, document.digest) == document
    assert registry.head(repository, "v2") == document.descriptor()
    assert registry.tags(repository) == ["v1", "v2"]
    manifest = ImageManifest.parse(document.data)
    assert registry.get_blob(repository, manifest.config) == b"{}"
    with registry.open_blob(repository, manifest.layers[0]) as reader:
        assert reader.read(10) + reader.read() == layer


def test_a_blob_is_sent_once_and_mounted_elsewhere(
    plain_registry: RunningRegistry, tmp_path: Path
) -> None:
    registry = Registry(plain_registry.host)
    first = Repository(plain_registry.host, "once")
    second = first.child("more")
    file = tmp_path / "layer"
    file.write_bytes(os.urandom(100_000))
    descriptor = Descriptor.of(file.read_bytes(), LAYER_TYPE)
    assert not registry.has_blob(first, descriptor.digest)
    assert registry.put_blob(first, file, descriptor) is True
    assert registry.put_blob(first, file, descriptor) is False
    assert not registry.has_blob(second, descriptor.digest)
    assert registry.mount_blob(second, descriptor, first) is True
    assert registry.has_blob(second, descriptor.digest)


def test_a_source_of_other_bytes_is_not_stored(plain_registry: RunningRegistry) -> None:
    registry = Registry(plain_registry.host)
    repository = Repository(plain_registry.host, "other")
    with pytest.raises(IntegrityError, match="not what its digest says"):
        registry.put_blob(repository, b"abd", Descriptor.of(b"abc", LAYER_TYPE))
    assert not registry.has_blob(repository, Descriptor.of(b"abc", LAYER_TYPE).digest)


def test_referrers_without_the_api(plain_registry: RunningRegistry) -> None:
    registry = Registry(plain_registry.host)
    repository = Repository(plain_registry.host, "referred")
    image = push(registry, repository, b"a layer")
    registry.put_document(repository, "v1", image)
    subject = image.descriptor()
    assert registry.referrers(repository, subject.digest) == []
    empty = Descriptor.of(EMPTY, EMPTY_TYPE)
    registry.put_blob(repository, EMPTY, empty)
    for kind in ("text/a", "text/b", "text/a"):
        referrer = ImageManifest(empty, (empty,), subject, kind).document()
        registry.add_referrer(repository, subject, referrer, kind, {"k": kind})
    found = registry.referrers(repository, subject.digest)
    assert [(d.artifact_type, d.annotations) for d in found] == [
        ("text/a", {"k": "text/a"}),
        ("text/b", {"k": "text/b"}),
    ]
    assert registry.referrers(repository, subject.digest, "text/b") == found[1:]
    held = registry.document(repository, subject.digest.replace(":", "-"))
    assert held is not None
    assert Index.parse(held.data).manifests == tuple(found)


def test_deletion(plain_registry: RunningRegistry) -> None:
    registry = Registry(plain_registry.host)
    repository = Repository(plain_registry.host, "deleted")
    image = push(registry, repository, b"a layer")
    registry.put_document(repository, "v1", image)
    registry.delete(repository, image.digest)
    assert registry.document(repository, "v1") is None
    registry.delete(repository, image.digest)
