"""`invoke verify REF` and `invoke sbom`: every finding has a fault that brings it about."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tdstack.attest.attach import attach
from tdstack.attest.examine import Options, examine
from tdstack.attest.inside import MANIFEST, read_engine
from tdstack.attest.keys import Signer
from tdstack.attest.report import Finding, ImageReport, judged
from tdstack.attest.verbs import is_local
from tdstack.engines.base import Engine, RunRequest, RunResult
from tdstack.errors import CheckFailed, IntegrityError, UpstreamError
from tdstack.plan import PREFIX, slice_of
from tdstack.registry.client import Registry
from tdstack.registry.oci import ImageManifest
from tdstack.registry.reference import Reference, Repository
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.attested import ROOT, Pushed, kernels_files, planned, planned_on, signer_of
from tests.json_schema import errors
from tests.registries import RunningRegistry, plain_registry, running_registry  # noqa: F401

ONE, TWO = signer_of(1), signer_of(2)
KEYS = (ONE.public,)
SHORT = "cu124-stock-torch-none-sm_80"
_NUMBERS = count()


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDSTACK_CACHE", str(tmp_path / "cache"))
    for name in ("TDSTACK_KEY", "TDSTACK_SIGN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(plain_registry: RunningRegistry) -> tuple[Registry, Repository]:  # noqa: F811
    repository = Repository(plain_registry.host, f"verify/{next(_NUMBERS)}")
    return Registry(plain_registry.host, say=lambda _: None), repository


@pytest.fixture
def pushed(place: tuple[Registry, Repository]) -> Pushed:
    made = Pushed(*place, planned())
    vouch(made)
    return made


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[tuple[Pushed, RunningRegistry]]:
    """Return an image in a registry of its own, whose files may be changed."""
    with running_registry(tmp_path / "registry") as running:
        host = running.host
        made = Pushed(Registry(host, say=lambda _: None), Repository(host, "x"), planned())
        vouch(made)
        yield made, running


def vouch(pushed: Pushed, signer: Signer | None = ONE) -> None:
    where = (pushed.registry, pushed.repository, pushed.image)
    attach(*where, plan=pushed.plan, signer=signer, engine="buildah 1")


def report_on(
    pushed: Pushed,
    tag: str = SHORT,
    keys: Sequence[object] = KEYS,
    root: Path = ROOT,
    deep: bool = False,
) -> ImageReport:
    workspace = Workspace(root, Store(Path(os.environ["TDSTACK_CACHE"])))
    digest = "" if tag else pushed.image.digest
    reference = Reference(pushed.repository, tag, digest)
    options = Options(keys, deep=deep)  # type: ignore[arg-type]
    return examine(workspace, pushed.registry, reference, options)


def states(report: ImageReport) -> dict[str, str]:
    return {f.check: f.state for f in report.findings}


def failures(report: ImageReport) -> dict[str, Finding]:
    return {f.check: f for f in report.findings if f.state == "FAIL"}


ALL = (
    *("digest", "signature", "configuration", "contents", "labels"),
    *("plan", "lock", "tag", "provenance", "sbom"),
)


@pytest.mark.parametrize(
    ("cuda", "flavour"), [("12.4", "stock"), ("12.9", "distributed"), ("13.0", "stock")]
)
def test_a_true_image(cuda: str, flavour: str, place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(cuda, flavour))
    vouch(pushed)
    for tag in (*(t.rpartition(":")[2] for t in pushed.plan.final.tags), ""):
        report = report_on(pushed, tag, deep=True)
        assert states(report) == dict.fromkeys(ALL, "ok")
        assert report.code == 0
        assert report.signed_by == ONE.public.fingerprint


@pytest.mark.parametrize("base", ["image", "cpython"])
def test_a_true_image_on_another_base(base: str, place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned_on(base))
    vouch(pushed)
    report = report_on(pushed, tag="")
    assert states(report) == dict.fromkeys(ALL, "ok")


def test_without_a_key_nobody_vouches(pushed: Pushed, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_on(pushed, keys=())
    assert states(report) == {**dict.fromkeys(ALL, "ok"), "signature": "not checked"}
    detail = next(f.detail for f in report.findings if f.check == "signature")
    assert ONE.public.fingerprint in detail
    judged(report, as_json=False)
    assert "nobody vouches for this image" in capsys.readouterr().err


def test_an_image_that_nobody_signed(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned())
    vouch(pushed, None)
    assert report_on(pushed, keys=()).code == 0
    found = failures(report_on(pushed))
    assert found.keys() == {"signature", "provenance"}
    assert {f.code for f in found.values()} == {4}


def test_a_foreign_key(pushed: Pushed) -> None:
    report = report_on(pushed, keys=(TWO.public,))
    assert failures(report).keys() == {"signature", "provenance"}
    assert states(report)["sbom"] == "not checked"
    assert report.code == 4
    assert report.signed_by == ""


def test_a_bare_image(place: tuple[Registry, Repository]) -> None:
    found = failures(report_on(Pushed(*place, planned())))
    assert found.keys() == {"signature", "provenance"}
    assert "was removed" in found["signature"].detail


def test_a_tag_that_was_moved(pushed: Pushed) -> None:
    document = pushed.registry.document(pushed.repository, pushed.image.digest)
    assert document is not None
    for tag, fails in [("cu126-stock", True), ("cu124", True), ("production", False)]:
        pushed.registry.put_document(pushed.repository, tag, document)
        found = failures(report_on(pushed, tag))
        assert found.keys() == ({"tag"} if fails else set())
        assert all(f.code == 4 and "somebody moved the tag" in f.remedy for f in found.values())


@pytest.mark.parametrize(
    ("name", "text"),
    [("cuda", "12.9"), ("archs", "sm_90"), ("lock-slice", "0" * 64), ("driver", ">=1")],
)
def test_labels_that_lie(name: str, text: str, place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(), labels={f"io.tdstack.{name}": text})
    vouch(pushed)
    found = failures(report_on(pushed))
    assert found.keys() == {"labels"}
    assert f"io.tdstack.{name} is {text}" in found["labels"].detail
    assert found["labels"].code == 4


def test_a_label_of_other_blobs(place: tuple[Registry, Repository]) -> None:
    for text in ("[]", "{", '[["00", 1, "x"]]'):
        pushed = Pushed(*place, planned(), labels={"io.tdstack.blobs": text})
        assert "labels" in failures(report_on(pushed))


def other_checkout(folder: Path) -> Path:
    """Return a checkout that a test may change."""
    folder.mkdir()
    for name in ("images", "kernels"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tdstack").symlink_to(ROOT / "tdstack")  # the recipe of the kernels copies from it
    shutil.copy(ROOT / "versions.lock", folder)
    return folder


def test_an_image_of_another_lock(pushed: Pushed, tmp_path: Path) -> None:
    checkout = other_checkout(tmp_path / "checkout")
    pip = next(p for p in pushed.plan.stack.all_packages() if p.name == "pip")
    assert pip.file is not None
    text = (checkout / "versions.lock").read_text()
    (checkout / "versions.lock").write_text(text.replace(pip.file.sha256, "0" * 64))
    report = report_on(pushed, root=checkout)
    found = failures(report)
    assert found.keys() == {"lock"}
    assert "pip 26" in found["lock"].detail
    assert report.code == 1
    provenance = next(f.detail for f in report.findings if f.check == "provenance")
    assert "another versions.lock" in provenance


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("images/base/recipe.toml", "a layer below the kernels differs"),
        ("images/kernels/recipe.toml", "the kernels layer differs"),
    ],
)
def test_an_image_of_other_recipes(file: str, words: str, pushed: Pushed, tmp_path: Path) -> None:
    checkout = other_checkout(tmp_path / "checkout")
    with (checkout / file).open("a") as recipe:
        recipe.write("# changed\n")
    found = failures(report_on(pushed, root=checkout))
    assert found.keys() == {"lock"}
    assert words in found["lock"].detail
    assert found["lock"].code == 1


def test_a_line_that_this_checkout_does_not_have(pushed: Pushed, tmp_path: Path) -> None:
    checkout = other_checkout(tmp_path / "checkout")
    lock = json.loads((checkout / "versions.lock").read_text())
    del lock["lines"]["12.4"]
    (checkout / "versions.lock").write_text(json.dumps(lock))
    report = report_on(pushed, root=checkout)
    assert failures(report).keys() == {"plan"}
    assert states(report)["lock"] == states(report)["tag"] == "not checked"
    assert report.code == 1


def test_a_provenance_of_other_sources(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned())
    layers = tuple(
        type(layer)(**{**vars(layer), "recipe_digest": "0" * 64}) for layer in pushed.plan.layers
    )
    pushed.plan = type(pushed.plan)(**{**vars(pushed.plan), "layers": layers})
    vouch(pushed)
    found = failures(report_on(pushed))
    assert found.keys() == {"provenance"}
    assert "images/base" in found["provenance"].detail


def test_an_image_whose_slice_is_not_its_labels(place: tuple[Registry, Repository]) -> None:
    slice_ = json.loads(json.dumps(slice_of(planned().stack)))
    slice_["layers"]["base"][0]["version"] = "1.0"
    found = failures(report_on(Pushed(*place, planned(), slice_=slice_)))
    assert "io.tdstack.lock-slice" in found["labels"].detail
    assert "pip 1.0, here" in found["lock"].detail


def test_a_blob_that_is_gone_or_rotted(
    damaged: tuple[Pushed, RunningRegistry],
) -> None:
    pushed, registry = damaged
    file = registry.blob(pushed.manifest.layers[0].digest)
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert report_on(pushed).code == 0  # not read without --deep
    assert failures(report_on(pushed, deep=True)).keys() == {"digest"}
    file.unlink()
    found = failures(report_on(pushed))
    assert found.keys() == {"digest"}
    assert found["digest"].code == 4


def test_the_kernels_layer_is_always_read(
    damaged: tuple[Pushed, RunningRegistry],
) -> None:
    pushed, registry = damaged
    file = registry.blob(pushed.manifest.layers[1].digest)
    data = file.read_bytes()
    file.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
    found = failures(report_on(pushed))
    assert found.keys() == {"contents"}
    assert found["contents"].code == 4


def test_an_image_of_a_layer(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(), labels={"io.tdstack.layer": "torch"})
    attach(pushed.registry, pushed.repository, pushed.image, plan=None, signer=ONE)
    report = report_on(pushed)
    assert report.code == 0
    assert states(report)["contents"] == "not checked"


def test_somebody_elses_image(place: tuple[Registry, Repository]) -> None:
    pushed = Pushed(*place, planned(), labels={"io.tdstack.layer": ""})
    report = report_on(pushed, keys=())
    assert failures(report).keys() == {"contents"}
    assert report.code == 1


def test_an_image_for_another_platform(pushed: Pushed) -> None:
    workspace = Workspace(ROOT, Store(Path(os.environ["TDSTACK_CACHE"])))
    reference = Reference(pushed.repository, SHORT)
    report = examine(workspace, pushed.registry, reference, Options(KEYS, platform="linux/arm64"))
    assert failures(report).keys() == {"configuration"}


def test_no_such_image(pushed: Pushed) -> None:
    with pytest.raises(UpstreamError, match="no such image"):
        report_on(pushed, "absent")


def test_the_worst_finding_is_the_error(pushed: Pushed) -> None:
    report = report_on(pushed)
    report.failed("lock", CheckFailed("a check"))
    with pytest.raises(CheckFailed, match="a check"):
        judged(report, as_json=False)
    report.failed("labels", IntegrityError("bytes", expected="one", got="two", remedy="do this"))
    with pytest.raises(IntegrityError, match="bytes; expected one; got two") as caught:
        judged(report, as_json=False)
    assert caught.value.remedy == "do this"
    assert caught.value.got == "lock: a check"
    details = caught.value.details
    assert details is not None
    assert details["exit_code"] == 4


def test_which_names_are_an_engines() -> None:
    assert all(is_local(ref) for ref in ("localhost/tdstack:cu124", "tdstack:cu124", "a/b"))
    assert not any(is_local(ref) for ref in ("localhost:5000/tdstack:x", "reg.example/tdstack:x"))


class OwnPython:
    """An engine whose images are folders, and whose containers run this Python in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, request: RunRequest) -> RunResult:
        """Run the program with the image's paths below the folder."""
        program = request.command[-1].replace(f'"/{PREFIX}', f'"{self._folder}/{PREFIX}')
        command = [sys.executable, *request.command[1:-1], program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = done.stdout.replace(f"{self._folder}/"[1:], "")
        return RunResult(done.returncode, told, done.stderr)


def test_an_image_in_an_engine_says_the_same(tmp_path: Path) -> None:
    plan = planned(triton="distributed")
    for name, content in kernels_files(plan).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    inside = read_engine(cast(Engine, OwnPython(tmp_path)), "localhost/tdstack:x")
    assert inside.slice.digest == plan.lock_slice
    assert inside.kernels.cubins == dict(plan.cubins)
    assert inside.kernels.record
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(CheckFailed, match="no image of tdstack"):
        read_engine(cast(Engine, OwnPython(tmp_path)), "localhost/tdstack:x")


def invoke(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("invoke")), *arguments]
    env: Mapping[str, str] = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def key_files(folder: Path, signer: Signer) -> tuple[str, str]:
    private, public = folder / "KEY.pem", folder / "KEY.pub"
    key = signer._key
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return str(private), str(public)


