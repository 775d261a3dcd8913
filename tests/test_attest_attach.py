"""Attachments in real registries: put once, found again, and every lie about them found out."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tdstack.assemble.image import CONFIG_TYPE
from tdstack.attest import dsse, provenance, sbom, signature
from tdstack.attest.artifacts import Attachment, put_attachment
from tdstack.attest.attach import attach
from tdstack.attest.check import check_signature, check_statement, read_provenance, read_sbom
from tdstack.attest.contents import contents_of, planned_contents
from tdstack.attest.keys import Signer
from tdstack.attest.layerfiles import read_inside
from tdstack.attest.provenance import BuildFacts, parse_statement, render_statement
from tdstack.attest.signatures import put_signature, signatures_of
from tdstack.errors import CheckFailed, IntegrityError, UpstreamError, UsageError
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, Document, ImageManifest, Index
from tdstack.registry.reference import Repository
from tdstack.registry.referrers import fallback_tag
from tests.attested import ROOT, Pushed, planned, signer_of
from tests.referrers_registry import ReferrersRegistry, referrers_registry
from tests.registries import RunningRegistry, plain_registry  # noqa: F401

ONE, TWO = signer_of(1), signer_of(2)
_NUMBERS = count()


@pytest.fixture(scope="session")
def with_api() -> Iterator[ReferrersRegistry]:
    """A registry with the referrers API, shared: use repositories of your own."""
    with referrers_registry() as held:
        yield held


@pytest.fixture(params=["tag", "api"])
def place(request: pytest.FixtureRequest) -> tuple[Registry, Repository]:
    """Return a fresh repository, in a registry without and in one with the referrers API."""
    fixture = "plain_registry" if request.param == "tag" else "with_api"
    host = request.getfixturevalue(fixture).host
    return Registry(host), Repository(host, f"attach/{next(_NUMBERS)}")


@pytest.fixture
def pushed(place: tuple[Registry, Repository]) -> Pushed:
    return Pushed(*place, planned())


@pytest.fixture
def tagged(plain_registry: RunningRegistry) -> Pushed:  # noqa: F811
    """Return an image in a registry without the referrers API."""
    host = plain_registry.host
    return Pushed(Registry(host), Repository(host, f"tagged/{next(_NUMBERS)}"), planned())


def attached(pushed: Pushed, signer: Signer | None = ONE, engine: str = "buildah 1") -> list[str]:
    done = attach(
        pushed.registry,
        pushed.repository,
        pushed.image,
        plan=pushed.plan,
        signer=signer,
        engine=engine,
    )
    return [line.partition(" ")[0] for line in done]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What wheels a developer has must not decide the bytes of a bill.
    monkeypatch.setenv("TDSTACK_CACHE", str(tmp_path / "store"))


def signed_by(pushed: Pushed, *signers: Signer) -> str:
    keys = [signer.public for signer in signers]
    return check_signature(pushed.registry, pushed.repository, pushed.image, keys)


def listed(pushed: Pushed, kind: str = "") -> list[Descriptor]:
    return pushed.registry.referrers(pushed.repository, pushed.image.digest, kind)


def test_everything_is_attached_once(pushed: Pushed) -> None:
    assert attached(pushed) == ["sbom", "provenance", "signature"]
    before = {d.digest for d in listed(pushed)}
    assert attached(pushed) == []
    assert attached(pushed, engine="docker 20") == []  # a true statement is there
    assert {d.digest for d in listed(pushed)} == before
    assert sorted(d.artifact_type for d in listed(pushed)) == sorted(
        [dsse.MEDIA_TYPE, sbom.MEDIA_TYPE, signature.ARTIFACT_TYPE]
    )


def test_what_is_attached_is_true(pushed: Pushed) -> None:
    attached(pushed)
    assert signed_by(pushed, ONE) == ONE.public.fingerprint
    where = (pushed.registry, pushed.repository, pushed.image)
    statement, key = read_provenance(*where, [TWO.public, ONE.public])
    assert key == ONE.public.fingerprint
    assert statement.subjects == {pushed.image.digest}
    assert statement.engine == "buildah 1"
    recipes = {f"images/{layer.name}": layer.recipe_digest for layer in pushed.plan.layers}
    assert statement.sources == {"versions.lock": statement.lock, **recipes}
    files = {f.sha256 for f in pushed.plan.files}
    assert files <= set(statement.packages.values())
    bill = json.loads(read_sbom(*where, statement))
    assert bill["metadata"]["component"]["hashes"][0]["content"] == pushed.image.sha256
    inside = read_inside(pushed.registry, pushed.repository, pushed.manifest)
    told = {
        p["name"]: p["value"]
        for c in bill["components"]
        if c["name"] == "gemm-allreduce-cubins-cu124"
        for p in c["properties"]
    }
    assert told["tdstack:manifest-sha256"] == inside.kernels.bundle


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_the_kernels_layer_is_read_in_every_form(
    compression: str, place: tuple[Registry, Repository]
) -> None:
    pushed = Pushed(*place, planned(), compression=compression)  # type: ignore[arg-type]
    inside = read_inside(pushed.registry, pushed.repository, pushed.manifest)
    assert inside.slice.digest == pushed.plan.lock_slice


def test_without_a_key_nothing_is_signed(pushed: Pushed) -> None:
    assert attached(pushed, None) == ["sbom", "provenance"]
    assert attached(pushed, None) == []
    statement, key = read_provenance(pushed.registry, pushed.repository, pushed.image, [])
    assert statement.subjects == {pushed.image.digest}
    assert key == ""
    with pytest.raises(IntegrityError, match="not signed, or its signature was removed"):
        signed_by(pushed, ONE)
    with pytest.raises(IntegrityError, match="provenance is not signed"):
        read_provenance(pushed.registry, pushed.repository, pushed.image, [ONE.public])
    # A key later: what is missing comes to it.
    assert attached(pushed) == ["provenance", "signature"]
    assert signed_by(pushed, ONE)


def test_a_layer_is_signed_alone(pushed: Pushed) -> None:
    where = (pushed.registry, pushed.repository, pushed.image)
    assert attach(*where, plan=None, signer=None) == ()
    assert [w.partition(" ")[0] for w in attach(*where, plan=None, signer=ONE)] == ["signature"]
    assert attach(*where, plan=None, signer=ONE) == ()
    assert [d.artifact_type for d in listed(pushed)] == [signature.ARTIFACT_TYPE]


def test_several_signers_stand_beside_each_other(pushed: Pushed) -> None:
    for signer in (ONE, TWO, ONE):
        attach(pushed.registry, pushed.repository, pushed.image, plan=None, signer=signer)
    assert signed_by(pushed, TWO) == TWO.public.fingerprint
    assert signed_by(pushed, ONE, TWO) == ONE.public.fingerprint
    found = signatures_of(pushed.registry, pushed.repository, pushed.image)
    assert [f.hint for f in found] == [ONE.public.fingerprint, TWO.public.fingerprint]
    # cosign looks at the tag alone.
    at_tag = pushed.registry.document(pushed.repository, signature.tag_of(pushed.image.digest))
    assert at_tag is not None
    assert len(ImageManifest.parse(at_tag.data).layers) == 2
    attached(pushed, TWO)
    where = (pushed.registry, pushed.repository, pushed.image)
    assert read_provenance(*where, [TWO.public])[1] == TWO.public.fingerprint


def test_the_signatures_manifest_is_what_cosign_reads(pushed: Pushed) -> None:
    put_signature(pushed.registry, pushed.repository, pushed.image, ONE)
    tag = f"sha256-{pushed.image.sha256}.sig"
    document = pushed.registry.document(pushed.repository, tag)
    assert document is not None
    manifest = json.loads(document.data)
    (layer,) = manifest["layers"]
    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    signed = base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    blob = Descriptor(layer["mediaType"], layer["digest"], layer["size"])
    payload = pushed.registry.get_blob(pushed.repository, blob)
    assert ONE.public.verifies(signed, payload)
    assert json.loads(payload)["critical"]["identity"]["docker-reference"] == str(pushed.repository)
    assert manifest["config"]["mediaType"] == CONFIG_TYPE
    config = Descriptor(CONFIG_TYPE, manifest["config"]["digest"], manifest["config"]["size"])
    diff_ids = json.loads(pushed.registry.get_blob(pushed.repository, config))["rootfs"]["diff_ids"]
    assert diff_ids == [layer["digest"]]
    assert manifest["subject"] == {
        "mediaType": pushed.image.media_type,
        "digest": pushed.image.digest,
        "size": pushed.image.size,
    }


def test_a_foreign_key(pushed: Pushed) -> None:
    attached(pushed, TWO)
    with pytest.raises(IntegrityError, match="signed with a foreign key") as caught:
        signed_by(pushed, ONE)
    assert TWO.public.fingerprint in caught.value.got
    with pytest.raises(IntegrityError, match="signed with a foreign key"):
        read_provenance(pushed.registry, pushed.repository, pushed.image, [ONE.public])


def test_no_key_to_check_with(pushed: Pushed) -> None:
    with pytest.raises(UsageError, match="no key"):
        signed_by(pushed)


def test_the_tag_alone_is_enough_and_so_is_the_list(tagged: Pushed) -> None:
    put_signature(tagged.registry, tagged.repository, tagged.image, ONE)
    tag = fallback_tag(tagged.image.digest)
    tagged.registry.put_document(tagged.repository, tag, Index(()).document())
    assert signed_by(tagged, ONE)
    # What was taken out of the list comes back with the next push.
    assert put_signature(tagged.registry, tagged.repository, tagged.image, ONE)
    assert [d.artifact_type for d in listed(tagged)] == [signature.ARTIFACT_TYPE]
    empty = Descriptor.of(b"{}", CONFIG_TYPE)
    tagged.registry.put_blob(tagged.repository, b"{}", empty)
    tagged.registry.put_document(
        tagged.repository,
        signature.tag_of(tagged.image.digest),
        ImageManifest(empty, ()).document(),
    )
    assert signed_by(tagged, ONE)


def strip(tagged: Pushed) -> None:
    """Take the signature away, as somebody who may push can."""
    for tag in (fallback_tag(tagged.image.digest), signature.tag_of(tagged.image.digest)):
        document = tagged.registry.document(tagged.repository, tag)
        assert document is not None
        tagged.registry.delete(tagged.repository, document.digest)


def test_a_stripped_signature(tagged: Pushed) -> None:
    attached(tagged)
    strip(tagged)
    with pytest.raises(IntegrityError, match="its signature was removed"):
        signed_by(tagged, ONE)
    with pytest.raises(IntegrityError, match="no provenance, or it was removed"):
        read_provenance(tagged.registry, tagged.repository, tagged.image, [ONE.public])
    assert attached(tagged) == ["sbom", "provenance", "signature"]
    assert signed_by(tagged, ONE)


def resigned(pushed: Pushed, change: Callable[[signature.Signature], signature.Signature]) -> None:
    """Put a changed signature in the place of the true one."""
    true = signature.sign(str(pushed.repository), pushed.image.digest, ONE)
    new = change(true)
    told = {
        signature.ANNOTATION: base64.b64encode(new.signature).decode(),
        "io.tdstack.key": ONE.public.fingerprint,
    }
    blob = Descriptor.of(new.payload, signature.PAYLOAD_TYPE)
    config = Descriptor.of(b"{}", CONFIG_TYPE)
    pushed.registry.put_blob(pushed.repository, new.payload, blob)
    pushed.registry.put_blob(pushed.repository, b"{}", config)
    layer = Descriptor(blob.media_type, blob.digest, blob.size, told)
    document = ImageManifest(config, (layer,)).document()
    pushed.registry.put_document(pushed.repository, signature.tag_of(pushed.image.digest), document)


def test_a_payload_that_was_altered(pushed: Pushed) -> None:
    resigned(
        pushed,
        lambda s: signature.Signature(s.payload.replace(b"attach", b"attack"), s.signature),
    )
    with pytest.raises(IntegrityError, match="they were altered"):
        signed_by(pushed, ONE)


def test_a_true_signature_of_another_image(pushed: Pushed) -> None:
    other = f"sha256:{'0' * 64}"
    resigned(pushed, lambda _: signature.sign(str(pushed.repository), other, ONE))
    with pytest.raises(IntegrityError, match="belongs to another image") as caught:
        signed_by(pushed, ONE)
    assert (caught.value.expected, caught.value.got) == (pushed.image.digest, other)


def test_nonsense_beside_a_true_signature_does_not_hide_it(pushed: Pushed) -> None:
    resigned(pushed, lambda s: signature.Signature(s.payload, b"nonsense"))
    with pytest.raises(IntegrityError, match="they were altered"):
        signed_by(pushed, ONE)
    assert put_signature(pushed.registry, pushed.repository, pushed.image, ONE)
    assert signed_by(pushed, ONE)


def put_provenance(pushed: Pushed, payload: bytes, signer: Signer | None) -> None:
    kind = dsse.MEDIA_TYPE if signer else provenance.MEDIA_TYPE
    data = dsse.seal(provenance.MEDIA_TYPE, payload, signer) if signer else payload
    put_attachment(pushed.registry, pushed.repository, pushed.image, Attachment(data, kind, kind))


def test_the_provenance_of_another_image(pushed: Pushed) -> None:
    elsewhere = Repository(pushed.repository.host, f"other/{next(_NUMBERS)}")
    other = Pushed(pushed.registry, elsewhere, planned("12.6"))
    attached(other)
    signed = next(
        m for m in other.registry.referrers(elsewhere, other.image.digest, dsse.MEDIA_TYPE)
    )
    document = other.registry.document(elsewhere, signed.digest)
    assert document is not None
    blob = ImageManifest.parse(document.data).layers[0]
    envelope = other.registry.get_blob(elsewhere, blob)
    put_attachment(
        pushed.registry,
        pushed.repository,
        pushed.image,
        Attachment(envelope, dsse.MEDIA_TYPE, dsse.MEDIA_TYPE),
    )
    with pytest.raises(IntegrityError, match="provenance is of another image"):
        read_provenance(pushed.registry, pushed.repository, pushed.image, [ONE.public])
    # The true one beside it is found.
    attached(pushed)
    assert read_provenance(pushed.registry, pushed.repository, pushed.image, [ONE.public])[1]


def test_an_attachment_that_belongs_to_another_image(tagged: Pushed) -> None:
    other = Pushed(tagged.registry, tagged.repository, planned("12.6"))
    attached(other)
    theirs = tagged.registry.document(tagged.repository, fallback_tag(other.image.digest))
    assert theirs is not None
    tagged.registry.put_document(tagged.repository, fallback_tag(tagged.image.digest), theirs)
    with pytest.raises(IntegrityError, match="belongs to another"):
        read_provenance(tagged.registry, tagged.repository, tagged.image, [ONE.public])


def test_a_swapped_bill(tagged: Pushed) -> None:
    attached(tagged)
    where = (tagged.registry, tagged.repository, tagged.image)
    statement, _ = read_provenance(*where, [ONE.public])
    bill = json.loads(read_sbom(*where, statement))
    bill["components"].pop()
    put_attachment(*where, Attachment(json.dumps(bill).encode(), sbom.MEDIA_TYPE, sbom.MEDIA_TYPE))
    assert read_sbom(*where, statement)  # a second one beside the true one is passed over
    true = listed(tagged, sbom.MEDIA_TYPE)[0]
    tagged.registry.delete(tagged.repository, true.digest)
    with pytest.raises(IntegrityError, match="not the one that the provenance names"):
        read_sbom(*where, statement)
    assert attached(tagged) == ["sbom"]  # the statement is true and stays; the bill comes back
    assert read_sbom(*where, read_provenance(*where, [ONE.public])[0])


def test_an_image_that_is_not_the_plans_is_not_vouched_for(
    place: tuple[Registry, Repository],
) -> None:
    pushed = Pushed(*place, planned())
    pushed.plan = planned("12.6")
    with pytest.raises(IntegrityError, match="not the one of this plan") as caught:
        attached(pushed)
    assert "lock slice" in caught.value.got
    assert listed(pushed) == []


def test_cubins_that_the_plan_does_not_have(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(), cubins_of=planned(arch="sm_90"))
    with pytest.raises(IntegrityError, match="not the one of this plan") as caught:
        attached(pushed)
    assert "sm_90" in caught.value.got


def test_an_image_of_a_layer_is_no_final_one(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(), labels={"io.tdstack.layer": "torch"})
    with pytest.raises(CheckFailed, match="no final image"):
        attached(pushed)


def test_a_layer_that_is_not_its_configurations(tagged: Pushed) -> None:
    swapped = ImageManifest(
        tagged.config,
        (tagged.manifest.layers[1], tagged.manifest.layers[0], tagged.manifest.layers[2]),
    )
    with pytest.raises(IntegrityError, match="not the one that the image's configuration names"):
        read_inside(tagged.registry, tagged.repository, swapped)


def test_pushes_at_once_lose_nothing(tagged: Pushed) -> None:
    signers = [signer_of(number) for number in range(1, 4)]
    together = threading.Barrier(len(signers))

    def push(signer: Signer) -> None:
        # A client each: in one process they would wait for each other.
        registry = Registry(tagged.registry.host, say=lambda _: None)
        together.wait()
        put_signature(registry, tagged.repository, tagged.image, signer)

    with ThreadPoolExecutor(len(signers)) as pool:
        list(pool.map(push, signers))
    # The protocol has no lock: what a stalled client overwrote, the next push brings back.
    for signer in signers:
        put_signature(tagged.registry, tagged.repository, tagged.image, signer)
    found = signatures_of(tagged.registry, tagged.repository, tagged.image)
    assert {f.hint for f in found} == {s.public.fingerprint for s in signers}
    for signer in signers:
        assert signed_by(tagged, signer)


def at_the_tag(pushed: Pushed) -> list[str]:
    """Return the keys whose signatures cosign would find."""
    document = pushed.registry.document(pushed.repository, signature.tag_of(pushed.image.digest))
    assert document is not None
    layers = ImageManifest.parse(document.data).layers
    return [layer.annotations["io.tdstack.key"] for layer in layers]


def test_a_signature_that_another_client_overwrites_is_put_again(
    tagged: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one read the tag before we wrote it, and writes after us."""
    put_signature(tagged.registry, tagged.repository, tagged.image, TWO)
    tag = signature.tag_of(tagged.image.digest)
    stale = tagged.registry.document(tagged.repository, tag)
    assert stale is not None
    waits = []

    def other_client_writes(_begin: float, attempt: int) -> None:
        waits.append(attempt)
        if len(waits) <= 2:
            tagged.registry.put_document(tagged.repository, tag, stale)

    monkeypatch.setattr("tdstack.attest.signatures.settle", other_client_writes)
    put_signature(tagged.registry, tagged.repository, tagged.image, ONE)
    assert waits == [0, 1, 2]
    assert at_the_tag(tagged) == [TWO.public.fingerprint, ONE.public.fingerprint]


