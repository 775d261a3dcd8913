"""Ahead-of-time compilation for sm_80 and sm_90; needs Triton, no GPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gemm_allreduce
from gemm_allreduce.compile import (
    SHARED_LIMITS,
    CompileError,
    Cubin,
    check_cubin,
    compile_environment,
    compile_variant,
)
from gemm_allreduce.elf import cubin_sm
from gemm_allreduce.variants import QUICK_VARIANT, VARIANTS, variant_names

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
ARCHS = ("sm_80", "sm_90")
NAMES = (QUICK_VARIANT.name, VARIANTS[-4].name)  # bf16 with 8 ranks, fp16 with 1


def _triton_problem() -> str | None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", "import triton; triton.compile"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


_PROBLEM = _triton_problem()
needs_triton = pytest.mark.skipif(
    _PROBLEM is not None, reason=f"Triton cannot be imported: {_PROBLEM}"
)


def run_compile(
    *arguments: str | Path, sources: Path = SOURCES, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": str(sources), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "gemm_allreduce.compile", *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _selection(out: Path) -> list[str | Path]:
    archs = [part for arch in ARCHS for part in ("--arch", arch)]
    names = [part for name in NAMES for part in ("--variant", name)]
    return [*archs, *names, "--out", out, "--json"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("bundle") / "out"
    home = tmp_path_factory.mktemp("home")
    # A shell's debugging switches must not reach the compiler.
    done = run_compile(*_selection(out), HOME=str(home), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), home


@pytest.fixture(scope="module")
def quick_cubin() -> Cubin:
    with compile_environment():
        return compile_variant(QUICK_VARIANT, "sm_90")


@needs_triton
def test_manifest_names_what_was_written(bundle: tuple[Path, dict[str, Any], Path]) -> None:
    out, report, _ = bundle
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["schema"] == 1
    assert (manifest["package"], manifest["version"]) == ("gemm_allreduce", "0.1.0")
    assert report["ok"] and report["cubins"] == manifest["cubins"]
    assert [(e["arch"], e["name"]) for e in manifest["cubins"]] == [
        (arch, name) for arch in ARCHS for name in sorted(NAMES, key=variant_names().index)
    ]
    for entry in manifest["cubins"]:
        data = (out / entry["file"]).read_bytes()
        assert entry["file"] == f"{entry['arch']}/{entry['name']}.cubin"
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["size"] == len(data)
        assert f"sm_{cubin_sm(data)}" == entry["arch"]
        assert entry["entry"] == "gemm_allreduce_one_shot"
        assert entry["entry"].encode() in data
        assert 0 < entry["shared"] <= SHARED_LIMITS[entry["arch"]]
        variant = VARIANTS[variant_names().index(entry["name"])]
        assert entry["num_warps"] == variant.num_warps
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["ptxas"])
        assert re.match(r"3\.\d+", entry["triton"])
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *(entry["file"] for entry in manifest["cubins"])}


@needs_triton
def test_home_stays_empty(bundle: tuple[Path, dict[str, Any], Path]) -> None:
    assert list(bundle[2].iterdir()) == []


@needs_triton
def test_another_checkout_gives_the_same_bytes(
    bundle: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    checkout = tmp_path / "a longer path" / "to another checkout"
    shutil.copytree(SOURCES / "gemm_allreduce", checkout / "gemm_allreduce")
    out = tmp_path / "out"
    done = run_compile(*_selection(out), sources=checkout, PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    first = {p.relative_to(bundle[0]): p.read_bytes() for p in bundle[0].rglob("*.*")}
    second = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")}
    assert first == second
    for data in second.values():
        assert str(checkout).encode() not in data


@needs_triton
def test_default_is_every_variant(tmp_path: Path) -> None:
    done = run_compile("--arch", "sm_86", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    entries = json.loads((tmp_path / "manifest.json").read_text())["cubins"]
    assert [entry["name"] for entry in entries] == list(variant_names())


@needs_triton
def test_ptxas_path_is_honoured_and_reported(
    bundle: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    bundled = bundle[1]["ptxas"]["sm_90"]
    ptxas = tmp_path / "ptxas"
    ptxas.symlink_to(bundled["path"])
    done = run_compile(
        "--arch", "sm_90", "--quick", "--json", "--out", tmp_path, TRITON_PTXAS_PATH=str(ptxas)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ptxas"]["sm_90"] == bundled | {"path": str(ptxas)}
    assert str(ptxas) in done.stderr


@needs_triton
def test_absent_ptxas_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    absent = tmp_path / "no" / "ptxas"
    done = run_compile(
        "--arch", "sm_90", "--quick", "--out", tmp_path / "out", TRITON_PTXAS_PATH=str(absent)
    )
    assert done.returncode == 3
    assert f"TRITON_PTXAS_PATH names {absent}" in done.stderr
    assert not (tmp_path / "out").exists()


@needs_triton
def test_failing_ptxas_writes_nothing(tmp_path: Path) -> None:
    ptxas = tmp_path / "ptxas"
    ptxas.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "release 12.8, V12.8.99" && exit 0\n'
        'echo "made to fail" >&2\nexit 255\n'
    )
    ptxas.chmod(0o755)
    done = run_compile(
        *("--arch", "sm_90", "--quick", "--json", "--out", tmp_path / "out"),
        TRITON_PTXAS_PATH=str(ptxas),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 1
    assert f"{QUICK_VARIANT.name} for sm_90" in done.stderr and "made to fail" in done.stderr
    assert json.loads(done.stdout)["ok"] is False
    assert [path.name for path in tmp_path.iterdir()] == ["ptxas"]


def test_missing_triton(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    shutil.copytree(SOURCES / "gemm_allreduce", blocked / "gemm_allreduce")
    (blocked / "triton.py").write_text("raise ModuleNotFoundError(\"No module named 'triton'\")\n")
    done = run_compile("--arch", "sm_90", "--quick", "--out", tmp_path / "out", sources=blocked)
    assert done.returncode == 3
    assert 'pip install "gemm-allreduce[jit]"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sm_70", "--out", "o"), "unknown architecture sm_70; valid: sm_80, sm_86"),
        (("--arch", "sm_90", "--variant", "nope", "--out", "o"), f"valid: {variant_names()[0]}"),
        (("--arch", "sm_90", "--quick", "--variant", NAMES[0], "--out", "o"), "exclude each other"),
        (("--arch", "sm_90"), "--out"),
        (("--out", "o"), "--arch"),
        (("--arch", "sm_90", "--out", __file__), "is not a folder"),
    ],
)
def test_usage(arguments: tuple[str, ...], message: str) -> None:
    done = run_compile(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stdout == ""


@needs_triton
def test_a_cubin_for_another_arch_is_refused(quick_cubin: Cubin) -> None:
    check_cubin(quick_cubin)
    with pytest.raises(CompileError, match="the cubin is for sm_90"):
        check_cubin(dataclasses.replace(quick_cubin, arch="sm_80"))
    with pytest.raises(CompileError, match="shared memory"):
        check_cubin(dataclasses.replace(quick_cubin, shared=SHARED_LIMITS["sm_90"] + 1))
    with pytest.raises(CompileError, match="not a 64-bit"):
        check_cubin(dataclasses.replace(quick_cubin, data=b"nothing"))


@needs_triton
def test_ptx_orders_stores_flags_and_loads(quick_cubin: Cubin) -> None:
    """The instructions that a data race would hide behind (W = 8)."""
    kinds = {
        "label": r"^\$\w+:",  # a barrier counts only inside the basic block that needs it
        "store": r"st\.global\.v4\.b32",
        "load": r"ld\.global\.v4\.b32",
        "narrow": r"(?:st|ld)\.global\.(?:b|u)(?:8|16)\b",
        "barrier": r"bar(?:rier)?\.(?:cta\.)?sync",
        "release": r"atom\.\S*release\S*exch\S*",
        "arrive": r"atom\.\S*acq_rel\S*",
        "acquire": r"(?:atom|ld)\.\S*\bacquire\b\S*",
    }
    pattern = re.compile("|".join(f"(?P<{kind}>{regex})" for kind, regex in kinds.items()), re.M)
    order = [match.lastgroup for match in pattern.finditer(quick_cubin.ptx)]
    assert "narrow" not in order
    # One release for all ranks, at system scope, behind a barrier that follows the last store.
    assert order.count("release") == 1 and order.count("arrive") == 1
    release = order.index("release")
    assert ".sys." in next(re.finditer(kinds["release"], quick_cubin.ptx)).group()
    before = order[:release]
    assert before.pop() == "barrier"
    while before[-1] == "barrier":  # newer Tritons add their own
        before.pop()
    assert before[-8:] == ["store"] * 8
    assert order[order.index("arrive") - 1] == "barrier"
    # One acquire per source at system scope, none of them deleted.
    acquires = re.findall(kinds["acquire"], quick_cubin.ptx)
    assert len(acquires) == 8 and all(".sys." in text for text in acquires)
    # A tile of 16 x 128 over 8 warps is one 16-byte load per thread and source.
    assert order.count("load") == 8
