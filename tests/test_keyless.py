"""Keyless signatures around the package sigstore: attached, found, chosen, asked for wrongly."""

from __future__ import annotations

import ast
import base64
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tdstack.assemble.image import MANIFEST_TYPE
from tdstack.attest.artifacts import put_attachment
from tdstack.attest.attach import attach
from tdstack.attest.bundles import Keyless, put_bundle
from tdstack.attest.examine import Options, examine
from tdstack.attest.keyless import (
    BUNDLE_TYPE,
    PREDICATE,
    Identity,
    SignedStatement,
    attachment_of,
    claims_to_sign,
    identity_of,
    statement_for,
)
from tdstack.attest.report import ImageReport, judged
from tdstack.attest.sigstore_client import SigstoreSigner, keyless_of
from tdstack.errors import HostError, IntegrityError, UsageError
from tdstack.registry.client import Registry
from tdstack.registry.oci import ImageManifest
from tdstack.registry.reference import Reference, Repository
from tdstack.ship.remote import Source
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.attested import ROOT, Pushed, planned, signer_of
from tests.referrers_registry import ReferrersRegistry, referrers_registry
from tests.registries import RunningRegistry, plain_registry  # noqa: F401

WE, THEY = Identity("us@example.org", "https://a.example"), Identity("us@example.org", "https://b")
ONE = signer_of(1)
STATEMENT_TYPE = "application/vnd.in-toto+json"
_NUMBERS = count()


@dataclass
class Paper:
    """Signs and verifies without cryptography: a bundle names its signer, and is believed."""

    who: Identity = WE
    made: Iterator[int] = field(default_factory=count)

    def sign(self, statement: bytes) -> bytes:
        return paper(statement, self.who, next(self.made))

    def verify(self, bundle: bytes, identity: Identity, where: str) -> SignedStatement:
        data = json.loads(bundle)
        if data["who"] != str(identity):
            raise IntegrityError("the image was signed by somebody else", got=data["who"])
        envelope = data["dsseEnvelope"]
        return SignedStatement(envelope["payloadType"], base64.b64decode(envelope["payload"]))


def paper(statement: bytes, who: Identity = WE, number: int = 0, kind: str = "") -> bytes:
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": kind or STATEMENT_TYPE,
    }
    return json.dumps({"who": str(who), "number": number, "dsseEnvelope": envelope}).encode()


def changed(digest: str, **fields: object) -> bytes:
    return json.dumps({**json.loads(statement_for(digest)), **fields}).encode()


OURS = Keyless(WE, Paper())


@pytest.fixture(scope="module")
def with_api() -> Iterator[ReferrersRegistry]:
    with referrers_registry() as held:
        yield held


@pytest.fixture(params=["tag", "api"])
def pushed(request: pytest.FixtureRequest) -> Pushed:
    """Return an image in a registry without and in one with the referrers API."""
    fixture = "plain_registry" if request.param == "tag" else "with_api"
    host = request.getfixturevalue(fixture).host
    return Pushed(Registry(host), Repository(host, f"keyless/{next(_NUMBERS)}"), planned())


@pytest.fixture
def one(plain_registry: RunningRegistry) -> Pushed:  # noqa: F811
    host = plain_registry.host
    return Pushed(Registry(host), Repository(host, f"keyless/{next(_NUMBERS)}"), planned())


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDSTACK_CACHE", str(tmp_path / "store"))
    for name in ("TDSTACK_KEY", "TDSTACK_SIGN"):
        monkeypatch.delenv(name, raising=False)


def where(pushed: Pushed) -> tuple[Registry, Repository]:
    return pushed.registry, pushed.repository


def add(pushed: Pushed, bundle: bytes) -> None:
    put_attachment(*where(pushed), pushed.image, attachment_of(bundle))


def check(pushed: Pushed, who: Identity = WE) -> Identity:
    return Keyless(who, Paper()).check(*where(pushed), pushed.image)


def test_a_push_attaches_it_as_cosign_does(pushed: Pushed) -> None:
    done = attach(*where(pushed), pushed.image, plan=None, signer=None, keyless=Paper())
    assert [line.partition(" ")[0] for line in done] == ["keyless"]
    (listed,) = pushed.registry.referrers(pushed.repository, pushed.image.digest, BUNDLE_TYPE)
    assert listed.artifact_type == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert done == (f"keyless {listed.digest}",)
    document = pushed.registry.document(pushed.repository, listed.digest)
    assert document is not None
    assert document.media_type == MANIFEST_TYPE
    manifest = ImageManifest.parse(document.data)
    assert manifest.annotations == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
    }
    assert manifest.config.media_type == "application/vnd.oci.empty.v1+json"
    (layer,) = manifest.layers
    assert layer.media_type == listed.artifact_type
    bundle = json.loads(pushed.registry.get_blob(pushed.repository, layer))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert [s["digest"] for s in statement["subject"]] == [{"sha256": pushed.image.sha256}]
    assert (statement["predicateType"], statement["predicate"]) == (PREDICATE, {})
    assert check(pushed) == WE


