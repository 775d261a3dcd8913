"""Bundles: whole or refused, in one file or in parts, and what a host without a network makes of
them."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tdstack.attest import dsse
from tdstack.attest.keys import Signer, load_public, load_signer
from tdstack.bundle.make import BundleReport, MakeOptions, make_bundle
from tdstack.bundle.model import PAYLOAD_TYPE, BundleManifest, Member, parse_manifest
from tdstack.bundle.opened import open_bundle
from tdstack.bundle.pack import packed, write_bundle
from tdstack.bundle.parts import Parts, PartWriter, parse_size
from tdstack.bundle.shelf import Shelf
from tdstack.bundle.unpack import lay_out, plan_of_bundle
from tdstack.bundle.wheelhouse import into_store
from tdstack.engines.base import RunRequest
from tdstack.errors import HostError, IntegrityError, TdstackError, UsageError
from tdstack.fork.model import ForkSource
from tdstack.plan import PREFIX, Plan
from tdstack.registry.client import Registry, registry_of
from tdstack.registry.reference import parse_reference
from tdstack.ship.resolve import resolve
from tdstack.stack import Package, Request
from tdstack.wheelhouse.store import Store, file_of, sha256_of
from tdstack.workspace import Workspace
from tests.conftest import MakeWheel
from tests.registries import RunningRegistry, plain_registry
from tests.shipped import OPTIONS, ROOT, Ended, Host, buildah_host, load_tiny, tiny_plan
from tests.triton_wheels import FORK_BACKENDS, FORK_FILES, TAG

__all__ = ["plain_registry"]


class TestParts:
    """Bytes in several files."""

    def test_what_was_written_is_read_across_the_files(self, tmp_path: Path) -> None:
        data = random.Random(1).randbytes(1000)
        writer = PartWriter(tmp_path / "b", 300)
        for begin in range(0, 1000, 70):
            writer.write(data[begin : begin + 70])
        assert [p.name for p in writer.publish()] == ["b.000", "b.001", "b.002", "b.003"]
        with Parts(tmp_path / "b") as parts:
            assert parts.size == 1000
            assert parts.window(250, 400).read() == data[250:650]
            assert parts.window(990, 100).read() == data[990:]
            assert parts.damaged() == []
        with Parts(tmp_path / "b.000") as parts:
            assert parts.window(0, 1000).read() == data
        listed = subprocess.run(["sha256sum", "-c", "b.sha256"], cwd=tmp_path, check=False)
        assert listed.returncode == 0

    @pytest.mark.parametrize("lost", ["b.001", "b.003", "b.sha256"])
    def test_a_lost_part_is_named(self, tmp_path: Path, lost: str) -> None:
        writer = PartWriter(tmp_path / "b", 300)
        writer.write(b"x" * 1000)
        writer.publish()
        (tmp_path / lost).unlink()
        with pytest.raises(IntegrityError, match="part of the bundle is missing") as caught:
            Parts(tmp_path / "b")
        assert lost in caught.value.expected

    def test_only_what_is_published_stays_and_older_parts_go(self, tmp_path: Path) -> None:
        first = PartWriter(tmp_path / "b", 300)
        first.write(b"x" * 1000)
        first.publish()
        second = PartWriter(tmp_path / "b", 300)
        second.write(b"y" * 1000)
        second.abandon()
        with Parts(tmp_path / "b") as parts:
            assert parts.window(0, 1000).read() == b"x" * 1000
        (tmp_path / ".b.007.partial").touch()  # of one that was killed
        third = PartWriter(tmp_path / "b", 300)
        third.write(b"z" * 400)
        third.publish()
        third.abandon()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["b.000", "b.001", "b.sha256"]

    def test_sizes_are_decimal_and_not_tiny(self) -> None:
        assert (parse_size("4G"), parse_size("700MB"), parse_size("1000000")) == (
            4_000_000_000, 700_000_000, 1_000_000,
        )  # fmt: skip
        for text in ("", "4X", "-1G", "10K", "1.5G"):
            with pytest.raises(UsageError):
                parse_size(text)


class TestWhole:
    """A small bundle, and everything that can happen to it."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        return small_bundle(tmp_path)

    def test_it_opens_and_gives_its_files(self, made: Path) -> None:
        with Parts(made) as parts:
            bundle = open_bundle(made, parts)
            assert bundle.open(bundle.manifest.members[1]).read() == b"b" * 700
            assert bundle.below("checkout").size("scripts/go.sh") == 3
        with tarfile.open(made) as tar:  # by hand too, with the modes
            names = tar.getnames()
            assert names[:2] == ["bundle.json", "bundle.sha256"]
            assert tar.getmember("checkout/scripts/go.sh").mode == 0o755

    def test_equal_contents_give_equal_bytes(self, made: Path, tmp_path: Path) -> None:
        again = small_bundle(tmp_path / "again")
        assert sha256_of(made) == sha256_of(again)

    def test_a_flipped_bit_anywhere_is_noticed(self, made: Path) -> None:
        good = made.read_bytes()
        rng = random.Random(3)
        places = {rng.randrange(len(good)) for _ in range(300)} | {0, 512, len(good) - 1}
        for at in sorted(places):
            bad = bytearray(good)
            bad[at] ^= 1 << rng.randrange(8)
            made.write_bytes(bad)
            assert is_refused(made), f"nobody noticed the flipped bit in byte {at}"

    def test_a_cut_anywhere_is_noticed(self, made: Path) -> None:
        good = made.read_bytes()
        for size in [0, 1, 511, 512, *range(600, len(good), 333), len(good) - 512, len(good) - 1]:
            made.write_bytes(good[:size])
            assert is_refused(made), f"nobody noticed the cut after {size} bytes"

    def test_another_file_in_it_is_noticed(self, made: Path) -> None:
        with tarfile.open(made, "a") as tar:
            tar.addfile(tarfile.TarInfo("checkout/more"), io.BytesIO(b""))
        with Parts(made) as parts, pytest.raises(IntegrityError, match="what its manifest lists"):
            open_bundle(made, parts)

    def test_what_follows_the_end_is_noticed(self, made: Path) -> None:
        with made.open("ab") as stream:
            stream.write(b"\0" * 512)
        assert is_refused(made)

    def test_a_signature_over_another_bundle_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        private, public = key_pair(tmp_path / "key")
        sealed = dsse.seal(PAYLOAD_TYPE, manifest_of([]).data(), load_signer(private))
        monkeypatch.setattr(dsse, "seal", lambda kind, data, signer: sealed)
        made = small_bundle(tmp_path, signer=load_signer(private))
        with Parts(made) as parts, pytest.raises(IntegrityError, match="over another bundle"):
            open_bundle(made, parts, [load_public(public)])

    def test_a_damaged_part_is_named(self, tmp_path: Path) -> None:
        made = small_bundle(tmp_path, limit=1000)
        part = tmp_path / "bundle.tar.003"
        data = bytearray(part.read_bytes())
        data[100] ^= 1
        part.write_bytes(data)
        with Parts(made) as parts, pytest.raises(IntegrityError) as caught:
            open_bundle(made, parts)
        assert "damaged: bundle.tar.003" in caught.value.got

    def test_only_the_key_that_signed_it_opens_a_signed_one(self, tmp_path: Path) -> None:
        mine, other = key_pair(tmp_path / "mine"), key_pair(tmp_path / "other")
        made = small_bundle(tmp_path, signer=load_signer(mine[0]))
        with Parts(made) as parts:
            assert open_bundle(made, parts, [load_public(mine[1])]).signed_by
            assert open_bundle(made, parts).signed_by == ""
            with pytest.raises(IntegrityError):
                open_bundle(made, parts, [load_public(other[1])])

    @pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../x", "a//b", "", "a/.", "bundle.json"])
    def test_no_path_leaves_the_folder(self, path: str) -> None:
        good = manifest_of([Member(path="a", sha256="0" * 64, size=0)])
        data = good.data().replace(b'"path": "a"', f'"path": "{path}"'.encode())
        with pytest.raises(IntegrityError, match="no bundle"):
            parse_manifest(data, "b")

    def test_a_bundle_of_another_schema_says_whose_it_is(self) -> None:
        data = manifest_of([]).data().replace(b'"schema": 1', b'"schema": 2')
        with pytest.raises(UsageError, match="schema 2"):
            parse_manifest(data, "b")

    def test_a_file_that_changes_meanwhile_leaves_nothing(self, tmp_path: Path) -> None:
        source = tmp_path / "x"
        source.write_bytes(b"1234")
        file = packed(source, "x")
        source.write_bytes(b"12345")
        with pytest.raises(IntegrityError, match="changed while"):
            write_bundle(manifest_of([file.member]), [file], tmp_path / "b.tar")
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_no_room_ends_before_anything_is_written(self, tmp_path: Path) -> None:
        huge = packed(ROOT / "LICENSE", "x")
        huge = replace(huge, member=huge.member.model_copy(update={"size": 10**18}))
        with pytest.raises(HostError, match="not enough disk space"):
            write_bundle(manifest_of([huge.member]), [huge], tmp_path / "b.tar")
        assert not list(tmp_path.iterdir())


