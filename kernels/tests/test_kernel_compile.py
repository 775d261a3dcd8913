"""Ahead-of-time compilation, with one variant of each kind; needs Triton, no GPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gemm_allreduce
from gemm_allreduce import compile as compiler
from gemm_allreduce.arguments import ARGUMENTS
from gemm_allreduce.compile import (
    QUICK_VARIANT,
    SHARED_LIMITS,
    CompileError,
    Cubin,
    Ptxas,
    check_cubin,
    compile_environment,
    compile_variant,
    main,
    multimem_forms,
    warnings_for,
)
from gemm_allreduce.dispatch import Shape, choose, reachable_variants
from gemm_allreduce.elf import cubin_sm
from gemm_allreduce.signature import constexprs, kernel_of
from gemm_allreduce.variants import Variant

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
ARCHS = ("sm_80", "sm_90")
SELECTED = tuple(
    choose(Shape(tokens, 8192, 1024, ranks, "sm_90", dtype, operand)).variant  # type: ignore[arg-type]
    for tokens, ranks, dtype, operand in (
        (16, 8, "bf16", None),
        (64, 1, "fp16", None),
        (64, 8, "bf16", None),
        (513, 2, "fp16", "int8"),
        (17, 4, "bf16", "fp8e4m3"),
    )
)
"""One-shot, two-shot with and without split, and each kind of operand."""


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
    names = [part for variant in SELECTED for part in ("--variant", variant.name)]
    return [*archs, *names, "--out", out, "--json"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("bundle") / "out"
    home = tmp_path_factory.mktemp("home")
    done = run_compile(*_selection(out), HOME=str(home))
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
    assert manifest["package"] == "gemm_allreduce"
    assert manifest["version"] == gemm_allreduce.__version__
    assert report["ok"] and report["cubins"] == manifest["cubins"]
    # In the table's order, and only where the architecture has them: sm_80 has no FP8.
    wanted = [(arch, v) for arch in ARCHS for v in reachable_variants(arch) if v in SELECTED]
    assert [(e["arch"], e["name"]) for e in manifest["cubins"]] == [(a, v.name) for a, v in wanted]
    assert len(wanted) == 4 + 5
    for entry, (arch, variant) in zip(manifest["cubins"], wanted, strict=True):
        data = (out / entry["file"]).read_bytes()
        assert entry["file"] == f"{arch}/{variant.name}.cubin"
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["size"] == len(data)
        assert f"sm_{cubin_sm(data)}" == arch
        assert entry["entry"] == f"gemm_allreduce_{variant.algorithm}"
        assert entry["entry"].encode() in data
        assert 0 < entry["shared"] <= SHARED_LIMITS[arch]
        assert entry["num_warps"] == variant.tile.num_warps
        assert entry["cooperative"] is True
        assert re.fullmatch(r"\d+\.\d+\.\d+", entry["ptxas"])
        assert re.match(r"3\.\d+", entry["triton"])
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *(entry["file"] for entry in manifest["cubins"])}


@needs_triton
def test_home_stays_empty(bundle: tuple[Path, dict[str, Any], Path]) -> None:
    assert list(bundle[2].iterdir()) == []


@needs_triton
def test_another_checkout_and_shell_give_the_same_bytes(
    bundle: tuple[Path, dict[str, Any], Path], tmp_path: Path
) -> None:
    checkout = tmp_path / "a longer path" / "to another checkout"
    shutil.copytree(SOURCES / "gemm_allreduce", checkout / "gemm_allreduce")
    out = tmp_path / "out"
    done = run_compile(
        *_selection(out),
        sources=checkout,
        PYTHONHASHSEED="7",
        # A shell's debugging switches must not reach the compiler.
        TRITON_INTERPRET="1",
        TRITON_DISABLE_LINE_INFO="0",
        PTXAS_OPTIONS="-O0",
        DISABLE_PTXAS_OPT="1",
        DISABLE_LLVM_OPT="1",
    )
    assert done.returncode == 0, done.stderr
    first = {p.relative_to(bundle[0]): p.read_bytes() for p in bundle[0].rglob("*.*")}
    second = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.*")}
    assert first.keys() == second.keys()
    assert [path for path in first if first[path] != second[path]] == []
    for data in second.values():
        assert str(checkout).encode() not in data


def _fake_cubin(variant: Variant, arch: str) -> Cubin:
    return Cubin(variant, arch, "entry", 1, 4, "3.4.0", Ptxas("ptxas", "12.8.93"), b"cubin", "ptx")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], lambda arch: reachable_variants(arch)),
        (["--quick"], lambda arch: (QUICK_VARIANT,)),
        (["--variant", SELECTED[4].name, "--variant", SELECTED[0].name],
         lambda arch: [v for v in (SELECTED[0], SELECTED[4]) if v in reachable_variants(arch)]),
    ],
    ids=["everything", "quick", "by name"],
)  # fmt: skip
def test_what_is_compiled(
    options: list[str], wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "compile_variant", _fake_cubin)
    monkeypatch.setattr(compiler, "find_ptxas", lambda arch: Ptxas("ptxas", "12.8.93"))
    monkeypatch.setattr(compiler, "warnings_for", lambda arch: [])
    archs = ["--arch", "sm_120", "--arch", "sm_86", "--arch", "sm_120"]
    assert main([*archs, *options, "--out", str(tmp_path)]) == 0
    entries = json.loads((tmp_path / "manifest.json").read_text())["cubins"]
    assert [(entry["arch"], entry["name"]) for entry in entries] == [
        (arch, variant.name) for arch in ("sm_86", "sm_120") for variant in wanted(arch)
    ]


def test_environment_is_private_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/some/ptxas")
    monkeypatch.delenv("TRITON_PTXAS_BLACKWELL_PATH", raising=False)
    before, tempdir = dict(os.environ), tempfile.tempdir
    with pytest.raises(KeyError), compile_environment():
        assert "TRITON_INTERPRET" not in os.environ
        assert os.environ["TRITON_PTXAS_BLACKWELL_PATH"] == "/some/ptxas"
        assert os.environ["TRITON_CACHE_DIR"].startswith(str(tempfile.tempdir))
        scratch = Path(os.environ["TRITON_HOME"])
        assert scratch.is_dir()
        raise KeyError
    assert not scratch.exists()
    assert (dict(os.environ), tempfile.tempdir) == (before, tempdir)


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
        (("--arch", "sm_90", "--variant", "nope", "--out", "o"), f", {QUICK_VARIANT.name}, "),
        (("--arch", "sm_80", "--variant", SELECTED[4].name, "--out", "o"), "unknown variant"),
        (
            ("--arch", "sm_90", "--quick", "--variant", QUICK_VARIANT.name, "--out", "o"),
            "exclude each other",
        ),
        (("--arch", "sm_90", "--quick", "--multimem", "--out", "o"), "exclude each other: it is"),
        (("--arch", "sm_90", "--arch", "sm_89", "--multimem", "--out", "o"), "sm_89 has no mult"),
        (("--arch", "sm_90"), "--out"),
        (("--out", "o"), "--arch"),
        (("--arch", "sm_90", "--out", __file__), "is not a folder"),
    ],
)
def test_usage(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.err and output.out == ""


@needs_triton
def test_a_cubin_for_another_arch_is_refused(quick_cubin: Cubin) -> None:
    check_cubin(quick_cubin)
    with pytest.raises(CompileError, match="the cubin is for sm_90"):
        check_cubin(dataclasses.replace(quick_cubin, arch="sm_80"))
    with pytest.raises(CompileError, match="shared memory"):
        check_cubin(dataclasses.replace(quick_cubin, shared=SHARED_LIMITS["sm_90"] + 1))
    with pytest.raises(CompileError, match="4 warps, asked 8"):
        check_cubin(dataclasses.replace(quick_cubin, num_warps=4))
    with pytest.raises(CompileError, match="not a 64-bit"):
        check_cubin(dataclasses.replace(quick_cubin, data=b"nothing"))


@needs_triton
def test_multimem_is_compiled_where_it_is_asked_for(tmp_path: Path) -> None:
    plain = SELECTED[2]
    (form,) = multimem_forms([SELECTED[0], SELECTED[1], plain])
    selection = ("--variant", SELECTED[0].name, "--variant", plain.name)
    done = run_compile("--arch", "sm_90", *selection, "--multimem", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "manifest.json").read_text())["cubins"]
    assert [e["name"] for e in entries] == [SELECTED[0].name, plain.name, form.name]
    hashes = {hashlib.sha256((tmp_path / e["file"]).read_bytes()).hexdigest() for e in entries}
    assert len(hashes) == 3


@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_every_two_shot_of_several_ranks_has_a_multimem_form(arch: str) -> None:
    reachable = reachable_variants(arch)
    assert not any(variant.multimem for variant in reachable)
    names = {variant.name for variant in reachable}
    forms = multimem_forms(reachable)
    assert forms
    for form in forms:
        assert form.multimem and form.name.replace("_multimem", "") in names


@needs_triton
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89"])
def test_multimem_is_refused_where_the_instructions_lack(arch: str) -> None:
    (form,) = multimem_forms([SELECTED[2]])
    with (
        compile_environment(),
        pytest.raises(ValueError, match=f"{arch} has no multimem instructions; sm_90 and later"),
    ):
        compile_variant(form, arch)


def test_known_fault_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, archs in (("3.6.0", ["sm_100", "sm_103"]), ("3.5.1", []), ("3.7.1", [])):
        triton = SimpleNamespace(__version__=version)
        monkeypatch.setattr(compiler, "_import_triton", lambda triton=triton: triton)
        assert [arch for arch in SHARED_LIMITS if warnings_for(arch)] == archs


@needs_triton
@pytest.mark.parametrize("variant", SELECTED[:3:2], ids=lambda variant: variant.algorithm)
def test_kernels_take_the_arguments_that_launch_gives(variant: Variant) -> None:
    with compile_environment():
        kernel = kernel_of(variant)
    assert kernel.arg_names == [*ARGUMENTS, *constexprs(variant)]
    integers = [name for name in ARGUMENTS if not name.endswith("_ptr") and name != "heap_table"]
    assert list(kernel.do_not_specialize) == integers
