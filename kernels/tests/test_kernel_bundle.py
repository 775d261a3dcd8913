"""Bundles are read whole or refused, and found where wheels put them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_bundles import LARGE, SMALL, write_bundle
from made_cubins import maker_for

import gemm_allreduce
from gemm_allreduce.bundle import (
    BundleError,
    CubinIntegrityError,
    MissingCubinError,
    installed_bundles,
    named_bundle,
    read_bundle,
)


def test_a_bundle_is_read(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path))
    bundle.require_current()
    assert (bundle.cuda, bundle.triton) == ("12.4", "3.4.0+dist.0a1b")
    assert bundle.archs == ("sm_80", "sm_90")
    for arch in bundle.archs:
        for variant in (SMALL, LARGE):
            record = bundle.record(variant.name, arch)
            assert bundle.read(record) == maker_for(variant, arch).cubin()


def test_what_is_lacking_is_named(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path, variants=[SMALL]))
    with pytest.raises(MissingCubinError, match=f"has no {LARGE.name} for sm_90"):
        bundle.record(LARGE.name, "sm_90")
    with pytest.raises(MissingCubinError, match="is for sm_80, sm_90, not for sm_100"):
        bundle.record(SMALL.name, "sm_100")


def _set_first(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["cubins"][0].__setitem__(field, value)


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no version": (lambda m: m.pop("version"), "damaged: KeyError: 'version'"),
    "cubins no list": (lambda m: m.update(cubins=3), "damaged: TypeError"),
    "a field too few": (lambda m: m["cubins"][0].pop("sha256"), "damaged: ValueError: a cubin has"),
    "a field too many": (_set_first("more", 1), "damaged: ValueError: a cubin has"),
    "a number as text": (_set_first("shared", "3"), "shared of a cubin is '3'"),
    "a truth as number": (_set_first("cooperative", 1), "cooperative of a cubin is 1"),
    "above the folder": (_set_first("file", "../other.cubin"), "outside of the bundle"),
    "an absolute path": (_set_first("file", "/etc/passwd"), "outside of the bundle"),
    "twice": (lambda m: m["cubins"].append(m["cubins"][0]), "names a cubin twice"),
    "schema": (lambda m: m.update(schema=3), "has schema 3 of gemm_allreduce"),
    "package": (lambda m: m.update(package="other"), "has schema 2 of other"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_refused(name: str, tmp_path: Path) -> None:
    damage, words = DAMAGES[name]
    path = write_bundle(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    damage(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        read_bundle(tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_manifest_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest.json cannot be read: No such file"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(BundleError, match="is damaged: UnicodeDecodeError"):
        read_bundle(tmp_path)


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path))
    record = bundle.record(SMALL.name, "sm_90")
    path = tmp_path / record.file
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CubinIntegrityError, match=f"was changed: .* {record.sha256}"):
            bundle.read(record)
    path.write_bytes(whole[:-1])
    with pytest.raises(CubinIntegrityError, match=f"{len(whole) - 1} bytes; the manifest has"):
        bundle.read(record)
    path.unlink()
    with pytest.raises(CubinIntegrityError, match="cannot be read"):
        bundle.read(record)


def test_a_cubin_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    of_80, of_90 = (
        next(c for c in manifest["cubins"] if (c["name"], c["arch"]) == (SMALL.name, arch))
        for arch in ("sm_80", "sm_90")
    )
    of_90.update({name: of_80[name] for name in ("file", "sha256", "size")})
    path.write_text(json.dumps(manifest))
    bundle = read_bundle(tmp_path)
    with pytest.raises(CubinIntegrityError, match="is for sm_80, the manifest says sm_90"):
        bundle.read(bundle.record(SMALL.name, "sm_90"))


def test_a_bundle_of_another_version_or_other_sources_is_refused(tmp_path: Path) -> None:
    cases = {
        "was compiled from gemm_allreduce 0.0.1, this is": {"version": "0.0.1"},
        "from other sources of the same version (feed": {"sources": "feed" * 16},
        "from other sources of the same version": {"arguments": ["x_ptr"]},
    }
    for number, (words, change) in enumerate(cases.items()):
        bundle = read_bundle(write_bundle(tmp_path / str(number), **change))
        with pytest.raises(BundleError) as caught:
            bundle.require_current()
        assert words in str(caught.value)


def test_a_variable_names_a_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GEMM_AR_CUBINS", raising=False)
    assert named_bundle() is None
    monkeypatch.setenv("GEMM_AR_CUBINS", str(tmp_path))
    assert named_bundle() == tmp_path


def test_bundles_of_several_wheels_are_found(tmp_path: Path) -> None:
    """Two folders on the path, as two environments' site-packages, make one namespace."""
    assert installed_bundles() == []
    first, second = tmp_path / "first", tmp_path / "second"
    write_bundle(first / "gemm_allreduce_cubins" / "cu128", cuda="12.8")
    write_bundle(second / "gemm_allreduce_cubins" / "cu124")
    (second / "gemm_allreduce_cubins" / "left_over").mkdir()
    code = (
        "import sys; from gemm_allreduce.bundle import installed_bundles, read_bundle;"
        "print([read_bundle(folder).cuda for folder in installed_bundles()]);"
        "assert not {'torch', 'triton', 'cuda'} & set(sys.modules)"
    )
    sources = Path(gemm_allreduce.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{sources}:{first}:{second}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "['12.4', '12.8']\n", done.stderr
