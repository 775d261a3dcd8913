"""Keyless signatures with the real package sigstore.

Signing runs against services on loopback; bundles that the public services signed are verified by
the trust root that the package brings, without a network.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tdstack.attest import sigstore_client
from tdstack.attest.artifacts import attached, blob_of, put_attachment
from tdstack.attest.attach import attach
from tdstack.attest.keyless import BUNDLE_TYPE, attachment_of, statement_for
from tdstack.attest.sigstore_client import SigstoreSigner, keyless_of
from tdstack.errors import (
    HostError,
    IntegrityError,
    TdstackError,
    TimeLimitError,
    UpstreamError,
    UsageError,
)
from tdstack.fork.model import ANYWHERE
from tdstack.lock.model import LockedFile
from tdstack.registry.client import Registry
from tdstack.registry.reference import Reference, Repository, parse_repository
from tdstack.ship import verbs
from tdstack.ship.names import full_tag, layer_reference
from tdstack.ship.resolve import resolve
from tdstack.stack import Request
from tdstack.wheelhouse.store import Store, default_cache
from tdstack.workspace import Workspace
from tests.attested import ROOT, Pushed, planned
from tests.keyless_site import keyless_site
from tests.registries import RunningRegistry, plain_registry, running_registry  # noqa: F401
from tests.shipped import buildah_host, load_tiny, tiny_plan
from tests.sigstore_services import GITHUB, WORKFLOW, Sigstore, sigstore_services

WE = f"https://github.com/{WORKFLOW}"
# Its tests bring attestations that workflows on GitHub and GitLab got from the public services.
SDIST = LockedFile(
    name="pypi_attestations-0.0.30.tar.gz",
    sha256="14ff13c76bbef02a483c2b77532da02bfd746b5141b881f355e06b9807434423",
    size=139108,
)
PUBLIC = (
    "pypi_attestation_models-0.0.4a2.tar.gz.sigstore",
    "pypi_attestations-0.0.19.tar.gz.slsa.attestation",
    "gitlab_oidc_project-0.0.3.tar.gz.publish.attestation",
)
STAGING = "rfc8785-0.1.2-py3-none-any.whl.sigstore"
# sigstore/fulcio, docs/oid-info.md
ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_NUMBERS = count()


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with keyless_site(tmp_path_factory.mktemp("keyless") / "site") as folder:
        yield folder


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Neither a trust root that somebody fetched nor an identity of this host may decide anything.
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "trust"))
    for name in ("TDSTACK_KEY", "TDSTACK_SIGN", "GITHUB_ACTIONS", "TDSTACK_SIGSTORE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sigstore]:
    """Run a sigstore of our own, in a job that may ask for its identity."""
    with sigstore_services() as held:
        for name, text in held.environment(tmp_path).items():
            monkeypatch.setenv(name, text)
        yield held


@pytest.fixture
def pushed(plain_registry: RunningRegistry) -> Pushed:  # noqa: F811
    host = plain_registry.host
    return Pushed(Registry(host), Repository(host, f"sigstore/{next(_NUMBERS)}"), planned())


def sign(pushed: Pushed) -> None:
    where = (pushed.registry, pushed.repository, pushed.image)
    attach(*where, plan=None, signer=None, keyless=SigstoreSigner())


def check(pushed: Pushed, name: str = WE, issuer: str = GITHUB) -> str:
    keyless = keyless_of(name, issuer)
    assert keyless is not None
    return str(keyless.check(pushed.registry, pushed.repository, pushed.image))


def bundles(pushed: Pushed) -> list[Any]:
    where = (pushed.registry, pushed.repository)
    found = attached(*where, pushed.image.digest, [BUNDLE_TYPE])
    return [json.loads(blob_of(*where, manifest)) for manifest in found]


def test_signed_attached_and_verified(
    pushed: Pushed, services: Sigstore, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(pushed)
    assert services.signed == 1
    assert f"signed as {WE}, issuer {GITHUB}" in capsys.readouterr().err
    assert check(pushed) == f"{WE} ({GITHUB})"
    (bundle,) = bundles(pushed)
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"


@pytest.mark.parametrize(
    ("name", "issuer"),
    [
        (WE.replace("v1", "v2"), GITHUB),
        (WE.upper(), GITHUB),
        (WE[:-1], GITHUB),
        (WE, "https://gitlab.com"),
    ],
)
def test_somebody_else(pushed: Pushed, services: Sigstore, name: str, issuer: str) -> None:
    sign(pushed)
    with pytest.raises(IntegrityError, match="somebody else") as caught:
        check(pushed, name, issuer)
    assert caught.value.got == f"{WE} ({GITHUB})"


def moved(bundle: Any, digest: str) -> None:
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement_for(digest)).decode()


def other_signature(bundle: Any, _digest: str) -> None:
    (one,) = bundle["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(one["sig"]))
    raw[-1] ^= 1
    one["sig"] = base64.b64encode(raw).decode()


def no_entry(bundle: Any, _digest: str) -> None:
    bundle["verificationMaterial"]["tlogEntries"] = []


def other_time(bundle: Any, _digest: str) -> None:
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    entry["integratedTime"] = str(int(entry["integratedTime"]) - 86_400)


def other_body(bundle: Any, _digest: str) -> None:
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    body = base64.b64decode(entry["canonicalizedBody"])
    entry["canonicalizedBody"] = base64.b64encode(body + b" ").decode()


@pytest.mark.parametrize("change", [moved, other_signature, no_entry, other_time, other_body])
def test_an_altered_bundle(
    pushed: Pushed, services: Sigstore, change: Callable[[Any, str], None]
) -> None:
    bundle = json.loads(SigstoreSigner().sign(statement_for("sha256:" + "a" * 64)))
    # As it is it holds, and is of another image.
    put(pushed, bundle)
    with pytest.raises(IntegrityError, match="belongs to another image"):
        check(pushed)
    change(bundle, pushed.image.digest)
    place = Repository(pushed.repository.host, f"sigstore/{next(_NUMBERS)}")
    copy = Pushed(pushed.registry, place, pushed.plan)
    put(copy, bundle)
    with pytest.raises(IntegrityError, match="does not hold: it was altered"):
        check(copy)


def put(pushed: Pushed, bundle: Any) -> None:
    attachment = attachment_of(json.dumps(bundle).encode())
    put_attachment(pushed.registry, pushed.repository, pushed.image, attachment)


def test_another_sigstore(pushed: Pushed, services: Sigstore, tmp_path: Path) -> None:
    sign(pushed)
    (tmp_path / "sigstore.json").write_text(json.dumps(Sigstore(services.url).config()))
    with pytest.raises(IntegrityError, match="or is of another sigstore"):
        check(pushed)


@pytest.mark.parametrize("part", ["", "tlogs", "signingConfig"])
def test_a_configuration_that_lacks_something(
    services: Sigstore, tmp_path: Path, part: str
) -> None:
    config: Any = services.config()
    if part == "tlogs":
        config["trustedRoot"]["tlogs"] = []
    elif part:
        config[part]["caUrls"] = []
    (tmp_path / "sigstore.json").write_text(json.dumps(config) if part else "{}")
    with pytest.raises(UsageError, match="configuration of sigstore cannot be read"):
        SigstoreSigner()


def test_a_trust_root_that_was_cut_off(tmp_path: Path) -> None:
    assert keyless_of("a", "b")
    (file,) = (tmp_path / "trust").rglob("trusted_root.json")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(HostError, match="trust root on this host is damaged"):
        keyless_of("a", "b")


def test_the_verb_verifies(pushed: Pushed, services: Sigstore, package: Path) -> None:
    where = (pushed.registry, pushed.repository, pushed.image)
    attach(*where, plan=pushed.plan, signer=None, keyless=SigstoreSigner(), engine="x 1")

    def verified(issuer: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "invoke", "verify", f"{where[1]}@{where[2].digest}"]
        command += ["--identity", WE, "--issuer", issuer, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, json.loads(done.stdout)

    code, report = verified(GITHUB)
    assert (code, report["signed_as"]) == (0, f"{WE} ({GITHUB})")
    code, report = verified("https://gitlab.com")
    assert code == 4
    assert "somebody else" in report["what"]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("fulcio", UpstreamError, "Fulcio"),
        ("fulcio nonsense", UpstreamError, "too short"),
        ("rekor", UpstreamError, "rekor rests"),
        ("rekor nonsense", UpstreamError, "refuse"),
        ("other entry", UpstreamError, "does not hold"),
        ("token", UpstreamError, "403"),
        ("silence", TimeLimitError, "do not answer"),
    ],
)
def test_services_that_fail_leave_nothing_behind(
    pushed: Pushed,
    services: Sigstore,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    kind: type[TdstackError],
    words: str,
) -> None:
    monkeypatch.setattr(sigstore_client, "SIGN_LIMIT_S", 5.0 if fault != "silence" else 0.3)
    services.fault = fault
    with pytest.raises(kind) as caught:
        sign(pushed)
    assert words in str(caught.value)
    assert "of-the-job" not in str(caught.value)
    assert services.token().rpartition(".")[2] not in str(caught.value)
    assert bundles(pushed) == []


def test_a_certificate_that_ran_out_is_asked_for_anew(services: Sigstore) -> None:
    services.lifetime_s = 2
    signer = SigstoreSigner()
    first, second = (json.loads(signer.sign(statement_for("sha256:" + x * 64))) for x in "ab")
    time.sleep(2.1)
    third = json.loads(signer.sign(statement_for("sha256:" + "c" * 64)))
    serials = [b["verificationMaterial"]["certificate"]["rawBytes"] for b in (first, second, third)]
    assert serials[0] == serials[1] != serials[2]


def test_nobody_to_sign_as(services: Sigstore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    with pytest.raises(HostError, match="may not ask for its identity") as caught:
        SigstoreSigner()
    assert "id-token: write" in caught.value.remedy
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(HostError, match="no identity to sign as"):
        SigstoreSigner()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("code", ["a-code\n", "another\n", ""])
def test_who_sits_at_a_terminal_is_asked(
    services: Sigstore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.setattr(webbrowser, "open", lambda *_: False)
    monkeypatch.setattr(sys, "stdin", Terminal(code))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    signer = SigstoreSigner()
    if code.strip() != services.code:
        with pytest.raises(UpstreamError if code else HostError) as caught:
            signer.sign(statement_for("sha256:" + "a" * 64))
        assert ("not this code" if code else "no identity to sign as") in str(caught.value)
        return
    assert b"dsseEnvelope" in signer.sign(statement_for("sha256:" + "a" * 64))
    said = capsys.readouterr()
    assert said.out == ""  # it may be a file of JSON
    assert f"{services.url}/oidc/authorization_endpoint" in said.err
    assert "Enter verification code" in said.err


def test_without_a_network_signing_ends_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UpstreamError, match="cannot be reached") as caught:
        SigstoreSigner()
    assert "--sign" in caught.value.remedy


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what the public services signed."""
    store = Store(default_cache())
    try:
        Workspace(ROOT, store).fetch([SDIST])
    except UpstreamError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{SDIST.name} is out of reach: {error.what}")
    folder = tmp_path_factory.mktemp("assets")
    with tarfile.open(store.path(SDIST)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "pypi_attestations-0.0.30/test/assets"


def public_bundle(file: Path) -> Any:
    """Return a bundle; an attestation of PEP 740 holds the same in another arrangement."""
    data = json.loads(file.read_text())
    if "mediaType" in data:
        return data
    material, envelope = data["verification_material"], data["envelope"]
    return {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {
            "certificate": {"rawBytes": material["certificate"]},
            "tlogEntries": material["transparency_entries"],
        },
        "dsseEnvelope": {
            "payload": envelope["statement"],
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": envelope["signature"]}],
        },
    }


def signer_in(bundle: Any) -> tuple[str, str]:
    """Return whom the certificate names, and the issuer in its newer extension."""
    raw = base64.b64decode(bundle["verificationMaterial"]["certificate"]["rawBytes"])
    extensions = x509.load_der_x509_certificate(raw).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    issuer = extensions.get_extension_for_oid(ISSUER_V2).value
    assert isinstance(issuer, x509.UnrecognizedExtension)
    return str(next(iter(names)).value), issuer.value[2:].decode()  # a DER UTF8String


def no_network(*_: object) -> None:
    raise AssertionError("verification uses the network")


@pytest.mark.parametrize("name", PUBLIC)
def test_what_the_public_services_signed_is_verified_offline(
    name: str, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = public_bundle(assets / name)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    keyless = keyless_of(*signer_in(bundle))
    assert keyless is not None
    verify = keyless.verifier.verify
    data = json.dumps(bundle).encode()
    signed = verify(data, keyless.identity, "x")
    assert signed.payload == base64.b64decode(bundle["dsseEnvelope"]["payload"])
    others = [signer_in(public_bundle(assets / other)) for other in PUBLIC if other != name]
    for other in others:
        else_ = keyless_of(*other)
        assert else_ is not None
        with pytest.raises(IntegrityError, match="somebody else"):
            verify(data, else_.identity, "x")
    for change in (moved, other_signature, no_entry, other_time, other_body):
        altered = json.loads(data)
        change(altered, "sha256:" + "a" * 64)
        with pytest.raises(IntegrityError, match="does not hold"):
            verify(json.dumps(altered).encode(), keyless.identity, "x")


def test_what_the_staging_services_signed_is_nothing_to_the_public_ones(assets: Path) -> None:
    bundle = public_bundle(assets / STAGING)
    keyless = keyless_of(*signer_in(bundle))
    assert keyless is not None
    with pytest.raises(IntegrityError, match="of another sigstore"):
        keyless.verifier.verify(json.dumps(bundle).encode(), keyless.identity, "x")


def test_what_somebody_signed_about_a_file_is_no_signature_of_an_image(
    assets: Path, pushed: Pushed
) -> None:
    bundle = public_bundle(assets / PUBLIC[0])
    put(pushed, bundle)
    with pytest.raises(IntegrityError, match="no keyless signature"):
        check(pushed, *signer_in(bundle))


@pytest.mark.engine
def test_a_push_signs_every_manifest_and_a_pull_asks_for_it(
    services: Sigstore, tmp_path: Path
) -> None:
    plan = tiny_plan()
    request = Request(cuda="12.4", triton="stock", torch="none", archs=("sm_80",))
    with running_registry(tmp_path / "registry") as running, buildah_host(tmp_path) as host:
        load_tiny(plan, host.engine, tmp_path)
        at = f"{running.host}/team/tdstack"
        workspace = Workspace(ROOT, Store(host.cache))
        options = verbs.PushOptions(at, keyless=True)
        report = verbs.push(workspace, request, ANYWHERE, "buildah", options, as_json=False)
        assert [line.partition(" ")[0] for line in report.attached][-1] == "keyless"
        home = parse_repository(at)
        names = [layer_reference(home, layer) for layer in plan.layers]
        assert services.signed == len(names) + 1
        keyless = keyless_of(WE, GITHUB)
        assert keyless is not None
        registry = Registry(running.host)
        for name in (*names, Reference(home, full_tag(plan))):
            image = resolve(registry, name, "linux/amd64")[0]
            assert keyless.check(registry, name.repository, image) == keyless.identity
        host.wipe()
        pull = (Workspace(ROOT, Store(host.cache)), request, ANYWHERE, "buildah")
        other = keyless_of(WE, "https://gitlab.com")
        with pytest.raises(IntegrityError, match="somebody else"):
            verbs.pull(*pull, registry=at, key="", keyless=other, force=True, as_json=False)
        assert not host.names()
        done = verbs.pull(*pull, registry=at, key="", keyless=keyless, force=False, as_json=False)
        assert done.signed_by == f"{WE} ({GITHUB})"