def test_it_comes_after_everything_else_and_once_more_with_each_push(pushed: Pushed) -> None:
    paper = Paper()
    for expected in (["sbom", "provenance", "signature", "keyless"], ["keyless"]):
        done = attach(
            *where(pushed), pushed.image, plan=pushed.plan, signer=ONE, keyless=paper, engine="x 1"
        )
        assert [line.partition(" ")[0] for line in done] == expected
    listed = pushed.registry.referrers(pushed.repository, pushed.image.digest, BUNDLE_TYPE)
    assert len({d.digest for d in listed}) == 2


def test_none_is_found(pushed: Pushed) -> None:
    attach(*where(pushed), pushed.image, plan=pushed.plan, signer=ONE, engine="x 1")
    with pytest.raises(IntegrityError, match="no keyless signature, or it was removed") as caught:
        check(pushed)
    assert str(WE) in caught.value.expected


def test_the_right_one_is_found_among_others(pushed: Pushed) -> None:
    digest = pushed.image.digest
    add(pushed, paper(changed(digest, predicateType="https://slsa.dev/provenance/v1"), THEY))
    add(pushed, b"{}")
    add(pushed, paper(statement_for(digest), THEY))
    add(pushed, paper(statement_for("sha256:" + "a" * 64)))
    with pytest.raises(IntegrityError, match="none of the image's keyless") as caught:
        check(pushed)
    assert "somebody else" in caught.value.got
    assert "another image" in caught.value.got
    assert check(pushed, THEY) == THEY
    put_bundle(*where(pushed), pushed.image, Paper())
    assert check(pushed) == WE


def test_another_issuer_is_somebody_else(one: Pushed) -> None:
    put_bundle(*where(one), one.image, Paper(THEY))
    with pytest.raises(IntegrityError, match="somebody else"):
        check(one)


def test_another_statement_of_ours_is_no_signature(one: Pushed) -> None:
    add(one, paper(changed(one.image.digest, predicateType="https://slsa.dev/provenance/v1")))
    with pytest.raises(IntegrityError, match="no keyless signature"):
        check(one)


OTHER = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: paper(statement_for(OTHER)), "belongs to another image"),
        (
            lambda d: paper(
                changed(d, subject=[{"digest": {"sha256": x[7:]}} for x in (d, OTHER)])
            ),
            "belongs to another image",
        ),
        (lambda d: paper(changed(d, subject=[])), "belongs to another image"),
        (lambda d: paper(changed(d, subject=[{"digest": {"sha512": "0"}}])), "cannot be read"),
        (lambda d: paper(changed(d, subject=None)), "cannot be read"),
        (lambda d: paper(changed(d, _type="x")), "no signature of an image"),
        (lambda d: paper(statement_for(d), kind="text/plain"), "no signature of an image"),
    ],
)
def test_what_ours_does_not_say(one: Pushed, make: Callable[[str], bytes], words: str) -> None:
    add(one, make(one.image.digest))
    with pytest.raises(IntegrityError, match=words):
        check(one)


@pytest.mark.parametrize("bundle", [b"", b"[]", b"{}", b'{"dsseEnvelope": 1}', b"[" * 9000])
def test_what_is_no_bundle_claims_nothing(bundle: bytes) -> None:
    assert not claims_to_sign(bundle)


def report_on(pushed: Pushed, options: Options) -> ImageReport:
    workspace = Workspace(ROOT, Store(ROOT / "nowhere"))
    reference = Reference(pushed.repository, "", pushed.image.digest)
    return examine(workspace, pushed.registry, reference, options)


def test_verify_reports_it(one: Pushed, capsys: pytest.CaptureFixture[str]) -> None:
    attach(*where(one), one.image, plan=one.plan, signer=ONE, keyless=Paper(), engine="x 1")
    report = judged(report_on(one, Options(keyless=OURS)), as_json=False)
    found = {f.check: (f.state, f.detail) for f in report.findings}
    assert found["keyless"] == ("ok", f"by {WE}")
    assert (report.signed_as, report.signed_by, report.code) == (str(WE), "", 0)
    assert "nobody vouches" not in capsys.readouterr().err
    both = report_on(one, Options((ONE.public,), keyless=OURS))
    assert (both.signed_as, both.signed_by) == (str(WE), ONE.public.fingerprint)
    assert both.as_dict()["signed_as"] == str(WE)
    assert "keyless" not in {f.check for f in report_on(one, Options()).findings}


