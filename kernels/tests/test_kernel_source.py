"""Where kernels come from: cubins or a compiler, and never silently the latter."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from made_bundles import LARGE, SMALL, write_bundle

from gemm_allreduce import kernels, loader
from gemm_allreduce.bundle import BundleError, CubinError, MissingCubinError
from gemm_allreduce.jit import JitKernels
from gemm_allreduce.kernels import Kernels, Mode, choose_kernels, find_bundle
from gemm_allreduce.loader import CubinKernels


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a driver of CUDA 12, cuda-core and Triton, and nothing installed."""
    for name in ("GEMM_AR_CUBINS", "GEMM_AR_NO_JIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(loader, "_cuda", lambda: (None, None))
    monkeypatch.setattr(loader, "driver_version", lambda: 12040)
    monkeypatch.setattr(kernels, "installed_bundles", list)
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    kernels._say_once.cache_clear()


def choose(mode: Mode = "auto", arch: str = "sm_90") -> Kernels:
    return choose_kernels(mode, arch, 0)


def test_cubins_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "installed_bundles", lambda: [write_bundle(tmp_path)])
    found = choose()
    assert isinstance(found, CubinKernels)
    assert found.describe().startswith("cubins of CUDA 12.4 for sm_90, compiled ahead of time by")
    assert found.identity == f"cubins {find_bundle('sm_90').digest[:12]}"


def test_without_cubins_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    reasons = {
        "no cubins are installed (install the wheel gemm_allreduce_cubins_*": [],
        "is for sm_80, not for sm_90": [write_bundle(tmp_path / "arch", archs=["sm_80"])],
        "was compiled from gemm_allreduce 0.0.1": [
            write_bundle(tmp_path / "version", version="0.0.1")
        ],
        "from other sources": [write_bundle(tmp_path / "sources", sources="f" * 64)],
        "is for CUDA 13.0, the driver's is 12": [write_bundle(tmp_path / "cuda", cuda="13.0")],
    }
    for reason, folders in reasons.items():
        monkeypatch.setattr(kernels, "installed_bundles", lambda found=folders: found)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "gemm_allreduce"):
            found = [choose(), choose()]
        assert all(isinstance(one, JitKernels) for one in found)
        (line,) = caplog.messages
        assert line.startswith("gemm_allreduce compiles its kernels at run time: ")
        assert reason in line
        assert reason in found[0].describe()
        for refuse in ("variable", "mode"):
            with monkeypatch.context() as patch, pytest.raises(MissingCubinError) as caught:
                if refuse == "variable":
                    patch.setenv("GEMM_AR_NO_JIT", "1")
                choose("cubins" if refuse == "mode" else "auto")
            assert reason in str(caught.value)
            assert "compiling at run time is switched off" in str(caught.value)


def test_without_cubins_and_without_triton_there_is_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    with pytest.raises(MissingCubinError, match=r"no cubins are installed .* no Triton either"):
        choose()


def test_without_cuda_core_it_is_as_without_cubins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lacking() -> None:
        raise MissingCubinError("cubins are loaded through cuda-core, which cannot be imported")

    monkeypatch.setattr(kernels, "installed_bundles", lambda: [write_bundle(tmp_path)])
    monkeypatch.setattr(loader, "_cuda", lacking)
    assert isinstance(choose(), JitKernels)
    assert "loaded through cuda-core" in caplog.text
    with pytest.raises(MissingCubinError, match="cuda-core"):
        choose("cubins")


def test_the_newest_line_that_the_driver_knows_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ("12.8", "13.0", "12.10", "12.4")
    folders = [write_bundle(tmp_path / line, cuda=line) for line in lines]
    monkeypatch.setattr(kernels, "installed_bundles", lambda: folders)
    assert find_bundle("sm_90", 0).cuda == "12.10"
    monkeypatch.setattr(loader, "driver_version", lambda: 13000)
    assert find_bundle("sm_90", 0).cuda == "13.0"
    assert find_bundle("sm_90").cuda == "13.0"  # nobody asks a driver where there is none


def test_a_named_bundle_must_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = write_bundle(tmp_path / "good")
    monkeypatch.setenv("GEMM_AR_CUBINS", str(good))
    assert find_bundle("sm_90", 0).folder == good
    with pytest.raises(BundleError, match="which is for sm_80, sm_90, not for sm_100"):
        choose(arch="sm_100")
    monkeypatch.setenv("GEMM_AR_CUBINS", str(write_bundle(tmp_path / "old", version="0.0.1")))
    with pytest.raises(BundleError, match=r"was compiled from gemm_allreduce 0\.0\.1"):
        choose()
    monkeypatch.setenv("GEMM_AR_CUBINS", str(tmp_path / "nowhere"))
    with pytest.raises(BundleError, match="is no bundle"):
        choose()


def test_a_damaged_manifest_is_never_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (write_bundle(tmp_path) / "manifest.json").write_text("{}")
    monkeypatch.setattr(kernels, "installed_bundles", lambda: [tmp_path])
    with pytest.raises(CubinError, match="is damaged"):
        choose()


def test_compiling_can_be_asked_for_and_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("jit").describe() == "compiled at run time: as was asked for"
    monkeypatch.setenv("GEMM_AR_CUBINS", "none")
    assert isinstance(choose(), JitKernels)
    monkeypatch.setenv("GEMM_AR_NO_JIT", "1")
    for mode in ("jit", "auto"):
        with pytest.raises(ValueError, match="forbids compiling"):
            choose(mode)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kernels must be one of auto, cubins, jit, got 'best'"):
        choose("best")  # type: ignore[arg-type]


def test_on_a_cpu_there_is_only_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMM_AR_NO_JIT", "1")
    assert isinstance(choose_kernels("auto", "sm_90", None), JitKernels)
    with pytest.raises(MissingCubinError, match="need a CUDA device"):
        choose_kernels("cubins", "sm_90", None)


def test_what_can_be_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path, variants=[SMALL])
    monkeypatch.setattr(kernels, "installed_bundles", lambda: [folder])
    assert choose().serves(LARGE)  # by Triton
    assert choose("cubins").serves(SMALL)
    assert not choose("cubins").serves(LARGE)
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert not choose().serves(LARGE)
