"""Documents of a registry: their bytes, and that malformed ones are refused with their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdstack.assemble.image import CONFIG_TYPE, LAYER_TYPE
from tdstack.errors import IntegrityError
from tdstack.registry.oci import (
    DOCKER_MANIFEST_TYPE,
    EMPTY,
    EMPTY_TYPE,
    Descriptor,
    ImageManifest,
    Index,
)

_descriptors = st.builds(
    Descriptor,
    st.sampled_from([CONFIG_TYPE, LAYER_TYPE, EMPTY_TYPE]),
    st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    st.integers(0, 2**60),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    st.sampled_from(["", "text/spdx"]),
    st.sampled_from(["", "linux/amd64", "linux/arm64", "linux/arm64/v8"]),
)
_lists = st.lists(_descriptors, max_size=3).map(tuple)
_annotations = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)


@given(
    st.builds(
        ImageManifest,
        _descriptors,
        _lists,
        st.none() | _descriptors,
        st.sampled_from(["", "text/spdx"]),
        _annotations,
    )
)
def test_a_manifest_is_read_as_it_was_written(manifest: ImageManifest) -> None:
    document = manifest.document()
    assert ImageManifest.parse(document.data) == manifest
    assert document.descriptor().digest == document.digest
    with pytest.raises(IntegrityError):
        Index.parse(document.data)


@given(st.builds(Index, _lists, _annotations))
def test_an_index_is_read_as_it_was_written(index: Index) -> None:
    assert Index.parse(index.document().data) == index
    with pytest.raises(IntegrityError):
        ImageManifest.parse(index.document().data)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["schemaVersion", "config", "layers", "manifests", "digest", "size"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_an_integrity_error(data: bytes) -> None:
    for parse in (ImageManifest.parse, Index.parse):
        with pytest.raises(IntegrityError):
            parse(data)


def test_canonical_bytes() -> None:
    config = Descriptor.of(EMPTY, EMPTY_TYPE)
    assert ImageManifest(config, (), artifact_type="text/a").document().data == (
        b'{"artifactType":"text/a","config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb'
        b'4fc21fe77e8310c060f61caaff8a","mediaType":"application/vnd.oci.empty.v1+json","size":2},'
        b'"layers":[],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )


def test_dockers_manifest_is_read_too() -> None:
    manifest = ImageManifest(Descriptor.of(b"{}", CONFIG_TYPE), ())
    top = json.loads(manifest.document().data)
    top["mediaType"] = DOCKER_MANIFEST_TYPE
    assert ImageManifest.parse(json.dumps(top).encode()) == manifest


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda top: top.update(schemaVersion=1), "schemaVersion"),
        (lambda top: top.update(mediaType="text/plain"), "mediaType"),
        (lambda top: top.update(manifests=[]), "manifests"),
        (lambda top: top.update(layers=None), "layers"),
        (lambda top: top.pop("config"), "config"),
        (lambda top: top["layers"].append(3), "layers[1]"),
        (lambda top: top["layers"][0].update(size=-1), "layers[0].size"),
        (lambda top: top["layers"][0].update(size=True), "layers[0].size"),
        (lambda top: top["layers"][0].update(size="3"), "layers[0].size"),
        (lambda top: top["layers"][0].update(digest="sha256:../../x"), "layers[0].digest"),
        (lambda top: top["layers"][0].update(digest="sha512:" + "0" * 128), "layers[0].digest"),
        (lambda top: top["config"].update(mediaType=None), "config.mediaType"),
        (lambda top: top["config"].update(platform=[]), "config.platform"),
        (
            lambda top: top["config"].update(platform={"os": "linux"}),
            "config.platform.architecture",
        ),
        (lambda top: top.update(annotations={"a": 1}), "annotations.a"),
        (lambda top: top.update(annotations=[]), "annotations"),
        (lambda top: top.update(subject={}), "subject.size"),
        (lambda top: top.update(artifactType=1), "artifactType"),
    ],
)
def test_a_malformed_manifest_is_refused_with_the_place(change: Change, where: str) -> None:
    layer = Descriptor.of(b"abc", LAYER_TYPE)
    manifest = ImageManifest(Descriptor.of(b"{}", CONFIG_TYPE), (layer,))
    top = json.loads(manifest.document().data)
    change(top)
    with pytest.raises(IntegrityError) as caught:
        ImageManifest.parse(json.dumps(top).encode())
    assert caught.value.where == where


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"[]"])
def test_what_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="JSON"):
        ImageManifest.parse(data)