def test_the_verb(pushed: Pushed, tmp_path: Path) -> None:
    ref = f"{pushed.repository}:{SHORT}"
    _, public = key_files(tmp_path, ONE)
    done = invoke("verify", ref, "--key", public, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["digest"] == pushed.image.digest
    assert report["signed_by"] == ONE.public.fingerprint
    assert [f["check"] for f in report["findings"]] == list(ALL)
    _, foreign = key_files(tmp_path, TWO)
    done = invoke("verify", ref, "--json", TDSTACK_KEY=foreign)
    assert done.returncode == 4
    error = json.loads(done.stdout)
    assert error["details"]["exit_code"] == 4
    assert "foreign key" in error["what"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["localhost:1/x:y", "--prefix", "/"], 2, "alone"),
        (["localhost:1/x:y", "--wheel", "x.whl"], 2, "alone"),
        (["localhost:1/x:y", "--fix"], 2, "alone"),
        (["localhost:1/x"], 2, "names no image"),
        (["localhost:1/x:y", "--platform", "windows"], 2, "linux/amd64"),
        (["localhost:1/x:y", "--key", "/nonexistent"], 2, "the key cannot be read"),
        (["localhost/tdstack:x", "--key", str(ROOT / "README.md")], 2, "no key"),
        (["--key", "x", "--prefix", "/"], 2, "environments are not signed"),
        ([], 2, "nothing to verify is named"),
    ],
)
def test_what_the_verb_refuses(arguments: list[str], code: int, words: str) -> None:
    done = invoke("verify", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_the_bill_of_a_plan_and_of_its_image(pushed: Pushed, tmp_path: Path) -> None:
    options = ["--cuda", "12.4", "--triton", "stock", "--torch", "none", "--arch", "sm_80"]
    done = invoke("sbom", *options)
    assert done.returncode == 0, done.stderr
    planned_bill = json.loads(done.stdout)
    assert errors(planned_bill, "bom-1.6") == []
    out = tmp_path / "sbom.json"
    done = invoke("sbom", "--image", f"{pushed.repository}:{SHORT}", "--out", str(out))
    assert (done.returncode, done.stdout) == (0, "")
    bill = json.loads(out.read_text())
    assert errors(bill, "bom-1.6") == []
    component = bill["metadata"]["component"]
    assert component["hashes"][0]["content"] == pushed.image.sha256
    assert component["version"] == planned_bill["metadata"]["component"]["version"]
    assert [c for c in bill["components"] if "tdstack" not in c["purl"]] == [
        c for c in planned_bill["components"] if "tdstack" not in c["purl"]
    ]
    assert list(tmp_path.glob(".sbom*")) == []
    assert invoke("sbom", "--out", "/nonexistent/x").returncode == 2
    attached = pushed.registry.referrers(
        pushed.repository, pushed.image.digest, "application/vnd.cyclonedx+json"
    )
    document = pushed.registry.document(pushed.repository, attached[0].digest)
    assert document is not None
    blob = ImageManifest.parse(document.data).layers[0]
    assert pushed.registry.get_blob(pushed.repository, blob) == out.read_bytes()
