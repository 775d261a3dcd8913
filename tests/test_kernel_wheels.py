"""The kernels' wheels in environments that are not ours: real pip, no Triton, with and without
torch."""

from __future__ import annotations

import importlib.util
import subprocess
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.compiled import SHAPE, VARIANTS, compile_few, wheels_of
from tests.triton_environments import Venv

SELECTED = f"""
import runpy, sys
sys.argv = ["check", "--shape", "{SHAPE}", "--json"]

try:
    runpy.run_module("gemm_allreduce.check", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
assert not {{"torch", "triton"}} & sys.modules.keys(), sys.modules.keys()
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return wheels_of(compile_few(tmp_path_factory.mktemp("dist")))


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, wheels: tuple[Path, Path]) -> Venv:
    made = Venv(tmp_path_factory.mktemp("env") / "venv", pip=True)
    made.install(*wheels, tool="pip")
    return made


def test_cubin_is_selected_and_hashed_without_torch_and_triton(venv: Venv) -> None:
    done = venv.run("import torch")
    assert done.returncode != 0
    words = [str(venv.python), "-m", "gemm_allreduce.check", "--shape", SHAPE]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert f"sm_89/{VARIANTS[0]}.cubin" in done.stdout
    done = venv.run(SELECTED)
    assert done.returncode == 0, done.stderr


def test_changed_cubin_is_noticed(venv: Venv) -> None:
    path = venv.site / "gemm_allreduce_cubins" / "cu124" / "sm_89" / f"{VARIANTS[0]}.cubin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = venv.run(SELECTED)
        assert done.returncode != 0
        assert "AssertionError: 4" in done.stderr
    finally:
        path.write_bytes(whole)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_interface_loads_with_torch_and_without_triton(
    tmp_path: Path, wheels: tuple[Path, Path]
) -> None:
    venv = Venv(tmp_path / "venv", pip=True)
    venv.install(*wheels, tool="pip")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    # All that is here but Triton, whose absence is the point.
    shown = tmp_path / "shown"
    shown.mkdir()
    for path in Path(spec.origin).parent.parent.iterdir():
        if not path.name.startswith(("triton", "gemm_allreduce", "_", "distutils")):
            (shown / path.name).symlink_to(path)
    (venv.site / "shown.pth").write_text(f"{shown}\n")
    code = "import torch, gemm_allreduce as g, sys; print(g.Workspace, g.gemm_allreduce)\n"
    done = venv.run(code + "assert 'triton' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert "gemm_allreduce.workspace.Workspace" in done.stdout


def test_uninstalling_the_cubins_leaves_the_package(
    tmp_path: Path, wheels: tuple[Path, Path]
) -> None:
    venv = Venv(tmp_path / "venv", pip=True)
    venv.install(*wheels, tool="pip")
    venv.uninstall("gemm-allreduce-cubins-cu124", tool="pip")
    assert not list(venv.site.glob("gemm_allreduce_cubins/*"))  # pip may leave the empty folder
    words = [str(venv.python), "-m", "gemm_allreduce.check", "--shape", SHAPE]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 3


def test_sglang_would_find_the_plugin(venv: Venv) -> None:
    """The installed entry point, as SGLang asks for it; switched off it imports nothing more."""
    code = (
        "import sys; from importlib.metadata import entry_points\n"
        "(found,) = entry_points(group='sglang.srt.plugins')\n"
        "assert found.load()() is None\n"
        "print(found.name, 'torch' in sys.modules)"
    )
    done = venv.run(code)
    assert (done.returncode, done.stdout) == (0, "gemm_allreduce False\n"), done.stderr


def test_nothing_is_required_but_cuda_core(wheels: tuple[Path, Path]) -> None:
    kernels, cubins = (requirements_of(wheel) for wheel in wheels)
    assert kernels[""] == set()
    assert kernels["cu12"] == {"cuda-core<2,>=1.0", "cuda-bindings<13,>=12.9.1"}
    assert kernels["cu13"] == {"cuda-core<2,>=1.0", "cuda-bindings<14,>=13"}
    version = wheels[0].name.split("-")[1]
    assert cubins == {"": {f"gemm-allreduce=={version}", "cuda-core<2,>=1.0"}}


def requirements_of(wheel: Path) -> Mapping[str, set[str]]:
    """What a wheel requires, by extra."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    extras = ["", *metadata.get_all("Provides-Extra", [])]
    found: dict[str, set[str]] = {extra: set() for extra in extras}
    for text in metadata.get_all("Requires-Dist", []):
        wish = Requirement(text)
        fitting = [e for e in extras if not wish.marker or wish.marker.evaluate({"extra": e})]
        # Without a marker it is required with every extra too: say it once.
        for extra in fitting if wish.marker else [""]:
            found[extra].add(f"{wish.name}{wish.specifier}")
    return found
