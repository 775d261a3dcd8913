"""What may go wrong between a registry and an engine: the right exit code, and no half state."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tdstack.assemble.image import Image
from tdstack.console import Stopwatch
from tdstack.engines.base import Engine
from tdstack.errors import (
    ExitCode,
    HostError,
    IntegrityError,
    TdstackError,
)
from tdstack.fork.model import ANYWHERE
from tdstack.plan import LABEL, Plan, slice_of
from tdstack.registry.client import Registry
from tdstack.registry.oci import ImageManifest, Index
from tdstack.registry.reference import Reference, Repository, parse_repository
from tdstack.ship import verbs
from tdstack.ship.cache import LayerCache
from tdstack.ship.names import full_tag, rolling_tags
from tdstack.ship.pull import PullReport
from tdstack.ship.records import Records
from tdstack.ship.resolve import resolve
from tdstack.ship.target import PushReport
from tdstack.stack import Request
from tdstack.verbs import plan as plan_verb
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.registries import RunningRegistry, flaky_proxy, running_registry
from tests.shipped import OPTIONS, ROOT, Host, Tiny, buildah_host, load_tiny, tiny_plan

pytestmark = pytest.mark.engine
REQUEST = Request(cuda="12.4", triton="stock", torch="none", archs=("sm_80",))
PATH = "team/tdstack"


@dataclass(frozen=True)
class Shipped:
    """A machine without images, and a registry that has those of the plan, signed."""

    host: Host
    running: RunningRegistry
    plan: Plan
    images: dict[str, Image]
    key: Path

    @property
    def at(self) -> str:
        return f"{self.running.host}/{PATH}"

    @property
    def repository(self) -> Repository:
        return parse_repository(self.at)

    @property
    def registry(self) -> Registry:
        return Registry(self.running.host)

    @property
    def store(self) -> Store:
        return Store(self.host.cache)

    def manifest(self) -> ImageManifest:
        reference = Reference(self.repository, full_tag(self.plan))
        return resolve(self.registry, reference, "linux/amd64")[1]

    def pull(self, at: str = "", key: str = "", force: bool = False) -> PullReport:
        return verbs.pull(
            Workspace(ROOT, self.store),
            REQUEST,
            ANYWHERE,
            "buildah",
            registry=at or self.at,
            key=key,
            force=force,
            as_json=False,
        )

    def push(self, at: str = "", **options: object) -> PushReport:
        return verbs.push(
            Workspace(ROOT, self.store),
            REQUEST,
            ANYWHERE,
            "buildah",
            verbs.PushOptions(at or self.at, **options),  # type: ignore[arg-type]
            as_json=False,
        )

    def refuses(self, code: ExitCode, *words: str, **options: object) -> TdstackError:
        """Pull in vain: with this exit code and these words, and nothing left in the engine."""
        before = self.host.names()
        with pytest.raises(TdstackError) as caught:
            self.pull(**options)  # type: ignore[arg-type]
        assert caught.value.code == code, str(caught.value)
        for word in words:
            assert word in str(caught.value)
        assert self.host.names() == before
        assert not list(self.store.work().iterdir())
        return caught.value


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipped]:
    folder = tmp_path_factory.mktemp("shipped")
    with (
        running_registry(folder / "registry", deletion=True) as running,
        buildah_host(folder) as host,
    ):
        key = folder / "key.pem"
        make_key(key)
        plan = tiny_plan()
        shipped = Shipped(host, running, plan, load_tiny(plan, host.engine, folder), key)
        shipped.push(sign=str(key))
        yield shipped


@pytest.fixture
def shipped(ready: Shipped) -> Shipped:
    ready.host.wipe()
    return ready


def make_key(path: Path) -> None:
    """Write an ed25519 key and, as .pub beside it, its public half."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(private)
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(public)