class TestWheelhouse:
    """Files of a plan, from one store into another."""

    def test_every_file_arrives_by_hash_and_under_its_name(self, tmp_path: Path) -> None:
        plan, store = few_files(tmp_path)
        report = bundle_of(plan, store, tmp_path / "b.tar")
        assert report.members > 400  # the checkout is in it
        there = Store(tmp_path / "there")
        with Parts(tmp_path / "b.tar") as parts:
            bundle = open_bundle(tmp_path / "b.tar", parts)
            assert into_store(bundle, there) == 2
            assert into_store(bundle, there) == 0
            assert all(there.verify(file) for file in plan.files)
            lay_out(bundle, tmp_path / "out")
            with pytest.raises(UsageError, match="in use"):
                lay_out(bundle, tmp_path / "out")
        out = tmp_path / "out"
        assert {p.name for p in (out / "wheelhouse").iterdir()} == {f.name for f in plan.files}
        assert (out / "checkout/tasks.py").read_bytes() == (ROOT / "tasks.py").read_bytes()
        assert os.access(out / "checkout/scripts/bootstrap.sh", os.X_OK)
        assert not (out / "checkout/.git").exists()

    def test_what_no_lock_names_travels_too(self, tmp_path: Path, make_wheel: MakeWheel) -> None:
        fork = make_wheel(
            tmp_path, "triton_dist", "3.4.0", FORK_FILES, tag=TAG, entry_points=FORK_BACKENDS
        )
        few, store = few_files(tmp_path)
        request = Request(torch="none", archs=("sm_80",))
        plan = Workspace(ROOT, store).plan(request, ForkSource(str(fork)))
        stack = replace(few.stack, flavour="distributed", fork=plan.stack.fork)
        bundle_of(replace(plan, stack=stack), store, tmp_path / "b.tar")
        fork.unlink()
        there = Workspace(ROOT, Store(tmp_path / "there"))
        with Parts(tmp_path / "b.tar") as parts:
            bundle = open_bundle(tmp_path / "b.tar", parts)
            assert plan_of_bundle(there, bundle).final.key == plan.final.key
        assert not list(there.store.work().iterdir())

    def test_a_rotten_file_of_the_store_does_not_get_in(self, tmp_path: Path) -> None:
        plan, store = few_files(tmp_path)
        store.path(plan.files[0]).write_bytes(b"rotten")
        with pytest.raises(TdstackError):
            bundle_of(plan, store, tmp_path / "b.tar")
        assert not (tmp_path / "b.tar").exists()
        assert not list(store.work().iterdir())


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with buildah_host(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.mark.engine
class TestImages:
    """Images out of one engine into another, over nothing but a file."""

    def test_the_whole_way_without_a_network(
        self, host: Host, tmp_path: Path, plain_registry: RunningRegistry
    ) -> None:
        plan = tiny_plan()
        images = load_tiny(plan, host.engine, host.folder)
        names = {layer.ref for layer in plan.layers} | set(plan.final.tags)
        private, public = key_pair(tmp_path / "key")
        _, foreign = key_pair(tmp_path / "foreign")
        out = tmp_path / "b.tar"
        options = ["--no-tools", "--split", "2M", "--sign", str(private)]
        made = host.invoke("bundle", *OPTIONS, *options, "--out", str(out), "--json")
        assert made.code == 0, made.err
        files = made.report["files"]
        assert isinstance(files, list)
        assert len(files) > 1
        assert not list((host.cache / "work").iterdir())
        again = host.invoke("bundle", *OPTIONS, *options, "--out", str(tmp_path / "c.tar"))
        assert again.code == 0, again.err
        assert lines(tmp_path / "b.tar.sha256") == lines(tmp_path / "c.tar.sha256")

        host.wipe()
        unpack = ["bundle", "--unpack", str(out)]
        refused = host.invoke(*unpack, "--load", "--key", str(foreign))
        assert refused.code == 4, refused.err
        assert host.names() == set()
        loaded = offline(host, *unpack, "--load", "--key", str(public), "--json")
        assert loaded.code == 0, loaded.err
        pulled = loaded.report["pull"]
        assert isinstance(pulled, dict)
        assert (pulled["image_id"], pulled["checks"]) == (images["kernels"].id, 1)
        assert host.names() == names
        assert not list((host.cache / "work").iterdir())
        ran = host.engine.run(RunRequest(plan.final.ref, [f"/{PREFIX}/bin/tdstack-verify"]))
        assert (ran.status, "tiny" in ran.stdout) == (0, True)

        # Into a registry, with signatures and all: whoever pulls from it can check them.
        at = f"{plain_registry.host}/unpacked/tdstack"
        sent = host.invoke(*unpack, "--registry", at, "--json")
        assert sent.code == 0, sent.err
        twice = host.invoke(*unpack, "--registry", at, "--json")
        assert (twice.code, twice.report["sent"]) == (0, 0), twice.err
        assert attachments(f"{at}:{plan.final.tags[1].rpartition(':')[2]}") == {
            "application/vnd.cyclonedx+json",
            "application/vnd.dsse.envelope.v1+json",
            "application/vnd.dev.cosign.artifact.sig.v1+json",
        }
        host.wipe()
        keyed = ["--registry", at, "--key", str(public)]
        assert host.invoke("pull", *OPTIONS, *keyed).code == 0
        assert host.names() == names
        # And out of that registry into a bundle again, which nobody signed: its images are.
        second = tmp_path / "second.tar"
        copied = host.invoke("bundle", *OPTIONS, *keyed, "--no-tools", "--out", str(second))
        assert copied.code == 0, copied.err
        host.wipe()
        reloaded = host.invoke("bundle", "--unpack", str(second), "--load", "--key", str(public))
        assert reloaded.code == 0, reloaded.err
        assert "the bundle itself is not signed" in reloaded.err
        assert host.names() == names

    def test_what_is_damaged_or_another_is_refused_and_nothing_stays(
        self, host: Host, tmp_path: Path
    ) -> None:
        host.wipe()
        plan = tiny_plan()
        load_tiny(plan, host.engine, host.folder)
        out = tmp_path / "b.tar"
        made = host.invoke("bundle", *OPTIONS, "--no-tools", "--out", str(out))
        assert made.code == 0, made.err
        host.wipe()

        def damaged(change: Callable[[bytearray], object]) -> str:
            data = bytearray(out.read_bytes())
            change(data)
            (tmp_path / "bad.tar").write_bytes(data)
            return str(tmp_path / "bad.tar")

        def flip(data: bytearray) -> None:
            data[-5000] ^= 1

        _, public = key_pair(tmp_path / "key")
        for path, options in (
            (damaged(flip), []),
            (damaged(lambda data: data.__delitem__(slice(-3000, None))), []),
            (str(out), ["--key", str(public)]),  # nobody signed it
        ):
            ended = host.invoke("bundle", "--unpack", path, "--load", *options)
            assert ended.code == 4, ended.err
            assert host.names() == set()
            assert not list((host.cache / "work").iterdir())
            assert not list((host.cache / "blobs").iterdir())
        missing = host.invoke("bundle", "--unpack", str(tmp_path / "none.tar"), "--load")
        assert missing.code == 2
        laid = host.invoke("bundle", "--unpack", str(out), "--into", str(tmp_path / "laid"))
        assert laid.code == 0, laid.err
        assert (tmp_path / "laid/images/oci-layout").is_file()
        # The checkout of the bundle makes its image; one whose recipe moved does not.
        checkout = tmp_path / "laid/checkout"
        recipe = checkout / "images/kernels/recipe.toml"
        recipe.write_text(recipe.read_text() + "# moved\n")
        other = host.invoke("bundle", "--unpack", str(out), "--load", root=checkout)
        assert other.code == 4, other.err
        assert "another image than the bundle holds" in other.err
        assert host.names() == set()

    def test_a_disk_that_fills_leaves_nothing(self, host: Host, tmp_path: Path) -> None:
        host.wipe()
        load_tiny(tiny_plan(), host.engine, host.folder)
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
        try:
            ended = host.invoke("bundle", *OPTIONS, "--no-tools", "--out", str(small / "b.tar"))
            assert ended.code == 3, ended.err
            assert "not enough disk space" in ended.err
            assert not list(small.iterdir())
        finally:
            subprocess.run(["umount", str(small)], check=True)
        assert not list((host.cache / "work").iterdir())


def test_a_shelf_answers_every_question_that_a_registry_does() -> None:
    asked = {n for n, value in vars(Registry).items() if n[0] != "_" and callable(value)}
    assert asked - set(vars(Shelf)) == {"get_blob"}  # which asks open_blob


def attachments(text: str) -> set[str]:
    reference = parse_reference(text)
    registry = registry_of(reference.repository)
    image, _ = resolve(registry, reference, "linux/amd64")
    return {d.artifact_type for d in registry.referrers(reference.repository, image.digest)}


def offline(host: Host, *arguments: str) -> Ended:
    """Run a verb in a network namespace that has its own loopback and nothing else."""
    command = ["unshare", "--net", sys.executable, str(ROOT / "tdstack/engines/loopback.py")]
    done = subprocess.run(
        [*command, *host.command(*arguments)],
        cwd=ROOT,
        env={**os.environ, **host.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def is_refused(path: Path) -> bool:
    with Parts(path) as parts:
        try:
            open_bundle(path, parts)
        except IntegrityError:
            return True
        return False


def lines(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text().splitlines()]


def small_bundle(folder: Path, *, limit: int = 0, signer: Signer | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    files = []
    for path, data in (
        ("checkout/a", b"a"), ("checkout/b", b"b" * 700), ("checkout/scripts/go.sh", b"#!\n"),
    ):  # fmt: skip
        source = folder / path.replace("/", "-")
        source.write_bytes(data)
        files.append(packed(source, path, executable=path.endswith(".sh"), temporary=True))
    manifest = manifest_of([file.member for file in files])
    write_bundle(manifest, files, folder / "bundle.tar", limit=limit, signer=signer)
    return folder / "bundle.tar"


def manifest_of(members: list[Member]) -> BundleManifest:
    asked = {"cuda": "12.4", "triton": "stock", "torch": "none", "platform": "linux/amd64"}
    asked |= {"python": "3.11", "base": "rootfs"}
    return BundleManifest.model_validate(
        {
            "schema": 1,
            "contents": "images",
            "asked": {**asked, "archs": ["sm_90"]},
            "key": "0" * 64,
            "tag": "cu124",
            "lock": "0" * 64,
            "tools_python": "",
            "members": members,
        }
    )


def few_files(folder: Path) -> tuple[Plan, Store]:
    """A plan that needs two small files, and a store that has them."""
    store, plan = Store(folder / "store"), tiny_plan()
    packages = []
    for name in ("one", "two"):
        source = folder / f"{name}-1-py3-none-any.whl"
        source.write_bytes(name.encode() * 100)
        file = file_of(source)
        store.admit(source, file, origin="a test", move=False)
        packages.append(Package(name, "1", file, "index"))
    stack = replace(plan.stack, packages={"base": tuple(packages)}, rootfs=None)
    return replace(plan, stack=stack), store


def bundle_of(plan: Plan, store: Store, out: Path) -> BundleReport:
    options = MakeOptions("wheelhouse", out, tools=False)
    return make_bundle(Workspace(ROOT, store), plan, None, options, lambda text: None)


def key_pair(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    key = Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public
