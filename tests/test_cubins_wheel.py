"""The wheel of a bundle: what is in it, that it is the same every time, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdstack.assemble.bundle import read_bundle
from tdstack.assemble.cubins import cubins_wheel
from tdstack.errors import HostError, IntegrityError, TdstackError
from tdstack.lock.model import LockedFile
from tdstack.wheelhouse.store import Store
from tests.bundles import write_bundle

BuildWheel = Callable[..., LockedFile]
Damage = Callable[[Path], None]


@pytest.fixture
def build(tmp_path: Path, root: Path, store: Store) -> BuildWheel:
    """Return what builds a bundle's wheel."""

    def built(bundle: Path, cuda: str = "12.4") -> LockedFile:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        file = cubins_wheel(bundle, cuda, root, scratch, store)
        assert not list(scratch.iterdir())
        return file

    return built


def test_wheel_holds_the_bundle_and_nothing_else(
    build: BuildWheel, store: Store, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "sm_80" / "left_over.cubin").write_bytes(b"of an earlier run")
    file = build(bundle)
    assert file.name == "gemm_allreduce_cubins_cu124-0.3.0-py3-none-any.whl"
    with zipfile.ZipFile(store.verify(file)) as wheel:
        names = [n for n in wheel.namelist() if ".dist-info/" not in n]
        place = "gemm_allreduce_cubins/cu124"
        assert sorted(names) == sorted(f"{place}/{f}" for f in read_bundle(bundle).files)
        for name in names:
            assert wheel.read(name) == (bundle / name.removeprefix(f"{place}/")).read_bytes()
        info = "gemm_allreduce_cubins_cu124-0.3.0.dist-info"
        metadata = wheel.read(f"{info}/METADATA").decode()
        assert f"{info}/licenses/LICENSE" in wheel.namelist()
    lines = metadata.splitlines()
    assert {"Name: gemm-allreduce-cubins-cu124", "Version: 0.3.0"} < set(lines)
    assert "License-Expression: Apache-2.0" in lines
    assert "Summary: Cubins of gemm-allreduce, compiled with CUDA 12.4 for sm_80, sm_90" in lines
    required = [line for line in lines if line.startswith("Requires-Dist: ")]
    assert required == ["Requires-Dist: cuda-core<2,>=1.0", "Requires-Dist: gemm-allreduce==0.3.0"]


def test_equal_bundles_give_equal_wheels(build: BuildWheel, tmp_path: Path) -> None:
    first = build(write_bundle(tmp_path / "a"))
    again = write_bundle(tmp_path / "b")
    for path in again.rglob("*"):
        os.utime(path, (1, 1))
        if path.is_file():
            path.chmod(0o600)
    assert build(again) == first
    assert build(write_bundle(tmp_path / "c", archs=["sm_90"])) != first


def _without_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def _with_half_a_manifest(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text()[:200])


def _without_a_file(bundle: Path) -> None:
    (bundle / "sm_90" / "one_shot_bf16_w8.cubin").unlink()


def _with_another_file(bundle: Path) -> None:
    path = bundle / "sm_90" / "one_shot_bf16_w8.cubin"
    path.write_bytes(path.read_bytes().replace(b"sm_90", b"sm_80"))


def _with_a_way_out(bundle: Path) -> None:
    path = bundle / "manifest.json"
    told = json.loads(path.read_text())
    told["cubins"][0]["file"] = "../outside.cubin"
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "kind", "named"),
    [
        (_without_manifest, HostError, "there is no bundle"),
        (_with_half_a_manifest, IntegrityError, "cannot be used"),
        (_without_a_file, IntegrityError, "sm_90/one_shot_bf16_w8.cubin: No such file"),
        (_with_another_file, IntegrityError, "sm_90/one_shot_bf16_w8.cubin: sha256"),
        (_with_a_way_out, IntegrityError, "cubins.0.file"),
    ],
)
def test_damaged_bundle_is_refused(
    build: BuildWheel, tmp_path: Path, damage: Damage, kind: type[TdstackError], named: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    damage(bundle)
    with pytest.raises(kind) as caught:
        build(bundle)
    assert named in str(caught.value)
    assert "invoke compile" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema": 1}, "schema"),
        ({"package": "other"}, "package"),
        ({"version": "0.3.0\nEvil: yes"}, "version"),
        ({"cubins": []}, "cubins"),
        ({"cuda": "12.4-x"}, "cuda"),
    ],
)
def test_other_manifest_is_refused(
    build: BuildWheel, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(IntegrityError, match=named):
        build(write_bundle(tmp_path / "bundle", **changes))


@pytest.mark.parametrize("cuda", ["12.6", ""])
def test_bundle_of_another_line_is_refused(build: BuildWheel, tmp_path: Path, cuda: str) -> None:
    with pytest.raises(IntegrityError, match="another CUDA line") as caught:
        build(write_bundle(tmp_path / "bundle", cuda=cuda))
    assert caught.value.got == (cuda or "none")


def test_two_lines_lie_side_by_side(build: BuildWheel, store: Store, tmp_path: Path) -> None:
    """Real pip: no file has two owners, and one line goes without the other."""
    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    for cuda in ("12.4", "12.8"):
        file = build(write_bundle(tmp_path / cuda, cuda=cuda), cuda)
        named = tmp_path / file.name
        named.symlink_to(store.path(file))
        _pip(tmp_path, "install", "--no-deps", "--no-index", str(named))
    owned = [
        {line.split(",")[0] for line in record.read_text().splitlines()}
        for record in site.glob("*.dist-info/RECORD")
    ]
    assert len(owned) == 2
    assert not owned[0] & owned[1]
    _pip(tmp_path, "uninstall", "--yes", "gemm-allreduce-cubins-cu124")
    assert [p.name for p in (site / "gemm_allreduce_cubins").iterdir()] == ["cu128"]
    assert read_bundle(site / "gemm_allreduce_cubins" / "cu128").cuda == "12.8"


def _pip(folder: Path, *words: str) -> None:
    python = str(folder / "env" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