@contextmanager
def flipped(path: Path, at: int = -100) -> Iterator[None]:
    """Turn one bit in the middle of a file."""
    data = path.read_bytes()
    other = bytearray(data)
    other[at] ^= 1
    path.write_bytes(other)
    try:
        yield
    finally:
        path.write_bytes(data)


@contextmanager
def tag_moved(shipped: Shipped, tag: str, manifest: ImageManifest) -> Iterator[None]:
    """Make a tag of the final image mean another manifest, which the repository has."""
    before = shipped.registry.document(shipped.repository, tag)
    assert before is not None
    shipped.registry.put_document(shipped.repository, tag, manifest.document())
    try:
        yield
    finally:
        shipped.registry.put_document(shipped.repository, tag, before)


def other_image(shipped: Shipped, tmp_path: Path, tiny: Tiny, cuda: str = "12.4") -> ImageManifest:
    """Push what `tiny` makes of a plan to another repository and mount it; return its manifest."""
    plan = tiny_plan(cuda)
    load_tiny(plan, shipped.host.engine, tmp_path, tiny)
    at = f"{shipped.running.host}/other/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]}"
    verbs.push(
        Workspace(ROOT, shipped.store),
        Request(cuda=cuda, triton="stock", torch="none", archs=("sm_80",)),
        ANYWHERE,
        "buildah",
        verbs.PushOptions(at),
        as_json=False,
    )
    shipped.host.wipe()
    home = parse_repository(at)
    manifest = resolve(shipped.registry, Reference(home, full_tag(plan)), "linux/amd64")[1]
    for blob in (manifest.config, *manifest.layers):
        assert shipped.registry.mount_blob(shipped.repository, blob, home)
    return manifest


def test_a_signed_image_is_pulled_by_key_and_gets_the_names_of_a_build(shipped: Shipped) -> None:
    report = shipped.pull(key=str(shipped.key.with_suffix(".pub")))
    assert report.source == "registry"
    assert report.image_id == shipped.images["kernels"].id
    assert report.checks == 1
    assert len(report.signed_by) > 20
    assert report.fetched == sum(layer.size for layer in shipped.manifest().layers)
    names = {layer.ref for layer in shipped.plan.layers} | set(shipped.plan.final.tags)
    assert shipped.host.names() == names
    for layer in shipped.plan.layers:
        stored = shipped.host.engine.image(layer.ref)
        assert stored
        assert stored.id == shipped.images[layer.name].id
    # Nothing that was fetched stays in the store.
    assert not list((shipped.store.root / "blobs").iterdir())
    assert not list((shipped.store.root / "partial").iterdir())
    again = shipped.pull()
    assert (again.source, again.fetched, again.checks) == ("local", 0, 0)


def test_a_flipped_bit_in_a_blob_ends_with_4(shipped: Shipped) -> None:
    for layer in (shipped.manifest().layers[0], shipped.manifest().layers[-1]):
        with flipped(shipped.running.blob(layer.digest)):
            shipped.refuses(ExitCode.INTEGRITY, layer.digest, force=True)
        shipped.host.wipe()  # what was whole is kept for the next pull
    assert shipped.pull().source == "registry"


def test_a_flipped_bit_in_the_configuration_or_a_manifest_ends_with_4(shipped: Shipped) -> None:
    manifest = shipped.manifest()
    for digest in (manifest.config.digest, manifest.document().digest):
        with flipped(shipped.running.blob(digest)):
            shipped.refuses(ExitCode.INTEGRITY, force=True)


def test_a_tag_that_was_moved_to_another_keys_image_ends_with_4(
    shipped: Shipped, tmp_path: Path
) -> None:
    other = other_image(shipped, tmp_path, Tiny(), "12.8")
    with tag_moved(shipped, full_tag(shipped.plan), other):
        error = shipped.refuses(ExitCode.INTEGRITY, "not what the lock says")
        assert shipped.plan.final.key in error.expected
        assert tiny_plan("12.8").final.key in error.got
        forced = shipped.pull(force=True)
    # Loud, and never under the names that mean the plan's own key.
    assert forced.mismatches
    names = shipped.host.names()
    assert shipped.plan.final.ref not in names
    assert shipped.plan.final.tags[0] not in names
    assert {tiny_plan("12.8").final.ref, shipped.plan.final.tags[1]} <= names


