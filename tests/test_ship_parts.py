"""The pure parts of shipping: compression, indexes, names, what a prune keeps, rollback."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tdstack.assemble.image import LAYER_TYPE, MANIFEST_TYPE
from tdstack.errors import IntegrityError, UsageError
from tdstack.registry.oci import Descriptor, Index
from tdstack.registry.reference import Repository
from tdstack.ship.compress import (
    Compression,
    compress,
    compression_of,
    decompressed,
)
from tdstack.ship.index import index_of
from tdstack.ship.names import full_tag, is_attachment, is_full, of_one_line, rolling_tags
from tdstack.ship.prune import Held, decide
from tdstack.ship.records import Records
from tdstack.ship.unpack import unpack
from tdstack.ship.workers import Workers
from tdstack.wheelhouse.store import Store
from tests.shipped import tiny_plan

KINDS: list[Compression] = ["zstd", "gzip", "none"]


class Pieces(io.BytesIO):
    """A stream that gives less than it is asked for, as a connection does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or -1, 100_003) if size and size > 0 else -1)


def a_tar(size: int = 9_000_000) -> bytes:
    """Return bytes that compress somewhat, longer than two jobs."""
    drawn = random.Random(7)
    noise = drawn.randbytes(size // 3)
    return noise + bytes(size // 3) + noise[::-1]


def packed(data: bytes, kind: Compression, threads: int = 2) -> tuple[bytes, Descriptor]:
    out = io.BytesIO()
    made = compress(io.BytesIO(data), out, kind, diff_id(data), threads)
    return out.getvalue(), Descriptor(made.media_type, made.digest, made.size)


def diff_id(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"x", a_tar()], ids=["empty", "one", "large"])
def test_a_layer_comes_back_as_it_was(kind: Compression, data: bytes) -> None:
    out, blob = packed(data, kind)
    assert (blob.digest, blob.size) == (diff_id(out), len(out))
    assert b"".join(decompressed(Pieces(out), blob.media_type)) == data


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_depend_on_no_number_of_threads_and_no_piece_of_input(kind: Compression) -> None:
    data = a_tar()
    digests = {packed(data, kind, threads)[1].digest for threads in (1, 2, 5)}
    out = io.BytesIO()
    digests.add(compress(Pieces(data), out, kind, diff_id(data), 3).digest)
    assert len(digests) == 1


def test_other_programs_read_it() -> None:
    data = a_tar(2_000_000)
    done = subprocess.run(
        ["gzip", "-dc"], input=packed(data, "gzip")[0], capture_output=True, check=True
    )
    assert done.stdout == data
    assert gzip.decompress(packed(data, "gzip")[0]) == data
    reader = zstandard.ZstdDecompressor().decompressobj()
    assert reader.decompress(packed(data, "zstd")[0]) == data


def test_several_frames_and_members_are_one_layer() -> None:
    one, two = a_tar(300_000), b"the rest"
    for kind in KINDS:
        both = packed(one, kind)[0] + packed(two, kind)[0]
        media_type = packed(one, kind)[1].media_type
        assert b"".join(decompressed(Pieces(both), media_type)) == one + two


def test_a_tar_that_is_not_its_diff_id_is_not_sent() -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        compress(io.BytesIO(b"data"), io.BytesIO(), "zstd", diff_id(b"other"))


@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_what_is_not_in_its_format_is_an_integrity_error(kind: Compression) -> None:
    out, blob = packed(a_tar(500_000), kind)
    for damaged in (b"\0" + out[1:], b"no such format" * 9):
        with pytest.raises(IntegrityError, match="not in the format"):
            list(decompressed(io.BytesIO(damaged), blob.media_type))


def test_media_types_that_are_no_layers_are_refused_and_dockers_are_read() -> None:
    with pytest.raises(IntegrityError, match="unknown media type"):
        list(decompressed(io.BytesIO(b""), "application/json"))
    theirs = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert b"".join(decompressed(io.BytesIO(gzip.compress(b"tar")), theirs)) == b"tar"
    with pytest.raises(UsageError, match="unknown compression"):
        compression_of("brotli")


def test_a_blob_that_holds_more_than_the_image_says_fills_no_disk(tmp_path: Path) -> None:
    data = bytes(50_000_000)  # some thousand bytes on the wire
    out, blob = packed(data, "zstd")
    source = tmp_path / "blob"
    source.write_bytes(out)
    with pytest.raises(IntegrityError, match="another layer"):
        unpack(source, blob, diff_id(data), 1000, tmp_path)
    assert list(tmp_path.iterdir()) == [source]
    for wrong in (diff_id(b"other"), diff_id(data[1:])):
        with pytest.raises(IntegrityError, match="another layer"):
            unpack(source, blob, wrong, None, tmp_path)
    assert unpack(source, blob, diff_id(data), len(data), tmp_path) == len(data)
    # Cut off where no format notices it.
    source.write_bytes(out[:-3])
    with pytest.raises(IntegrityError):
        unpack(source, blob, diff_id(data), None, tmp_path)


def test_records_forget_what_was_cut_off(store: Store) -> None:
    records = Records(store)
    _, blob = packed(b"tar", "zstd")
    assert records.get(diff_id(b"tar"), "zstd") is None
    records.put(diff_id(b"tar"), "zstd", blob)
    assert records.get(diff_id(b"tar"), "zstd") == blob
    assert records.get(diff_id(b"tar"), "gzip") is None
    (record,) = (store.root / "compressed").iterdir()
    for damaged in ("", "[", "[1, 2]", '["sha256:00", 3]'):
        record.write_text(damaged)
        assert records.get(diff_id(b"tar"), "zstd") is None


def test_tags() -> None:
    plan = tiny_plan()
    full = full_tag(plan)
    assert is_full(full)
    assert full.endswith(plan.final.key[:12])
    (rolling,) = rolling_tags(plan)
    assert not is_full(rolling)
    other = full[:-12] + "0123456789ab"
    tags = [rolling, full, other, "cu128-py311-0123456789ab", "latest"]
    assert of_one_line(tags, plan) == sorted([full, other])
    arm = replace(plan, stack=replace(plan.stack, platform="linux/arm64"))
    named = replace(
        arm.final, tags=(arm.final.tags[0], "localhost/tdstack:cu124-stock-torch-none-arm64-sm_80")
    )
    arm = replace(arm, layers=(*arm.layers[:-1], named))
    assert rolling_tags(arm) == ("cu124-stock-torch-none-arm64-sm_80", rolling)
    assert is_attachment(f"sha256-{'0' * 64}.sig")
    assert is_attachment(f"sha256-{'0' * 64}")
    assert not is_attachment("sha256-abc")


def test_an_index_keeps_other_platforms_whoever_comes_first() -> None:
    amd = Descriptor(MANIFEST_TYPE, diff_id(b"amd"), 1)
    arm = Descriptor(MANIFEST_TYPE, diff_id(b"arm"), 2)
    new = Descriptor(MANIFEST_TYPE, diff_id(b"new"), 3)
    first = index_of(amd, "linux/amd64")
    both = index_of(arm, "linux/arm64", first.document())
    other_way = index_of(amd, "linux/amd64", index_of(arm, "linux/arm64").document())
    assert both == other_way
    moved = index_of(new, "linux/amd64", both.document())
    assert [m.digest for m in moved.manifests] == [new.digest, arm.digest]
    # A plain manifest under the tag, or what has no platform, is not an entry of ours.
    plain = replace(first.document(), media_type=MANIFEST_TYPE)
    assert index_of(new, "linux/amd64", plain) == index_of(new, "linux/amd64")
    nameless = Index((amd,)).document()
    assert len(index_of(new, "linux/amd64", nameless).manifests) == 1


ROOT_ = Repository("127.0.0.1:5000", "team/tdstack")
FULL, OLD = "cu124-py311-aaaaaaaaaaaa", "cu124-py311-bbbbbbbbbbbb"


def held(name: str, where: str = "", tags: tuple[str, ...] = (), **more: object) -> Held:
    repository = ROOT_.child(where) if where else ROOT_
    return Held(repository, name, tags, 10, **more)  # type: ignore[arg-type]


def a_registry() -> list[Held]:
    """Two builds that share their base: the second has the rolling tag."""
    shared, own, old = {"base": 1000}, {"own": 100}, {"old": 70}
    return [
        held("index", tags=(FULL, "cu124"), children=("final",)),
        held("final", key="k-new", parent="base", blobs={**shared, **own}),
        held("bill", subject="final", blobs={"bill-blob": 5}),
        held("list", tags=("sha256-1",), subject="final", children=("bill",)),
        held("old-index", tags=(OLD,), children=("old-final",)),
        held("old-final", key="k-old", parent="base", blobs={**shared, **old}),
        held("old-list", subject="old-final", children=("old-bill",)),
        held("old-bill", subject="old-final", blobs={"old-bill-blob": 3}),
        held("final", "kernels", ("a" * 20,), key="k-new", parent="base", blobs={**shared, **own}),
        held("old-final", "kernels", ("b" * 20,), key="k-old", parent="base"),
        held("base", "base", ("c" * 20,), key="base", blobs=shared),
        held("gone-base", "base", ("d" * 20,), key="lost", blobs={"lost-blob": 40}),
    ]


def test_a_prune_keeps_what_rolling_tags_reach_and_weighs_the_rest() -> None:
    found = decide(a_registry(), ROOT_)
    assert sorted(one.digest for one in found.goes) == [
        "gone-base", "old-bill", "old-final", "old-final", "old-index", "old-list",
    ]  # fmt: skip
    # 6 documents of 10 bytes, of which one is in two repositories; blobs of nobody else.
    assert found.freed == 5 * 10 + 70 + 3 + 40
    order = [one.digest for one in found.goes]
    assert order[0] == "old-index"
    assert order.index("old-list") < order.index("old-final")
    assert order.index("old-bill") < order.index("old-final")


def test_a_prune_keeps_the_tags_that_it_is_told_to() -> None:
    found = decide(a_registry(), ROOT_, [OLD])
    assert [one.digest for one in found.goes] == ["gone-base"]
    with pytest.raises(UsageError, match="no such tag"):
        decide(a_registry(), ROOT_, ["cu999"])


def test_a_tag_of_unknown_form_is_kept() -> None:
    registry = [
        *a_registry(),
        held("mine", tags=("my-own",), children=("my-final",)),
        held("my-final", key="k-mine"),
        held("cached", "torch", ("a-name",), key="k-torch"),
    ]
    assert not {"mine", "my-final", "cached"} & {g.digest for g in decide(registry, ROOT_).goes}


def test_workers_drop_what_has_not_begun_when_something_fails() -> None:
    begun: list[int] = []
    with pytest.raises(ValueError, match="over"), Workers(1) as workers:  # noqa: PT012
        first = workers.submit(begun.append, 1)
        first.result(5)
        raise ValueError("over")
    assert workers.stopped()
    late = workers.submit(begun.append, 2)
    assert begun == [1]
    assert not late.done()
    with Workers(2) as more:
        bad = more.submit(int, "no number")
        with pytest.raises(ValueError, match="invalid literal"):
            bad.result(5)
    assert LAYER_TYPE
