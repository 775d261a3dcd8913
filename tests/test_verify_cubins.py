"""tdstack-verify on cubins: what is installed, whether it is whole, whether it is the image's."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tdstack.lock.model import Lock
from tdstack.plan import slice_of
from tdstack.stack import Request, make_stack
from tdstack.verify.cubins import AGAIN, check_cubins, differences
from tdstack.verify.environment import Environment, find_environment
from tdstack.verify.finding import Finding
from tdstack.verify.installed import distributions
from tdstack.verify.main import Options, verify
from tdstack.verify.manifest import FRESH, Manifest, check_packages
from tests.compiled import ARCHS, VARIANTS, compile_few, wheels_of
from tests.triton_environments import Venv

if TYPE_CHECKING:
    from tests.conftest import MakeWheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return wheels_of(compile_few(tmp_path_factory.mktemp("dist")))


@pytest.fixture
def venv(tmp_path: Path, wheels: tuple[Path, Path]) -> Venv:
    made = Venv(tmp_path / "venv")
    made.install(*wheels)
    return made


@pytest.fixture
def manifest(lock: Lock) -> Manifest:
    """The slice of an image for the architectures that the test's wheels have."""
    return slice_of(make_stack(lock, Request("12.4", "stock", torch="none", archs=ARCHS)))


def found(venv: Venv, manifest: Manifest | None = None) -> list[Finding]:
    environment: Environment = find_environment(venv.prefix)
    return list(check_cubins(environment, manifest, tuple(distributions(environment.sites))))


def bundle_of(venv: Venv) -> Path:
    return venv.site / "gemm_allreduce_cubins" / "cu124"


def put(path: Path, data: bytes | str) -> None:
    """Write an installed file: not into it, as uv links its own cache there."""
    path.unlink()
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def flip(path: Path) -> None:
    data = path.read_bytes()
    put(path, data[:-1] + bytes([data[-1] ^ 1]))


def test_whole_cubins_are_described(venv: Venv, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the caller's variable names is not what is installed.
    monkeypatch.setenv("GEMM_AR_CUBINS", "/nowhere")
    (finding,) = found(venv)
    assert finding.ok
    assert "CUDA 12.4: 4 for sm_89 (only 2 of " in finding.detail
    assert "Triton 3.4.0, ptxas 12.4.131" in finding.detail


def test_changed_bytes_end_with_4(venv: Venv) -> None:
    flip(bundle_of(venv) / "sm_90" / f"{VARIANTS[0]}.cubin")
    report = verify(Options(venv.prefix))
    (bad,) = [f for f in report.findings if f.check == "cubins"]
    assert (bad.ok, bad.code, report.code) == (False, 4, 4)
    assert VARIANTS[0] in bad.detail
    assert bad.remedy == AGAIN


def test_cut_manifest_ends_with_4(venv: Venv) -> None:
    path = bundle_of(venv) / "manifest.json"
    put(path, path.read_text()[:300])
    (bad,) = found(venv)
    assert (bad.ok, bad.code) == (False, 4)


def test_cubins_of_another_version_fail(venv: Venv) -> None:
    path = bundle_of(venv) / "manifest.json"
    told = json.loads(path.read_text())
    put(path, json.dumps({**told, "version": "0.0.1"}))
    (bad,) = found(venv)
    assert (bad.ok, bad.code) == (False, 1)
    assert "0.0.1" in bad.detail


def test_many_findings_become_one_of_each_code(venv: Venv) -> None:
    for path in bundle_of(venv).glob("*/*.cubin"):
        flip(path)
    path = bundle_of(venv) / "manifest.json"
    put(path, json.dumps({**json.loads(path.read_text()), "version": "0.0.1"}))
    assert [f.code for f in found(venv)] == [1, 4]


def test_package_without_cubins_is_a_note_outside_an_image(venv: Venv, manifest: Manifest) -> None:
    venv.uninstall("gemm-allreduce-cubins-cu124")
    (note,) = found(venv)
    assert note.ok
    assert "compiled at its first call" in note.detail
    bad = found(venv, manifest)
    assert [f.code for f in bad] == [1, 1]
    assert "expected one" in bad[1].detail
    assert bad[0].remedy == FRESH


def test_no_package_is_no_finding_outside_an_image(tmp_path: Path, manifest: Manifest) -> None:
    venv = Venv(tmp_path / "empty")
    assert found(venv) == []
    (bad,) = found(venv, manifest)
    assert "not installed" in bad.detail


def test_older_package_has_no_check(
    tmp_path: Path, make_wheel: MakeWheel, manifest: Manifest
) -> None:
    venv = Venv(tmp_path / "old")
    files = {"gemm_allreduce/__init__.py": ""}
    venv.install(make_wheel(tmp_path, "gemm-allreduce", "0.2.0", files))
    (note,) = found(venv)
    assert note.ok
    assert found(venv, manifest)[0].code == 1


def test_broken_package_is_a_failure(venv: Venv) -> None:
    put(venv.site / "gemm_allreduce" / "check.py", "raise OSError('no check today')\n")
    (bad,) = found(venv)
    assert (bad.ok, bad.code) == (False, 1)
    assert "no check today" in bad.detail


def test_image_must_have_all_kernels(venv: Venv, manifest: Manifest) -> None:
    (bad,) = found(venv, manifest)
    assert not bad.ok
    for arch in ARCHS:
        assert f"{arch}: 2 of " in bad.detail


def test_bundle_of_another_line_is_not_the_images(venv: Venv, manifest: Manifest) -> None:
    note, bad = found(venv, {**manifest, "cuda": "12.6"})
    assert note.ok
    assert "not from the lock: CUDA 12.4" in note.detail
    assert "0 bundles for CUDA 12.6" in bad.detail


def bundle() -> dict[str, Any]:
    """What the package's check says of a bundle that fits `manifest`."""
    each = {"cubins": 96, "variants": 96, "ptxas": ["12.4.131"]}
    archs = [{"arch": arch, **copy.deepcopy(each)} for arch in ARCHS]
    return {"cuda": "12.4", "triton": "3.4.0", "archs": archs}


def test_fitting_bundle_has_no_differences(manifest: Manifest) -> None:
    assert differences(bundle(), manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["triton"], "3.4.0+dist.0a", "Triton: 3.4.0+dist.0a, expected 3.4.0"),
        (["archs", 0, "arch"], "sm_86", "archs: ['sm_86', 'sm_90']"),
        (["archs", 1, "ptxas"], ["12.8.93"], "ptxas: ['12.4.131', '12.8.93']"),
        (["archs", 1, "cubins"], 95, "sm_90: 95 of 96"),
    ],
)
def test_every_difference_is_named(
    manifest: Manifest, path: Sequence[str | int], value: object, named: str
) -> None:
    told: Any = bundle()
    target = told
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    (wrong,) = differences(told, manifest)
    assert named in wrong


def test_own_wheels_are_no_additions(venv: Venv, manifest: Manifest) -> None:
    installed = tuple(distributions((venv.site,)))
    assert not [f for f in check_packages(manifest, installed) if f.check == "additions"]
    other = (*installed, replace(installed[0], name="gemm-allreduce-cubins-cu128"))
    (added,) = [f for f in check_packages(manifest, other) if f.check == "additions"]
    assert "gemm-allreduce-cubins-cu128" in added.detail