def test_an_image_whose_layers_hold_another_slice_ends_with_4(
    shipped: Shipped, tmp_path: Path
) -> None:
    # Its labels say that it is the plan's; what it holds was built from another lock.
    altered = json.loads(json.dumps(slice_of(shipped.plan.stack))) | {"ptxas": "another"}
    plan = shipped.plan
    images = load_tiny(plan, shipped.host.engine, tmp_path, Tiny(slice_=altered))
    assert images["kernels"].labels[f"{LABEL}.lock-slice"] == plan.lock_slice
    home = parse_repository(f"{shipped.running.host}/other/slice")
    send_layers(shipped, home, images, tmp_path)
    shipped.host.wipe()
    error = shipped.refuses(ExitCode.INTEGRITY, "another slice", at=str(home))
    assert error.got == "differs in ptxas"
    assert shipped.pull(at=str(home), force=True).mismatches


def send_layers(shipped: Shipped, home: Repository, images: dict[str, Image], folder: Path) -> None:
    """Push without the project's own checks, as somebody else would."""
    from tdstack.assemble.image import CONFIG_TYPE
    from tdstack.registry.oci import Descriptor
    from tdstack.ship.compress import MEDIA_TYPES
    from tdstack.ship.index import index_of

    places: dict[str, Reference] = {layer.name: Reference(home.child(layer.name), layer.key[:20])
              for layer in shipped.plan.layers}  # fmt: skip
    for name, image in images.items():
        for at, final in ((places[name], False), (Reference(home, full_tag(shipped.plan)), True)):
            if final and name != "kernels":
                continue
            blobs = []
            for step in image.steps:
                data = (folder / "layout/blobs/sha256" / step.blob.sha256).read_bytes()
                blobs.append(Descriptor.of(data, MEDIA_TYPES["none"]))
                shipped.registry.put_blob(at.repository, data, blobs[-1])
            config = Descriptor.of(image.config(), CONFIG_TYPE)
            shipped.registry.put_blob(at.repository, image.config(), config)
            document = ImageManifest(config, tuple(blobs)).document()
            shipped.registry.put_document(at.repository, document.digest, document)
            if final:
                document = index_of(document.descriptor(), "linux/amd64").document()
            shipped.registry.put_document(at.repository, at.tag, document)


def test_a_lock_that_differs_ends_with_5_and_names_what_there_is(shipped: Shipped) -> None:
    # The registry was filled from another lock: other keys, so other tags.
    tags = shipped.registry.tags(shipped.repository)
    own = full_tag(shipped.plan)
    other = f"{own[:-12]}{'0' * 12}"
    index = shipped.registry.document(shipped.repository, own)
    assert index
    assert own in tags
    shipped.registry.put_document(shipped.repository, other, index)
    shipped.registry.delete(shipped.repository, index.digest)
    try:
        shipped.registry.put_document(shipped.repository, other, index)
        error = shipped.refuses(ExitCode.UPSTREAM, "no image of this lock", other)
        assert "invoke build --registry" in error.remedy
        assert own in error.where
    finally:
        for tag in (own, *rolling_tags(shipped.plan)):
            shipped.registry.put_document(shipped.repository, tag, index)


def test_a_stripped_or_foreign_signature_ends_with_4(shipped: Shipped, tmp_path: Path) -> None:
    public = str(shipped.key.with_suffix(".pub"))
    make_key(tmp_path / "foreign.pem")
    shipped.refuses(ExitCode.INTEGRITY, key=str(tmp_path / "foreign.pub"))
    digest = shipped.manifest().document().digest
    tag = digest.replace(":", "-")
    held = {t: shipped.registry.document(shipped.repository, t) for t in (f"{tag}.sig", tag)}
    try:
        for document in held.values():
            assert document
            shipped.registry.delete(shipped.repository, document.digest)
        shipped.refuses(ExitCode.INTEGRITY, "sign", key=public, force=True)
        assert shipped.pull().source == "registry"  # nobody asked for a signature
    finally:
        for name, document in held.items():
            assert document
            shipped.registry.put_document(shipped.repository, name, document)
    shipped.host.wipe()
    assert shipped.pull(key=public).signed_by