def test_verify_fails_without_it_whatever_a_key_says(one: Pushed) -> None:
    attach(*where(one), one.image, plan=one.plan, signer=ONE, keyless=Paper(THEY), engine="x 1")
    report = report_on(one, Options((ONE.public,), keyless=OURS))
    assert {f.check: f.code for f in report.findings if f.state == "FAIL"} == {"keyless": 4}
    assert report.signed_as == ""
    with pytest.raises(IntegrityError, match="somebody else"):
        judged(report, as_json=False)


def test_a_pull_and_a_build_ask_for_key_and_identity(one: Pushed) -> None:
    attach(*where(one), one.image, plan=None, signer=ONE, keyless=Paper())
    reference = Reference(one.repository, "", one.image.digest)

    def taken(source: Source) -> str:
        remote = source.image(reference)
        assert remote is not None
        return remote.signed_by

    place = (*where(one), "linux/amd64")
    assert taken(Source(*place)) == ""
    assert taken(Source(*place, (), OURS)) == str(WE)
    assert taken(Source(*place, (ONE.public,), OURS)) == f"{ONE.public.fingerprint}, {WE}"
    for source in (
        Source(*place, (signer_of(2).public,), OURS),
        Source(*place, (ONE.public,), Keyless(THEY, Paper())),
    ):
        with pytest.raises(IntegrityError, match=r"foreign key|somebody else"):
            taken(source)


def test_a_name_needs_its_issuer() -> None:
    assert identity_of("", "") is None
    assert identity_of("a", "b") == Identity("a", "b")
    for name, issuer in (("a", ""), ("", "b")):
        with pytest.raises(UsageError, match="the issuer that vouches"):
            keyless_of(name, issuer)


def test_without_the_package_both_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigstore", None)
    for make in (SigstoreSigner, lambda: keyless_of("a", "b")):
        with pytest.raises(HostError, match="need the package sigstore") as caught:
            make()
        assert "requirements-keyless.lock" in caught.value.remedy


REGISTRY = ("--registry", "localhost:1/x")
PLAN = ("--triton", "stock", "--torch", "none")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("push", *REGISTRY, *PLAN, "--keyless"), 3, "requirements-keyless.lock"),
        (("pull", *REGISTRY, *PLAN, "--identity", "a", "--issuer", "b"), 3, "sigstore"),
        (("build", *REGISTRY, *PLAN, "--identity", "a", "--issuer", "b"), 3, "sigstore"),
        (("build", *REGISTRY, *PLAN, "--identity", "a"), 2, "--issuer URL"),
        (("pull", *REGISTRY, *PLAN, "--issuer", "b"), 2, "--identity WHO"),
        (("verify", "localhost:1/x:y", "--identity", "a"), 2, "--issuer URL"),
        (("verify", "localhost:1/x:y", "--identity", "a", "--issuer", "b"), 3, "sigstore"),
        (("verify", "tdstack:x", "--identity", "a", "--issuer", "b"), 2, "in an engine"),
        (("verify", "--prefix", "/", "--identity", "a", "--issuer", "b"), 2, "not signed"),
        (("verify", "--rebuild", "localhost:1/x:y", "--issuer", "b"), 2, "a check of its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_the_verbs_refuse(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub = tmp_path / "sigstore"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise ImportError('not installed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "invoke", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_one_file_alone_imports_the_package_and_only_when_it_is_used() -> None:
    found = set()
    for file in (ROOT / "tdstack").rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = [
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        ]
        if any(name.split(".")[0] in ("sigstore", "id") for name in names):
            found.add(file.name)
    assert found == {"sigstore_client.py"}
    code = "import tdstack.attest.sigstore_client, sys; sys.exit('sigstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_extra_is_pinned_beside_the_tools() -> None:
    def pins(file: str) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE))

    extra, tools = pins("requirements-keyless.lock"), pins("requirements.lock")
    assert "sigstore" in extra
    # Installed into the same environment, one after the other.
    assert {name: extra[name] for name in extra.keys() & tools} == {
        name: tools[name] for name in extra.keys() & tools
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [d for d in project["dependencies"] if "sigstore" in d]
    assert project["optional-dependencies"]["keyless"]
