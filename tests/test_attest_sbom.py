"""The bill of materials: valid CycloneDX, complete, exact, the same bytes for the same image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tdstack.attest.check import check_sbom
from tdstack.attest.contents import contents_of, planned_contents, planned_kernels
from tdstack.attest.inside import inside_of
from tdstack.attest.licences import licences_of
from tdstack.attest.lockslice import LockSlice, parse_slice
from tdstack.attest.sbom import Subject, render_sbom
from tdstack.errors import IntegrityError
from tdstack.lock.model import Lock
from tdstack.plan import Plan, make_plan, slice_of
from tdstack.stack import FLAVOURS, Request, make_stack
from tdstack.wheelhouse.store import Store, file_of
from tests.attested import FORK, kernels_files, planned, planned_on
from tests.conftest import MakeWheel
from tests.json_schema import errors

DIGEST = f"sha256:{'d' * 64}"
LINES = ["12.4", "12.6", "12.8", "12.9", "13.0"]
WHOLE = [(c, f) for c in LINES for f in FLAVOURS if (c, f) != ("13.0", "distributed")]


def bill_of(plan: Plan, lock: Lock, licences: Mapping[str, str] = {}) -> dict[str, Any]:
    data = rendered(plan, lock, licences)
    bill: dict[str, Any] = json.loads(data)
    return bill


def rendered(plan: Plan, lock: Lock, licences: Mapping[str, str] = {}) -> bytes:
    contents = planned_contents(plan, "0.3.0")
    subject = Subject("cu124-stock", plan.final.key, DIGEST)
    return render_sbom(contents, subject, lock.triton_distributed, licences)


def whole(lock: Lock, root: Path, cuda: str, flavour: str) -> Plan:
    fork = FORK if flavour == "distributed" else None
    return make_plan(make_stack(lock, Request(cuda, flavour, fork=fork)), root)


def by_purl(bill: dict[str, Any]) -> dict[str, dict[str, Any]]:
    components = {c["purl"].partition("?")[0]: c for c in bill["components"]}
    assert len(components) == len(bill["components"])
    return components


def told(component: dict[str, Any]) -> dict[str, str]:
    return {p["name"].removeprefix("tdstack:"): p["value"] for p in component["properties"]}


@pytest.mark.parametrize(("cuda", "flavour"), WHOLE)
def test_every_line_is_valid_and_has_each_entry_of_the_lock_once(
    cuda: str, flavour: str, lock: Lock, root: Path
) -> None:
    plan = whole(lock, root, cuda, flavour)
    bill = bill_of(plan, lock)
    assert errors(bill, "bom-1.6") == []
    listed = [h["content"] for c in bill["components"] for h in c.get("hashes", ())]
    assert sorted(listed) == sorted(
        [
            *(f.sha256 for f in plan.files),
            *([plan.stack.rootfs.tar.sha256] if plan.stack.rootfs else []),
        ]
    )
    named = {(c["name"], c["version"]) for c in bill["components"]}
    assert {(p.name, p.version) for p in plan.stack.all_packages()} <= named
    assert len(bill["components"]) == len(plan.files) + 3  # the tar, the kernels, their cubins


def test_the_validator_finds_what_is_wrong(lock: Lock) -> None:
    bill = bill_of(planned(), lock)
    bill["components"][0]["type"] = "nonsense"
    bill["components"][1]["hashes"][0]["content"] = "12"
    del bill["components"][2]["name"]
    bill["more"] = 1
    found = errors(bill, "bom-1.6")
    assert [f.partition(":")[0] for f in found] == [
        "$.components[0].type",
        "$.components[1].hashes[0].content",
        "$.components[2]",
        "$.more",
    ]


def test_equal_images_have_equal_bills_and_no_clock_is_read(lock: Lock) -> None:
    one, other = rendered(planned(), lock), rendered(planned(), lock)
    assert one == other
    assert b"timestamp" not in one
    serials = {
        Subject("t", "k", digest=d, image_id=i).serial
        for d, i in [("", ""), (DIGEST, ""), ("", "i")]
    }
    assert len(serials) == 3
    assert f"urn:uuid:{Subject('t', 'k', DIGEST).serial}" == json.loads(one)["serialNumber"]


def test_the_fork_says_where_it_comes_from(lock: Lock) -> None:
    triton = by_purl(bill_of(planned(triton="distributed"), lock))[
        "pkg:pypi/triton@3.4.0%2Bdist.0123abcd"
    ]
    assert told(triton)["complete"] == "false"
    assert triton["hashes"] == [{"alg": "SHA-256", "content": FORK.file.sha256}]
    (built,) = triton["pedigree"]["ancestors"]
    assert built["hashes"] == [{"alg": "SHA-256", "content": FORK.source.sha256}]
    assert triton["pedigree"]["commits"] == [{"uid": FORK.source.commit}]
    # 1512a811 begins the pinned commit, so the pinned repository is where it is from.
    assert triton["externalReferences"][0]["url"] == lock.triton_distributed.repository


def test_a_wheel_of_unknown_sources_is_not_said_to_be_of_the_pinned_ones(
    lock: Lock, root: Path
) -> None:
    source = FORK.source.model_copy(update={"commit": ""})
    fork = type(FORK)(FORK.file, FORK.version, FORK.alias, source)
    plan = make_plan(make_stack(lock, Request(torch="none", fork=fork)), root)
    triton = by_purl(bill_of(plan, lock))["pkg:pypi/triton@3.4.0%2Bdist.0123abcd"]
    assert "externalReferences" not in triton
    assert "commits" not in triton["pedigree"]
    assert told(triton)["complete"] == "true"


def test_a_fork_that_is_not_there_yet_has_no_hash_but_its_commit(lock: Lock, root: Path) -> None:
    plan = make_plan(make_stack(lock, Request(torch="none")), root)
    version = f"3.4.0%2Bdist.{lock.triton_distributed.commit[:8]}"
    triton = by_purl(bill_of(plan, lock))[f"pkg:pypi/triton@{version}"]
    assert "hashes" not in triton
    assert triton["pedigree"]["commits"] == [{"uid": lock.triton_distributed.commit}]


def test_another_base_is_named_by_its_digest(lock: Lock) -> None:
    bill = bill_of(planned_on("image"), lock)
    assert errors(bill, "bom-1.6") == []
    base = next(c for c in bill["components"] if c["type"] == "container")
    assert base["name"] == "docker.io/library/ubuntu"
    assert base["hashes"][0]["content"] == "b" * 64
    assert not any(c["purl"].startswith("pkg:deb") for c in bill["components"])


def test_a_stand_alone_python_is_listed(lock: Lock) -> None:
    bill = bill_of(planned_on("cpython"), lock)
    assert errors(bill, "bom-1.6") == []
    (python,) = [c for c in bill["components"] if c["type"] == "platform"]
    assert (python["version"], python["hashes"][0]["content"]) == ("3.12", "5" * 64)


def test_the_kernels_and_what_compiled_them(lock: Lock) -> None:
    plan = planned()
    cubins = by_purl(bill_of(plan, lock))["pkg:generic/tdstack/gemm-allreduce-cubins-cu124@0.3.0"]
    assert told(cubins) == {
        "layer": "kernels",
        "cubins:sm_80": str(plan.cubins["sm_80"]),
        "ptxas": "12.4.131",
        "triton": "3.4.0",
    }
    nvcc = by_purl(bill_of(plan, lock))["pkg:pypi/nvidia-cuda-nvcc-cu12@12.4.131"]
    assert told(nvcc)["toolkit"] == "CUDA 12.4"


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0\n", {"expression": "MIT OR Apache-2.0"}),
        ("License: BSD-3-Clause\n", {"license": {"id": "BSD-3-Clause"}}),
        ("License: do what you like\n", {"license": {"name": "do what you like"}}),
        (
            f"License: {'long text ' * 40}\nClassifier: License :: OSI Approved :: MIT License\n",
            {"license": {"name": "MIT License"}},
        ),
        ("Classifier: License :: A\nClassifier: License :: B\n", None),
        ("License: UNKNOWN\n", None),
    ],
)
def test_licences_are_what_a_wheel_says(
    metadata: str,
    licence: dict[str, object] | None,
    lock: Lock,
    store: Store,
    tmp_path: Path,
    make_wheel: MakeWheel,
) -> None:
    head = f"Metadata-Version: 2.4\nName: pip\nVersion: 1\n{metadata}\n"
    wheel = make_wheel(tmp_path, "pip", "1", {"pip.py": "", "{info}/METADATA": head})
    file = file_of(wheel)
    store.admit(wheel, file, origin="a test", move=True)
    contents = planned_contents(planned(), "0.3.0")
    pip = next(m for m in contents.materials if m.name == "pip")
    one = type(pip)(**{**vars(pip), "sha256": file.sha256, "file": file.name})
    found = licences_of([one, *contents.materials], store)  # of the others there are no wheels
    assert set(found) == ({file.sha256} if licence else set())
    licences = {pip.sha256: found[file.sha256]} if licence else {}
    bill = bill_of(planned(), lock, licences)
    assert by_purl(bill)[pip.purl].get("licenses") == ([licence] if licence else None)
    assert errors(bill, "bom-1.6") == []


def test_an_images_slice_gives_the_plans_bill(lock: Lock) -> None:
    plan = planned(triton="distributed")
    text = json.dumps(slice_of(plan.stack), indent=1, sort_keys=True)
    slice_ = parse_slice(text.encode(), "here")
    assert slice_.digest == plan.lock_slice
    kernels = planned_kernels(slice_, plan.cubins, "0.3.0")
    subject = Subject("cu124-stock", plan.final.key, DIGEST)
    contents = contents_of(slice_, kernels, lock.rootfs)
    assert render_sbom(contents, subject, lock.triton_distributed) == rendered(plan, lock)


def test_a_base_that_this_lock_does_not_know_is_listed_by_version(lock: Lock) -> None:
    plan = planned()
    slice_ = LockSlice.model_validate(slice_of(plan.stack))
    contents = contents_of(slice_, planned_kernels(slice_, plan.cubins, "0.3.0"))
    debs = [m for m in contents.materials if m.kind == "deb"]
    assert len(debs) == len(slice_.base.packages)
    assert {m.sha256 for m in debs} == {""}
    # A bill with hashes is still this image's.
    check_sbom(rendered(plan, lock), DIGEST, contents, "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layers"), "layers"),
        (lambda s: s.update(schema=2), "schema"),
        (lambda s: s.update(extra=1), "extra"),
        (lambda s: s["layers"]["base"][0].update(sha256="12"), "sha256"),
    ],
)
def test_a_slice_that_does_not_fit_is_named(change: Any, words: str) -> None:
    data = json.loads(json.dumps(slice_of(planned().stack)))
    change(data)
    with pytest.raises(IntegrityError) as caught:
        parse_slice(data, "here")
    assert words in caught.value.got


def test_a_slice_that_is_no_json() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        parse_slice(b"{", "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: b["components"].pop(3), "is not listed"),
        (
            lambda b: b["components"].append({"purl": "pkg:pypi/evil@1", "name": "evil"}),
            "evil@1 is not in",
        ),
        (lambda b: b["components"][5]["hashes"][0].update(content="0" * 64), "sha256 000000000000"),
        (lambda b: b["components"][5].pop("hashes"), "no hash"),
        (lambda b: b["components"].append(b["components"][0]), "listed twice"),
        (lambda b: b.update(specVersion="1.4"), "1.4"),
        (lambda b: b["metadata"]["component"]["hashes"][0].update(content="e" * 64), "eeee"),
        (lambda b: b["metadata"]["component"].pop("hashes"), "no image"),
        (lambda b: cubins(b)[0].update(value="1"), "the image's is"),
        (
            lambda b: by_purl(b)["pkg:generic/tdstack/gemm-allreduce@0.3.0"].update(
                purl="pkg:generic/x@1"
            ),
            "gemm-allreduce@0.3.0 is not listed",
        ),
    ],
)
def test_a_bill_that_disagrees_with_its_image(change: Any, words: str, lock: Lock) -> None:
    contents = planned_contents(planned(), "0.3.0")
    bill = bill_of(planned(), lock)
    assert check_sbom(json.dumps(bill).encode(), DIGEST, contents, "here") == len(
        bill["components"]
    )
    change(bill)
    with pytest.raises(IntegrityError) as caught:
        check_sbom(json.dumps(bill).encode(), DIGEST, contents, "here")
    assert words in f"{caught.value}"


def cubins(bill: dict[str, Any]) -> list[dict[str, str]]:
    name = "pkg:generic/tdstack/gemm-allreduce-cubins-cu124@0.3.0"
    found: list[dict[str, str]] = by_purl(bill)[name]["properties"]
    return [p for p in found if p["name"].startswith("tdstack:cubins:")]


def test_what_an_image_says_of_itself() -> None:
    plan = planned()
    files = kernels_files(plan)
    inside = inside_of(files, "here")
    assert inside.slice.digest == plan.lock_slice
    assert inside.kernels.cubins == dict(plan.cubins)
    assert (inside.kernels.triton, inside.kernels.ptxas) == ("3.4.0", "12.4.131")
    assert inside.kernels.bundle
    for name in files:
        if name.endswith(("manifest.json", "RECORD")):
            with pytest.raises(IntegrityError, match="lacks what it says"):
                inside_of({n: f for n, f in files.items() if n != name}, "here")
    bundle = next(n for n in files if "cubins" in n)
    with pytest.raises(IntegrityError, match="manifest of the cubins"):
        inside_of({**files, bundle: b"{}"}, "here")