def test_every_third_connection_dropped_ends_in_success(shipped: Shipped) -> None:
    with flaky_proxy(shipped.running.host) as proxy:
        # A connection that ends after so little makes many of them.
        proxy.drop_every, proxy.cut_after = 3, lambda: 250_000
        assert shipped.pull(at=f"{proxy.host}/{PATH}").source == "registry"
        load_tiny(shipped.plan, shipped.host.engine, shipped.host.folder)
        shipped.push(at=f"{proxy.host}/flaky/tdstack")
        assert proxy.dropped >= 2
    assert shipped.registry.tags(parse_repository(f"{shipped.running.host}/flaky/tdstack"))


def test_what_an_earlier_pull_fetched_is_not_fetched_again(shipped: Shipped) -> None:
    first, second = shipped.manifest().layers[:2]
    whole = shipped.running.blob(first.digest).read_bytes()
    half = shipped.running.blob(second.digest).read_bytes()[:10_000]
    (shipped.store.root / "blobs" / first.sha256).write_bytes(whole)
    (shipped.store.root / "partial" / second.sha256).write_bytes(half)
    total = sum(layer.size for layer in shipped.manifest().layers)
    assert shipped.pull().fetched == total - first.size - 10_000


def test_rotten_bytes_of_an_earlier_pull_are_fetched_again(shipped: Shipped) -> None:
    blob = shipped.manifest().layers[0]
    (shipped.store.root / "partial" / blob.sha256).write_bytes(b"\0" * 10_000)
    assert shipped.pull().source == "registry"


def test_an_image_that_does_not_verify_leaves_no_names(shipped: Shipped, tmp_path: Path) -> None:
    plan = shipped.plan
    images = load_tiny(plan, shipped.host.engine, tmp_path, Tiny(status=4))
    home = parse_repository(f"{shipped.running.host}/other/unfit")
    send_layers(shipped, home, images, tmp_path)
    shipped.host.wipe()
    shipped.refuses(ExitCode.INTEGRITY, "does not hold what its lock slice says", at=str(home))
    at = ["--registry", str(home), "--cluster", str(tmp_path / "cluster.env")]
    assert shipped.host.invoke("pull", *OPTIONS, *at).code == ExitCode.INTEGRITY
    assert not (tmp_path / "cluster.env").exists()
    assert shipped.host.invoke("pull", *OPTIONS, *at, "--force").code == ExitCode.USAGE
    assert shipped.host.invoke("push", *OPTIONS, *at, "--prune").code == ExitCode.USAGE