def test_a_tag_that_never_keeps_a_signature(
    tagged: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_signature(tagged.registry, tagged.repository, tagged.image, TWO)
    tag = signature.tag_of(tagged.image.digest)
    stale = tagged.registry.document(tagged.repository, tag)
    assert stale is not None
    monkeypatch.setattr(
        "tdstack.attest.signatures.settle",
        lambda *_: tagged.registry.put_document(tagged.repository, tag, stale),
    )
    with pytest.raises(UpstreamError, match="does not keep a signature"):
        put_signature(tagged.registry, tagged.repository, tagged.image, ONE)


class Slow(Registry):
    """A client that stalls between reading the signatures' tag and writing it."""

    def __init__(self, pushed: Pushed) -> None:
        super().__init__(pushed.registry.host)
        self._pushed: Pushed | None = pushed

    def put_document(self, repository: Repository, reference: str, document: Document) -> None:
        """Let another client sign just before the first write to the tag."""
        if reference.endswith(".sig") and self._pushed:
            pushed, self._pushed = self._pushed, None
            put_signature(pushed.registry, pushed.repository, pushed.image, TWO)
        super().put_document(repository, reference, document)


def test_a_stalled_client_does_not_make_a_signature_unknown(tagged: Pushed) -> None:
    """It takes it from the tag, long after its owner looked; the list of referrers has it."""
    put_signature(Slow(tagged), tagged.repository, tagged.image, ONE)
    assert at_the_tag(tagged) == [ONE.public.fingerprint]
    assert signed_by(tagged, TWO) == TWO.public.fingerprint
    assert put_signature(tagged.registry, tagged.repository, tagged.image, TWO)
    assert at_the_tag(tagged) == [ONE.public.fingerprint, TWO.public.fingerprint]


class Overwritten(Registry):
    """A registry whose list of referrers another client overwrites right after each write."""

    def __init__(self, host: str, times: int) -> None:
        super().__init__(host)
        self.left = times

    def add_referrer(
        self,
        repository: Repository,
        subject: Descriptor,
        document: Document,
        artifact_type: str,
        annotations: Mapping[str, str],
    ) -> None:
        super().add_referrer(repository, subject, document, artifact_type, annotations)
        if self.left:
            self.left -= 1
            self.put_document(repository, fallback_tag(subject.digest), Index(()).document())


@pytest.mark.parametrize(("times", "lasts"), [(2, True), (99, False)])
def test_a_list_that_others_overwrite(
    times: int, lasts: bool, tagged: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    registry = Overwritten(tagged.registry.host, times)
    one = Attachment(b"{}", "text/x", "text/x")
    if lasts:
        assert put_attachment(registry, tagged.repository, tagged.image, one)
        assert [d.artifact_type for d in listed(tagged)] == ["text/x"]
    else:
        with pytest.raises(UpstreamError, match="does not keep an entry"):
            put_attachment(registry, tagged.repository, tagged.image, one)


def test_what_lies_at_the_signatures_tag_is_not_overwritten(tagged: Pushed) -> None:
    tag = signature.tag_of(tagged.image.digest)
    tagged.registry.put_document(tagged.repository, tag, Index(()).document())
    with pytest.raises(IntegrityError, match="malformed"):
        put_signature(tagged.registry, tagged.repository, tagged.image, ONE)


@pytest.mark.parametrize("payload", [b"{}", b"[]", b"x", b'{"_type": 1, "predicateType": 2}'])
def test_a_statement_that_cannot_be_read(payload: bytes, pushed: Pushed) -> None:
    put_provenance(pushed, payload, ONE)
    with pytest.raises(IntegrityError, match="provenance cannot be read"):
        read_provenance(pushed.registry, pushed.repository, pushed.image, [ONE.public])


def test_the_statement_is_slsas(pushed: Pushed) -> None:
    attached(pushed, None)
    (one,) = listed(pushed, provenance.MEDIA_TYPE)
    document = pushed.registry.document(pushed.repository, one.digest)
    assert document is not None
    payload = pushed.registry.get_blob(
        pushed.repository, ImageManifest.parse(document.data).layers[0]
    )
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "cuda": "12.4",
        "triton": "stock",
        "torch": "none",
        "platform": "linux/amd64",
        "python": "3.11",
        "base": "rootfs",
        "arch": ["sm_80"],
    }
    assert not definition["externalParameters"].keys() & definition["internalParameters"].keys()
    assert all(len(m["digest"]["sha256"]) == 64 for m in definition["resolvedDependencies"])
    assert statement["predicate"]["runDetails"]["builder"]["id"]
    assert parse_statement(payload, "here").lock
    assert one.annotations["in-toto.io/predicate-type"] == "https://slsa.dev/provenance/v1"


def test_contents_of_an_image_are_the_plans(pushed: Pushed) -> None:
    inside = read_inside(pushed.registry, pushed.repository, pushed.manifest)
    rootfs = pushed.plan.stack.rootfs
    assert rootfs is not None
    contents = contents_of(inside.slice, inside.kernels, [rootfs])
    files = {f.sha256 for f in pushed.plan.files} | {rootfs.tar.sha256}
    assert {m.sha256 for m in contents.materials} == files
    assert ROOT.is_dir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["subject"].append({"digest": {"sha256": "0" * 64}}), "of another image"),
        (lambda s: materials(s).pop(3), "is not listed"),
        (lambda s: materials(s)[3]["digest"].update(sha256="0" * 64), "sha256 000000000000"),
        (
            lambda s: materials(s).append(
                {"uri": "pkg:pypi/evil@1", "name": "evil", "digest": {"sha256": "0" * 64}}
            ),
            "evil@1 is not in the image",
        ),
        (
            lambda s: next(m for m in materials(s) if "distributed" in m.get("uri", "")).update(
                digest={"sha256": "0" * 64}
            ),
            "triton_dist-3.4.0-cp311-cp311-linux_x86_64.whl is not listed",
        ),
    ],
)
def test_a_statement_that_disagrees_with_its_image(
    change: Callable[[Any], None], words: str
) -> None:
    plan = planned(triton="distributed")
    contents = planned_contents(plan, "0.3.0")
    facts = BuildFacts("1" * 64, {}, {}, "1.27", "buildah 1", "2" * 64)
    digest = f"sha256:{'d' * 64}"
    statement = json.loads(render_statement("r.example/x", digest, contents, facts))
    true = parse_statement(json.dumps(statement).encode(), "here")
    check_statement(true, digest, contents, "here")
    assert true.sbom == facts.sbom
    change(statement)
    with pytest.raises(IntegrityError) as caught:
        check_statement(
            parse_statement(json.dumps(statement).encode(), "here"), digest, contents, "here"
        )
    assert words in str(caught.value)


def materials(statement: Any) -> list[Any]:
    found: list[Any] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return found


def test_an_image_that_is_gone(pushed: Pushed) -> None:
    gone = Document(b"{}", pushed.image.media_type).descriptor()
    with pytest.raises(IntegrityError, match="not in the registry"):
        attach(pushed.registry, pushed.repository, gone, plan=pushed.plan, signer=None)
