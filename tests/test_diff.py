"""`invoke diff`: what is seen of images, archives, containers and locks, and what it ends with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
import zstandard

from tdstack.assemble.entries import Entry, from_bytes
from tdstack.diff.blobs import Chunks, layer_tar
from tdstack.diff.compare import by_folder, compare, folder_of
from tdstack.diff.facts import MANIFEST, wanted
from tdstack.diff.images import archive_image
from tdstack.diff.locks import lock_for, whole_lock
from tdstack.diff.model import FileFact, LayerFact, Release, Snapshot
from tdstack.diff.sides import (
    Archive,
    Container,
    EngineImage,
    LockFile,
    LockRevision,
    RegistryImage,
    parse_side,
)
from tdstack.diff.tree import Tree
from tdstack.engines.choose import choose_engine
from tdstack.errors import IntegrityError, UsageError
from tdstack.lock.io import dump_lock
from tdstack.lock.model import Lock
from tdstack.plan import slice_of
from tests.conftest import ROOT, record_hash
from tests.engine_stores import buildah_store, docker_daemon
from tests.small_images import (
    PLAIN,
    SITE,
    Looks,
    SmallImage,
    locked_entries,
    make_image,
    metadata,
    slim_stack,
)
from tests.test_cli import invoke


class TestTree:
    """Layers, laid over each other."""

    def test_a_later_layer_wins_and_whiteouts_remove(self) -> None:
        tree = tree_of(
            {
                "a/x": b"1",
                "a/y": b"2",
                "b/c/d": b"3",
                "e": b"4",
                MANIFEST: b"{}",
            },
            {"a/x": b"11", "a/.wh.y": b"", ".wh.b": b"", "opt/.wh.tdstack": b""},
        )
        assert sorted(p for p, f in tree.files.items() if f.kind == "file") == ["a/x", "e"]
        assert (tree.files["a/x"].layer, tree.files["e"].layer) == ("layer 1", "layer 0")
        assert tree.files["a/x"].sha256 == hashlib.sha256(b"11").hexdigest()
        assert not tree.texts

    def test_an_opaque_folder_hides_what_lower_layers_put_there_and_nothing_else(self) -> None:
        tree = tree_of({"a/x": b"1", "ab": b"2"}, {"a/.wh..wh..opq": b"", "a/z": b"3"})
        assert sorted(p for p, f in tree.files.items() if f.kind == "file") == ["a/z", "ab"]

    def test_a_file_in_a_folders_place_removes_what_was_below(self) -> None:
        tree = tree_of({"a/x": b"1"}, {"a": b"2"})
        assert list(tree.files) == ["a"]

    def test_a_hard_link_is_the_file_that_it_names(self) -> None:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            add(archive, "var/lib/dpkg/one", b"Package: x\n")
            link = tarfile.TarInfo("var/lib/dpkg/status")
            link.type, link.linkname = tarfile.LNKTYPE, "var/lib/dpkg/one"
            archive.addfile(link)
        tree = Tree(wanted)
        tree.apply(io.BytesIO(out.getvalue()))
        linked = tree.files["var/lib/dpkg/status"]
        assert (linked.kind, linked.size) == ("file", 11)
        assert linked.sha256 == hashlib.sha256(b"Package: x\n").hexdigest()

    def test_what_is_cut_off_or_not_its_digests_is_refused(self) -> None:
        data = tar_of({"a": b"x" * 3000})
        good = hashlib.sha256(data).hexdigest()
        assert Tree(wanted).apply(io.BytesIO(data), "l", good) == len(data)
        with pytest.raises(IntegrityError, match="whole tar"):
            Tree(wanted).apply(io.BytesIO(data[:2000]), "l")
        with pytest.raises(IntegrityError, match="not those of its digest"):
            Tree(wanted).apply(io.BytesIO(data + b"\0" * 512), "l", good)

    def test_compressed_layers_are_read_in_chunks(self) -> None:
        data = tar_of({"a": os.urandom(3_000_000)})
        packed = zstandard.ZstdCompressor().compress(data)
        pieces = (packed[i : i + 1000] for i in range(0, len(packed), 1000))
        tree = Tree(wanted)
        stream = layer_tar(Chunks(pieces), "application/vnd.oci.image.layer.v1.tar+zstd")
        assert tree.apply(stream) == len(data)
        broken = layer_tar(io.BytesIO(b"\0" * 99), "application/vnd.oci.image.layer.v1.tar+zstd")
        with pytest.raises(IntegrityError, match="format"):
            Tree(wanted).apply(broken)


class TestCompare:
    """The pure part."""

    def test_equal_snapshots_are_equal(self) -> None:
        one = Snapshot("a", packages={"python: x": Release(("1",), ("aa",))}, files={}, env={})
        assert compare(one, replace(one, name="b")).equal

    def test_every_subject_counts_by_itself(self) -> None:
        none = Snapshot("none", settings={}, files={}, layers=(), cubins={}, altered={}, env={},
                        labels={})  # fmt: skip
        some: dict[str, Any] = {
            "packages": {"x": Release(("1",))},
            "settings": {"x": "1"},
            "files": {"x": FileFact("file", 0o644)},
            "layers": (LayerFact("x", "0", 1),),
            "cubins": {"x": "1"},
            "altered": {"x": "missing"},
            "env": {"x": "1"},
            "labels": {"x": "1"},
        }
        for name, value in some.items():
            found = compare(none, replace(none, **{name: value}))
            assert not found.equal, name
            assert [c.what for c in getattr(found, name)] == ["added"]
            rows = found.as_dict()[name]
            assert isinstance(rows, list)
            assert [(row["name"], row["before"]) for row in rows] == [("x", None)]

    def test_what_one_side_cannot_tell_is_named_and_not_compared(self) -> None:
        image = Snapshot("image", files={"x": FileFact("file", 0o644)}, env={"A": "1"})
        found = compare(image, Snapshot("lock", env={}))
        assert not found.files
        assert found.not_compared is not None
        assert found.not_compared["files"] == "lock"
        assert [c.name for c in found.env] == ["A"]

    @pytest.mark.parametrize(
        "other",
        [
            FileFact("file", 0o755, size=3, sha256="aa"),
            FileFact("file", 0o644, owner="1000:0", size=3, sha256="aa"),
            FileFact("file", 0o644, size=3, sha256="ab"),
            FileFact("link", 0o644, target="y"),
        ],
    )
    def test_each_property_of_a_file_counts_but_its_layer_does_not(self, other: FileFact) -> None:
        fact = FileFact("file", 0o644, size=3, sha256="aa", layer="l1")
        one = Snapshot("a", files={"x": fact})
        assert compare(one, Snapshot("b", files={"x": replace(fact, layer="l2")})).equal
        assert not compare(one, Snapshot("b", files={"x": other})).equal

    def test_hashes_count_where_both_sides_know_them(self) -> None:
        sure, other, unsure = Release(("1",), ("a",)), Release(("1",), ("b",)), Release(("1",))
        assert sure.same(unsure)
        assert unsure.same(sure)
        assert not sure.same(other)

    def test_files_are_summed_up_by_layer_and_folder(self) -> None:
        site = "opt/tdstack/lib/python3.11/site-packages"
        before = {f"{site}/torch/a.py": FileFact("file", 0o644, size=5, sha256="1", layer="torch")}
        after = {
            f"{site}/torch/a.py": FileFact("file", 0o644, size=7, sha256="2", layer="torch"),
            f"{site}/torch/sub/b.py": FileFact("file", 0o644, size=10, sha256="3", layer="torch"),
            "usr/bin/gcc": FileFact("file", 0o755, size=1, sha256="4", layer="base"),
        }
        rows = by_folder(compare(Snapshot("a", files=before), Snapshot("b", files=after)).files)
        assert [(r.layer, r.folder, r.added, r.changed, r.bytes) for r in rows] == [
            ("torch", f"{site}/torch", 1, 1, 12),
            ("base", "usr/bin", 1, 0, 1),
        ]
        assert (folder_of("etc"), folder_of("etc/x"), folder_of(f"{site}/six.py")) == (
            "/", "etc", site,
        )  # fmt: skip


def test_a_side_is_told_by_its_name(tmp_path: Path) -> None:
    lock, archive = tmp_path / "v.lock", tmp_path / "image.tar"
    lock.touch()
    archive.touch()
    assert parse_side(str(lock), "A") == LockFile(lock)
    assert parse_side(str(archive), "A") == Archive(archive)
    assert parse_side("HEAD~2:versions.lock", "A") == LockRevision("HEAD~2", "versions.lock")
    assert parse_side("container:worker", "A") == Container("worker")
    assert parse_side("localhost/tdstack:cu124", "A") == EngineImage("localhost/tdstack:cu124")
    for ref in ("localhost:5000/x:1", "reg.example/team/x@sha256:" + "0" * 64):
        assert parse_side(ref, "A") == RegistryImage(ref)
    for text in ("", "nothing", "./no/such.tar", "container:", "-x:versions.lock", "a/b"):
        with pytest.raises(UsageError):
            parse_side(text, "A")


class TestLocks:
    """Locks with each other and with images."""

    def test_a_moved_pin_is_named_with_its_line(self, lock: Lock, tmp_path: Path) -> None:
        lines = {**lock.lines, "12.4": lock.lines["12.4"].model_copy(update={"ptxas": "12.4.999"})}
        (tmp_path / "other.lock").write_text(dump_lock(lock.model_copy(update={"lines": lines})))
        done = invoke(ROOT, "diff", "versions.lock", str(tmp_path / "other.lock"), "--json")
        assert done.code == 1, done.err
        (row,) = json.loads(done.out)["details"]["settings"]
        assert row["name"] == "CUDA 12.4: ptxas"
        assert (row["before"], row["after"]) == (lock.lines["12.4"].ptxas, "12.4.999")
        same = invoke(ROOT, "diff", "versions.lock", "versions.lock", "--json")
        assert same.code == 0
        assert json.loads(same.out)["equal"] is True

    def test_a_revision_that_is_not_there_is_a_usage_error(self) -> None:
        done = invoke(ROOT, "diff", "no-such-revision:versions.lock", "versions.lock")
        assert done.code == 2
        assert "no-such-revision" in done.err

    def test_the_whole_lock_has_every_package(self, lock: Lock) -> None:
        found = whole_lock("l", lock)
        pinned = {sha for release in found.packages.values() for sha in release.sha256}
        wheels = {w.sha256 for wheels in lock.packages.values() for w in wheels}
        assert pinned == wheels | {d.sha256 for r in lock.rootfs for d in r.packages}

    def test_triton_distributed_is_compared_where_the_lock_records_wheels(self, lock: Lock) -> None:
        stack = slim_stack(lock)
        ours = {"name": "triton", "version": "3.4.0+dist.x", "file": "f", "sha256": "5" * 64}
        manifest = slice_of(stack) | {"triton": "distributed", "fork": {"sha256": "7" * 64}}
        layers = dict(manifest["layers"])  # type: ignore[call-overload]
        manifest["layers"] = layers | {"triton": [ours]}
        assert lock_for("l", lock, manifest).packages["python: triton"].sha256 == ("5" * 64,)
        wheel = {
            "name": "triton_dist-3.4.0-cp311-cp311-linux_x86_64.whl",
            "size": 1,
            "sha256": "8" * 64,
        }
        recorded = lock.model_copy(
            update={
                "triton_distributed": lock.triton_distributed.model_validate(
                    lock.triton_distributed.model_dump() | {"wheels": [wheel]}
                )
            }
        )
        assert lock_for("l", recorded, manifest).packages["python: triton"].sha256 == ()


class TestArchives:
    """OCI archives, which need no engine."""

    def test_an_archive_equals_itself_and_a_changed_byte_is_found(self, tmp_path: Path) -> None:
        one = small(tmp_path / "1").archive(tmp_path / "1.tar")
        again = small(tmp_path / "2").archive(tmp_path / "2.tar")
        other = small(tmp_path / "3", text=b"changee").archive(tmp_path / "3.tar")
        assert invoke(ROOT, "diff", str(one), str(again)).code == 0
        done = invoke(ROOT, "diff", str(one), str(other), "--json", "--files")
        assert done.code == 1, done.err
        found = json.loads(done.out)["details"]
        assert [(r["name"], r["what"]) for r in found["files"]] == [("etc/text", "changed")]
        assert [r["name"] for r in found["layers"]] == ["top"]
        assert "etc/text" in done.err
        for subject in ("packages", "settings", "cubins", "env", "labels"):
            assert found[subject] == [], subject

    def test_every_layer_is_read_even_where_files_are_alike(self, tmp_path: Path) -> None:
        image = small(tmp_path / "1")
        victim = image.layout / "blobs" / "sha256" / image.image.steps[1].blob.sha256
        data = bytearray(victim.read_bytes())
        data[600] ^= 1
        victim.write_bytes(data)
        with pytest.raises(IntegrityError, match="not those of its digest"):
            archive_image(image.archive(tmp_path / "1.tar")).snapshot()

    def test_packages_cubins_env_and_labels_are_told(self, lock: Lock, tmp_path: Path) -> None:
        looks = Looks(env={"A": "1"}, labels={"l": "1"})
        one = image_of(lock, tmp_path / "1", [*cubins("aa")], looks)
        extra = [metadata("six", "1.16"), *cubins("bb")]
        two = image_of(lock, tmp_path / "2", extra, Looks(env={"A": "2"}, labels={}))
        found = compare(
            archive_image(one.archive(tmp_path / "1.tar")).snapshot(),
            archive_image(two.archive(tmp_path / "2.tar")).snapshot(),
        )
        assert [(c.name, c.what) for c in found.packages] == [("python: six", "added")]
        assert [(c.name, c.what) for c in found.cubins] == [
            ("cu124/sm_90/one_shot", "changed"),
            ("cu124/sm_90/only_aa", "removed"),
            ("cu124/sm_90/only_bb", "added"),
        ]
        assert [(c.before, c.after) for c in found.env] == [("1", "2")]
        assert [c.what for c in found.labels] == ["removed"]

    def test_an_image_equals_its_lock_until_a_package_moves_or_a_file_changes(
        self, lock: Lock, tmp_path: Path
    ) -> None:
        good = image_of(lock, tmp_path / "1", recorded_module(b"x = 1\n", b"x = 1\n"))
        path = good.archive(tmp_path / "1.tar")
        assert invoke(ROOT, "diff", str(path), "versions.lock").code == 1  # `plant` is in no lock
        plain = image_of(lock, tmp_path / "2").archive(tmp_path / "2.tar")
        done = invoke(ROOT, "diff", "versions.lock", str(plain), "--json")
        assert done.code == 0, done.err
        assert "files" in json.loads(done.out)["not_compared"]
        bad = image_of(lock, tmp_path / "3", recorded_module(b"x = 1\n", b"x = 2\n"))
        found = json.loads(
            invoke(
                ROOT, "diff", str(bad.archive(tmp_path / "3.tar")), "versions.lock", "--json"
            ).out
        )["details"]
        assert [r["name"] for r in found["altered"]] == [f"{SITE}/plant.py"]
        assert [r["name"] for r in found["packages"]] == ["python: plant"]

    def test_documents_that_are_none_are_refused(self, tmp_path: Path) -> None:
        image = small(tmp_path / "1")
        path = image.archive(tmp_path / "1.tar")
        good = path.read_bytes()
        for known, other in (
            (b'"diff_ids"', b'"diff_idx"'),
            (b'"layers":[{', b'"layerx":[{'),
            (b'"manifests"', b'"manifestx"'),
        ):
            assert known in good
            path.write_bytes(good.replace(known, other))
            with pytest.raises(IntegrityError):
                archive_image(path).snapshot()

    def test_one_layer_twice_is_read_twice(self, tmp_path: Path) -> None:
        image = small(tmp_path / "1")
        step = image.image.steps[0]
        twice = replace(image, image=replace(image.image, steps=(step, step)))
        found = archive_image(twice.archive(tmp_path / "1.tar")).snapshot()
        assert found.layers is not None
        assert [layer.diff_id for layer in found.layers] == [step.blob.sha256] * 2

    def test_what_is_no_archive_is_said_to_be_none(self, tmp_path: Path) -> None:
        other = tmp_path / "x.tar"
        other.write_bytes(tar_of({"a": b"1"}))
        garbage = tmp_path / "y.tar"
        garbage.write_bytes(b"nothing")
        foreign = small(tmp_path / "f").archive(tmp_path / "f.tar")
        for side, words in ((other, "no OCI archive"), (garbage, "no OCI archive"),
                            (foreign, "what it was built from")):  # fmt: skip
            done = invoke(ROOT, "diff", str(side), "versions.lock")
            assert done.code == 2, done.err
            assert words in done.err


@pytest.mark.engine
class TestEngines:
    """Images and containers of real engines."""

    @pytest.fixture(params=["buildah", "docker"])
    def engine(
        self,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[tuple[str, dict[str, str]]]:
        stores = {"buildah": buildah_store, "docker": docker_daemon}
        # Short: the daemon's sockets lie in it, and their paths may have 108 bytes.
        with stores[request.param](tmp_path_factory.mktemp("e") / "e") as environment:
            environment = environment | {"TDSTACK_CACHE": str(tmp_path / "cache")}
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            yield request.param, environment

    def test_images_archives_and_a_changed_container(
        self, engine: tuple[str, dict[str, str]], lock: Lock, tmp_path: Path
    ) -> None:
        name, environment = engine
        held = choose_engine(name).engine
        image = image_of(lock, tmp_path / "1", recorded_module(b"x = 1\n", b"x = 1\n"))
        ref = image.into(held, "localhost/small:1")
        other = image_of(lock, tmp_path / "2").into(held, "localhost/small:2")

        def diff(a: str, b: str) -> tuple[int, dict[str, Any]]:
            done = invoke(ROOT, "diff", a, b, f"--engine={name}", "--json", **environment)
            told = json.loads(done.out)
            assert "what" not in told or "differ" in told["what"], done.err
            return done.code, told.get("details", told)

        archive = image.archive(tmp_path / "1.tar")
        assert diff(ref, str(archive))[0] == 0
        code, found = diff(ref, other)
        assert code == 1
        assert {r["name"] for r in found["packages"]} == {"python: plant"}
        assert f"{SITE}/plant.py" in {r["name"] for r in found["files"]}
        assert not list((tmp_path / "cache" / "work").iterdir())

        with container_of(name, ref, environment) as container:
            code, found = diff(ref, container)
            assert (code, found["files"], set(found["not_compared"])) == (0, [], {"layers"})
            change_in(name, f"/{SITE}/plant.py", environment, tmp_path)
            code, found = diff(ref, container)
            assert code == 1
            assert [(r["name"], r["what"]) for r in found["files"]] == [
                (f"{SITE}/plant.py", "changed")
            ]
            code, found = diff(container, "versions.lock")
            assert code == 1
            assert [r["name"] for r in found["altered"]] == [f"{SITE}/plant.py"]
        if name == "buildah":
            self._check_damaged_store(ref, environment)
        missing = invoke(ROOT, "diff", "container:none", ref, f"--engine={name}", **environment)
        assert missing.code == 2, missing.err
        assert invoke(ROOT, "diff", "localhost/none:1", ref, **environment).code == 2

    def _check_damaged_store(self, ref: str, environment: dict[str, str]) -> None:
        store = Path(environment["CONTAINERS_STORAGE_CONF"]).parent
        (victim,) = store.glob(f"graph/overlay/*/diff/{SITE}/plant.py")
        victim.write_bytes(b"x = 3\n")
        done = invoke(ROOT, "diff", ref, "versions.lock", "--engine=buildah", **environment)
        assert done.code == 4, done.err
        assert f"{SITE}/plant.py" in done.err


def tree_of(*layers: dict[str, bytes]) -> Tree:
    tree = Tree(wanted)
    for number, files in enumerate(layers):
        tree.apply(io.BytesIO(tar_of(files)), f"layer {number}")
    return tree


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar of files and the folders that they are in."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for folder in sorted({p for name in files for p in parents(name)}):
            header = tarfile.TarInfo(f"./{folder}/")
            header.type = tarfile.DIRTYPE
            archive.addfile(header)
        for name, data in files.items():
            add(archive, name, data)
    return out.getvalue()


def parents(name: str) -> list[str]:
    return [str(p) for p in Path(name).parents if str(p) != "."]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


def small(folder: Path, text: bytes = b"changed") -> SmallImage:
    layers = {
        "bottom": [from_bytes("usr/bin/x", b"#!", 0o755)],
        "top": [from_bytes("etc/text", text)],
    }
    return make_image(folder, layers)


def image_of(
    lock: Lock, folder: Path, extra: Sequence[Entry] = (), looks: Looks = PLAIN
) -> SmallImage:
    """An image that says it is the slim one of the lock, and has more on top."""
    top = [from_bytes("etc/extra", b""), *extra]
    return make_image(folder, {"base": locked_entries(slim_stack(lock)), "top": top}, looks)


def recorded_module(recorded: bytes, real: bytes) -> list[Entry]:
    """A package `plant` whose RECORD tells of other bytes than it has, if so asked."""
    digest, size = record_hash(recorded)
    record = f"plant.py,{digest},{size}\nplant-1.dist-info/RECORD,,\n"
    return [
        from_bytes(f"{SITE}/plant.py", real),
        from_bytes(f"{SITE}/plant-1.dist-info/RECORD", record.encode()),
        metadata("plant", "1"),
    ]


def cubins(kind: str) -> list[Entry]:
    both = [("one_shot", kind * 32), (f"only_{kind}", "cc" * 32)]
    rows = [{"arch": "sm_90", "name": name, "sha256": sha256} for name, sha256 in both]
    path = f"{SITE}/gemm_allreduce_cubins/cu124/manifest.json"
    return [from_bytes(path, json.dumps({"cubins": rows}).encode())]


@contextmanager
def container_of(engine: str, ref: str, environment: dict[str, str]) -> Iterator[str]:
    if engine == "docker":
        client = docker.DockerClient(base_url=environment["DOCKER_HOST"])
        made = client.containers.create(ref, ["/none"], name="changing")
    else:
        buildah(environment, "from", "--pull-never", "--name", "changing", ref)
    yield "container:changing"
    if engine == "docker":
        made.remove(force=True)
    else:
        buildah(environment, "rm", "changing")


def change_in(engine: str, path: str, environment: dict[str, str], tmp_path: Path) -> None:
    if engine == "docker":
        client = docker.DockerClient(base_url=environment["DOCKER_HOST"])
        folder, _, name = path.rpartition("/")
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            add(archive, name, b"x = 2\n")
        client.containers.get("changing").put_archive(folder, out.getvalue())
    else:
        source = tmp_path / "changed"
        source.write_bytes(b"x = 2\n")
        buildah(environment, "copy", "--chmod", "644", "changing", str(source), path)


def buildah(environment: dict[str, str], *arguments: str) -> None:
    env = {**os.environ, **environment}
    subprocess.run(["buildah", *arguments], env=env, check=True, capture_output=True)