def test_a_full_disk_ends_with_3_and_the_next_pull_succeeds(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        shipped = Shipped(
            Host(
                shipped.host.engine,
                {**shipped.host.environment, "TDSTACK_CACHE": str(small)},
                shipped.host.folder,
            ),
            shipped.running,
            shipped.plan,
            shipped.images,
            shipped.key,
        )
        error = shipped.refuses(ExitCode.HOST, "disk space")
        assert "it resumes" in error.remedy
        # Others may fill the disk while a pull is under way.
        monkeypatch.setattr("tdstack.ship.take.check_room", lambda *_: None)
        before = shipped.host.names()
        with pytest.raises(OSError, match="No space left"):
            shipped.pull()
        assert shipped.host.names() == before
        assert not list(shipped.store.work().iterdir())
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        assert shipped.pull().source == "registry"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unreachable_registry_ends_a_pull_and_not_a_plan(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "127.0.0.1:9/team/tdstack"
    monkeypatch.setattr("tdstack.retry.FIRST_WAIT_S", 0.01)
    shipped.refuses(ExitCode.UPSTREAM, "cannot be reached", at=gone)
    workspace = Workspace(ROOT, shipped.store)
    capsys.readouterr()
    plan_verb(workspace, REQUEST, source=ANYWHERE, engine="buildah", as_json=True, registry=gone)
    shown = capsys.readouterr()
    assert f"warning: no layers from {gone}" in shown.err
    assert {layer["from"] for layer in json.loads(shown.out)["layers"]} == {"build"}
    # A build asks in the same way, and then builds.
    cache = LayerCache.of(gone, "", "linux/amd64")
    assert cache
    assert cache.take(shipped.plan, shipped.host.engine, shipped.store, 0, Stopwatch()) == 0


def test_a_plan_says_what_comes_from_where_and_a_build_takes_it(shipped: Shipped) -> None:
    at = ["--registry", shipped.at, "--json"]
    layers = shipped.host.invoke("plan", *OPTIONS, *at).report["layers"]
    assert isinstance(layers, list)
    assert {layer["from"] for layer in layers} == {"registry"}
    built = shipped.host.invoke("build", *OPTIONS, *at)
    assert built.code == 0, built.err
    layers = built.report["layers"]
    assert isinstance(layers, list)
    assert {layer["source"] for layer in layers} == {"registry"}
    assert built.report["image_id"] == shipped.images["kernels"].id
    assert not list((shipped.store.root / "blobs").iterdir())  # no wheel was fetched
    layers = shipped.host.invoke("plan", *OPTIONS, *at).report["layers"]
    assert isinstance(layers, list)
    assert {layer["from"] for layer in layers} == {"local"}


def test_a_layer_with_a_false_key_ends_a_build_with_4(shipped: Shipped, tmp_path: Path) -> None:
    lower = shipped.plan.layers[-2]
    repository = shipped.repository.child(shipped.plan.final.name)
    document = shipped.registry.document(shipped.repository.child(lower.name), lower.key[:20])
    own = shipped.registry.document(repository, shipped.plan.final.key[:20])
    assert document
    assert own
    for blob in (ImageManifest.parse(document.data).config,):
        shipped.registry.mount_blob(repository, blob, shipped.repository.child(lower.name))
    shipped.registry.put_document(repository, shipped.plan.final.key[:20], document)
    try:
        built = shipped.host.invoke("build", *OPTIONS, "--registry", shipped.at)
        assert built.code == ExitCode.INTEGRITY, built.err
        assert "not what the lock says" in built.err
        assert shipped.host.names() == set()
    finally:
        shipped.registry.put_document(repository, shipped.plan.final.key[:20], own)


def test_a_push_sends_nothing_twice_and_exports_nothing_that_is_there(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_tiny(shipped.plan, shipped.host.engine, tmp_path)

    def no_export(*_: object) -> None:
        raise AssertionError("exported")

    monkeypatch.setattr("tdstack.engines.buildah.Buildah.export", no_export)
    report = shipped.push(sign=str(shipped.key))
    assert report.sent == 0
    assert set(report.layers.values()) == {"present"}
    # The same blobs in another repository of the host cannot be known to be there.
    with pytest.raises(AssertionError, match="exported"):
        shipped.push(at=f"{shipped.running.host}/elsewhere/tdstack")


def test_a_small_new_layer_alone_is_read_out_of_the_engine(
    shipped: Shipped, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_tiny(shipped.plan, shipped.host.engine, tmp_path)
    layers = shipped.images["kernels"].steps
    new = layers[3].blob
    at = f"{shipped.running.host}/partly/tdstack"
    # What a first push had sent of them, before it was cut off.
    records, sent = Records(shipped.store), shipped.manifest()
    for step, blob in zip(layers, sent.layers, strict=True):
        if step.blob != new:
            records.put(step.blob.digest, "zstd", blob)
            for name in shipped.images:
                home = parse_repository(at).child(name)
                shipped.registry.mount_blob(home, blob, shipped.repository)
    skipped: list[frozenset[str]] = []
    export = type(shipped.host.engine).export

    def watched(self: Engine, ref: str, layout: Path, skip: frozenset[str]) -> Image:
        skipped.append(skip)
        return export(self, ref, layout, skip)

    monkeypatch.setattr("tdstack.engines.buildah.Buildah.export", watched)
    report = shipped.push(at=at)
    assert skipped == [frozenset(s.blob.digest for s in layers[:3])]
    assert report.sent == sent.layers[3].size
    shipped.host.wipe()
    assert shipped.pull(at=at).image_id == shipped.images["kernels"].id


def test_another_image_under_a_key_is_refused_and_forced(shipped: Shipped, tmp_path: Path) -> None:
    at = f"{shipped.running.host}/replaced/tdstack"
    load_tiny(shipped.plan, shipped.host.engine, tmp_path / "1")
    shipped.push(at=at)
    shipped.host.wipe()
    load_tiny(shipped.plan, shipped.host.engine, tmp_path / "2", Tiny(seed=2))
    with pytest.raises(IntegrityError, match="another image under this layer's key"):
        shipped.push(at=at)
    report = shipped.push(at=at, force=True)
    shipped.host.wipe()
    assert shipped.pull(at=at).image_id == report.image_id != shipped.images["kernels"].id


def test_gzip_for_old_clients_replaces_what_is_there(shipped: Shipped, tmp_path: Path) -> None:
    at = f"{shipped.running.host}/old/tdstack"
    load_tiny(shipped.plan, shipped.host.engine, tmp_path)
    first = shipped.push(at=at)
    second = shipped.push(at=at, compression="gzip")
    assert first.image_id == second.image_id
    reference = Reference(parse_repository(at), full_tag(shipped.plan))
    manifest = resolve(shipped.registry, reference, "linux/amd64")[1]
    assert {layer.media_type.rpartition("+")[2] for layer in manifest.layers} == {"gzip"}
    # A second push without the option leaves it so.
    assert shipped.push(at=at).sent == 0
    shipped.host.wipe()
    assert shipped.pull(at=at).image_id == first.image_id


def test_a_host_without_the_image_cannot_push_it(shipped: Shipped) -> None:
    with pytest.raises(HostError, match="not in the engine"):
        shipped.push()


def test_no_registry_named_exits_2(shipped: Shipped) -> None:
    for verb in (["push"], ["pull"], ["push", "--prune"]):
        ended = shipped.host.invoke(*verb, *(OPTIONS if len(verb) == 1 else []))
        assert ended.code == ExitCode.USAGE
        assert "TDSTACK_REGISTRY" in ended.err


def test_tags_are_indexes_and_other_platforms_stay(shipped: Shipped, tmp_path: Path) -> None:
    from tdstack.registry.oci import Descriptor

    rolling = rolling_tags(shipped.plan)[0]
    document = shipped.registry.document(shipped.repository, rolling)
    assert document
    index = Index.parse(document.data)
    assert [entry.platform for entry in index.manifests] == ["linux/amd64"]
    foreign = Descriptor(
        index.manifests[0].media_type,
        index.manifests[0].digest,
        index.manifests[0].size,
        platform="linux/arm64",
    )
    both = Index((index.manifests[0], foreign))
    shipped.registry.put_document(shipped.repository, rolling, both.document())
    load_tiny(shipped.plan, shipped.host.engine, tmp_path)
    shipped.push()
    document = shipped.registry.document(shipped.repository, rolling)
    assert document
    platforms = [entry.platform for entry in Index.parse(document.data).manifests]
    assert platforms == ["linux/amd64", "linux/arm64"]
    full = shipped.registry.document(shipped.repository, full_tag(shipped.plan))
    assert full
    assert len(Index.parse(full.data).manifests) == 1
