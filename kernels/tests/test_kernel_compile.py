"""Ahead-of-time compilation, with one variant of each kind; needs Triton, no GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import (
    SELECTED,
    SOURCES,
    WANTED,
    Compiled,
    environment_of,
    needs_triton,
    run_compile,
    selection,
    variants_of,
)
from made_cubins import maker_for

import gemm_allreduce
from gemm_allreduce import compile as command
from gemm_allreduce import toolchain
from gemm_allreduce.arguments import ARGUMENTS, INTEGERS, POINTERS
from gemm_allreduce.bundle import read_bundle
from gemm_allreduce.cache import Cache
from gemm_allreduce.compile import main
from gemm_allreduce.compiler import (
    CompileError,
    Cubin,
    Job,
    Output,
    make_cubin,
    multimem_forms,
    plan_job,
    quick_variant,
)
from gemm_allreduce.dispatch import reachable_variants
from gemm_allreduce.elf import cubin_sm
from gemm_allreduce.limits import NO_MULTIMEM, SHARED_LIMITS
from gemm_allreduce.signature import constexprs, kernel_of, sources_digest
from gemm_allreduce.toolchain import (
    MissingToolError,
    Ptxas,
    Triton,
    check_line,
    compile_environment,
    warnings_for,
)
from gemm_allreduce.variants import Variant

QUICK_VARIANT = quick_variant("sm_80")
"""Compiles for every architecture."""

PTXAS = Ptxas("/somewhere/ptxas", "12.8.93", "ab" * 32)
TRITON = Triton("3.4.0", "3.4.0", False, "cd" * 32)
UNTUNED = variants_of("sm_120")
"""Of which sm_86 has all but the last one, of FP8."""


@needs_triton
def test_manifest_names_what_was_written(compiled: Compiled) -> None:
    out, report = compiled.out, compiled.report
    text = (out / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=1) + "\n"
    assert manifest["schema"] == 2
    assert manifest["package"] == "gemm_allreduce"
    assert manifest["version"] == gemm_allreduce.__version__
    assert manifest["sources"] == sources_digest()
    assert manifest["cuda"] == ""
    assert re.match(r"3\.\d+", manifest["triton"]["version"])
    assert manifest["triton"]["distributed"] is ("dist" in manifest["triton"]["distribution"])
    assert manifest["arguments"] == list(ARGUMENTS)
    assert manifest["divisible_by_16"] == list(POINTERS)
    assert (report["compiled"], report["reused"]) == (9, 0)
    assert report["ok"] and report["cubins"] == manifest["cubins"]
    # In the table's order, and only where the architecture has them: sm_80 has no FP8.
    assert [(e["arch"], e["name"]) for e in manifest["cubins"]] == [(a, v.name) for a, v in WANTED]
    for entry, (arch, variant) in zip(manifest["cubins"], WANTED, strict=True):
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
        assert re.fullmatch(r"[0-9a-f]{64}", entry["key"])
        assert 0 < entry["registers"] <= 255
        assert entry["scratch"] in (1, 2)
    keys = {entry["key"] for entry in manifest["cubins"]}
    assert len(keys) == len(WANTED) == 4 + 5
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {"manifest.json", *(entry["file"] for entry in manifest["cubins"])}
    # What this writes is what the loader reads.
    bundle = read_bundle(out)
    bundle.require_current()
    for record in bundle.records.values():
        assert bundle.read(record)


@needs_triton
def test_home_stays_empty(compiled: Compiled) -> None:
    assert list(compiled.home.iterdir()) == []


@needs_triton
def test_another_checkout_and_shell_give_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    checkout = tmp_path / "a longer path" / "to another checkout"
    shutil.copytree(SOURCES / "gemm_allreduce", checkout / "gemm_allreduce")
    out = tmp_path / "out"
    done = run_compile(
        *selection(out),
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
    assert json.loads(done.stdout)["compiled"] == 9
    assert_same(compiled.out, out)
    for path in out.rglob("*.*"):
        assert str(checkout).encode() not in path.read_bytes()


def assert_same(first: Path, second: Path) -> None:
    """Two folders hold the same files."""
    ours, theirs = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")}
        for folder in (first, second)
    )
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


@needs_triton
def test_what_did_not_change_comes_from_the_cache(compiled: Compiled, tmp_path: Path) -> None:
    damaged, cut = sorted(p for p in compiled.cache.rglob("*") if p.is_file())[:2]
    cache = tmp_path / "cache"
    shutil.copytree(compiled.cache, cache)
    for path, change in ((damaged, b"\0"), (cut, b"")):
        copy = cache / path.relative_to(compiled.cache)
        copy.write_bytes(copy.read_bytes()[:-20] + change)
    out = tmp_path / "out"
    done = run_compile(*selection(out), "--cache", cache, "--jobs", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["compiled"], report["reused"]) == (2, 7)
    assert_same(compiled.out, out)
    assert_same(compiled.cache, cache)


def made(job: Job) -> Output:
    """Stands in for the compiler."""
    return Output(maker_for(job.variant, job.arch).cubin(), 4096, "")


def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command find tools that are not there, and cubins be made."""
    monkeypatch.setattr(command, "find_ptxas", lambda arch: PTXAS)
    monkeypatch.setattr(command, "find_triton", lambda: TRITON)
    monkeypatch.setattr(command, "warnings_for", lambda arch: [])
    monkeypatch.setattr(command, "prepare", lambda jobs: None)
    monkeypatch.setattr(command, "run_job", made)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], lambda arch: reachable_variants(arch)),
        (["--quick"], lambda arch: (quick_variant(arch),)),
        (["--variant", UNTUNED[4].name, "--variant", UNTUNED[0].name],
         lambda arch: [v for v in (UNTUNED[0], UNTUNED[4]) if v in reachable_variants(arch)]),
    ],
    ids=["everything", "quick", "by name"],
)  # fmt: skip
def test_what_is_compiled(
    options: list[str], wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_triton(monkeypatch)
    archs = ["--arch", "sm_120", "--arch", "sm_86", "--arch", "sm_120"]
    assert main([*archs, *options, "--out", str(tmp_path)]) == 0
    entries = json.loads((tmp_path / "manifest.json").read_text())["cubins"]
    assert [(entry["arch"], entry["name"]) for entry in entries] == [
        (arch, variant.name) for arch in ("sm_86", "sm_120") for variant in wanted(arch)
    ]


@needs_triton
def test_processes_find_done_what_each_would_do(tmp_path: Path) -> None:
    # Triton hashes its library, of hundreds of megabytes, in each process that compiles.
    code = (
        "import importlib, sys\n"
        "from gemm_allreduce.compiler import plan_job, prepare, quick_variant\n"
        "from gemm_allreduce.toolchain import compile_environment, find_ptxas, Triton\n"
        "with compile_environment():\n"
        "    triton = Triton('', '', False, '')\n"
        "    prepare([plan_job(quick_variant('sm_80'), 'sm_90', triton, find_ptxas('sm_90'))])\n"
        "    modules = 'triton.runtime.cache', 'triton.compiler.compiler'\n"
        "    found = [getattr(importlib.import_module(m), 'triton_key', None) for m in modules]\n"
        "    assert max(f.cache_info().currsize for f in found if f) == 1\n"
        "    assert 'gemm_allreduce.one_shot' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=environment_of(SOURCES, {}), check=True)


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
def test_ptxas_path_is_honoured_and_reported(compiled: Compiled, tmp_path: Path) -> None:
    bundled = compiled.report["ptxas"]["sm_90"]
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
    assert (
        f"{quick_variant('sm_90').name} for sm_90" in done.stderr and "made to fail" in done.stderr
    )
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
        (("--arch", "sm_80", "--variant", "nope", "--out", "o"), f", {QUICK_VARIANT.name}, "),
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
        (("--arch", "sm_90", "--out", "o", "--cache", __file__), "--cache"),
        (("--arch", "sm_90", "--out", "o", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--arch", "sm_90", "--out", "o", "--cuda", "twelve"), "--cuda must be like 12.4"),
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


def job_of(variant: Variant = QUICK_VARIANT, arch: str = "sm_90") -> Job:
    return plan_job(variant, arch, TRITON, PTXAS)


def test_a_cubin_for_another_arch_is_refused() -> None:
    data = maker_for(QUICK_VARIANT, "sm_90").cubin()
    record = make_cubin(job_of(), data, 4096).record
    assert (record.arch, record.shared, record.scratch, record.size) == (
        "sm_90",
        4096,
        1,
        len(data),
    )
    with pytest.raises(
        CompileError, match=f"{QUICK_VARIANT.name} for sm_80: the cubin is for sm_90"
    ):
        make_cubin(job_of(arch="sm_80"), data, 4096)
    with pytest.raises(CompileError, match="not a 64-bit"):
        make_cubin(job_of(), b"nothing", 4096)


def test_the_key_covers_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        job_of().key,
        job_of(arch="sm_100").key,
        job_of(SELECTED[1]).key,
        plan_job(QUICK_VARIANT, "sm_90", dataclasses.replace(TRITON, sha256="ef"), PTXAS).key,
        plan_job(QUICK_VARIANT, "sm_90", TRITON, dataclasses.replace(PTXAS, sha256="ef")).key,
    ]
    for name, value in (
        ("sources_digest", lambda: "ef"),
        ("compile_options", lambda variant: {"num_warps": 1}),
        ("FORMAT", -1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"gemm_allreduce.compiler.{name}", value)
            keys.append(job_of().key)
    assert len(set(keys)) == len(keys)
    # Where it is and what it calls itself do not.
    elsewhere = dataclasses.replace(PTXAS, path="/opt/ptxas")
    renamed = dataclasses.replace(TRITON, version="3.4.1")
    assert plan_job(QUICK_VARIANT, "sm_90", renamed, elsewhere).key == keys[0]


def test_a_cubin_that_breaks_a_rule_is_an_error_and_a_spill_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_triton(monkeypatch)
    arguments = ["--arch", "sm_90", "--quick", "--json", "--out", str(tmp_path / "out")]

    def spilled(job: Job) -> Output:
        maker = maker_for(job.variant, job.arch)
        maker.general = maker.general[:-4] + (8000).to_bytes(4, "little")
        return Output(maker.cubin(), 4096, "")

    monkeypatch.setattr(command, "run_job", spilled)
    assert main(arguments) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert re.search(r"local memory.*expected at most \d+, got 8000", warning)
    shutil.rmtree(tmp_path / "out")

    def greedy(job: Job) -> Output:
        return dataclasses.replace(made(job), shared=SHARED_LIMITS["sm_90"] + 1)

    monkeypatch.setattr(command, "run_job", greedy)
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert "shared memory per CTA" in report["errors"][0]
    assert not (tmp_path / "out").exists()


def test_one_that_fails_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_triton(monkeypatch)
    names = [variant.name for variant in SELECTED[:4]]

    def failing(job: Job) -> Output:
        if job.variant.name == names[0]:
            raise CompileError(f"{job}: no")
        if job.variant.name == names[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return made(job)

    monkeypatch.setattr(command, "run_job", failing)
    chosen = [part for name in names for part in ("--variant", name)]
    cache, out = tmp_path / "cache", tmp_path / "out"
    arguments = ["--arch", "sm_90", *chosen, "--json", "--out", str(out), "--cache", str(cache)]
    assert main(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False and not out.exists()
    assert (report["compiled"], report["reused"]) == (2, 0)
    killed, refused = sorted(report["errors"], key=lambda text: names[0] in text)
    assert refused == f"{names[0]} for sm_90: no"
    assert f"{names[2]} for sm_90: its process was killed by signal 9" in killed
    # What was made is not made again.
    monkeypatch.setattr(command, "run_job", made)
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["compiled"], report["reused"]) == (2, 2)
    order = [v.name for v in reachable_variants("sm_90") if v.name in names]
    assert [cubin["name"] for cubin in report["cubins"]] == order


def test_an_older_bundle_stays_until_there_is_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_triton(monkeypatch)
    arguments = ["--arch", "sm_90", "--quick", "--out", str(tmp_path)]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def refused(job: Job) -> Output:
        raise CompileError("no")

    monkeypatch.setattr(command, "run_job", refused)
    assert main(arguments) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_cache_that_cannot_be_written_stops_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_triton(monkeypatch)
    mark = tmp_path / "mark"

    def slow(job: Job) -> Output:
        if job.arch == "sm_90":
            mark.write_text(str(os.getpid()))
            time.sleep(60)
        while not mark.exists():
            time.sleep(0.01)
        return made(job)

    def full(self: Cache, job: Job, cubin: Cubin) -> None:
        raise OSError(28, "No space left on device", "cache")

    alive: list[bool] = []

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        try:
            yield
        finally:
            alive.append(runs(mark.read_text()))

    monkeypatch.setattr(command, "run_job", slow)
    monkeypatch.setattr(command, "compile_environment", watched)
    monkeypatch.setattr(Cache, "put", full)
    started = time.monotonic()
    archs = ["--arch", "sm_80", "--arch", "sm_90"]
    assert main([*archs, "--quick", "--out", str(tmp_path / "out"), "--jobs", "2"]) == 3
    assert "No space left on device" in capsys.readouterr().err
    assert time.monotonic() - started < 30
    assert alive == [False], "it outlives the folders that it works in"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@needs_triton
def test_an_interrupted_run_leaves_nothing_and_no_process(name: str, tmp_path: Path) -> None:
    ptxas, pid = tmp_path / "ptxas", tmp_path / "pid"
    ptxas.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "release 12.8, V12.8.99" && exit 0\n'
        f"echo $$ > {pid}.new; mv {pid}.new {pid}\nexec sleep 100\n"
    )
    ptxas.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gemm_allreduce.compile", "--arch", "sm_90", "--quick"),
            *("--json", "--out", str(tmp_path / "out")),
        ],
        env=environment_of(SOURCES, {"TRITON_PTXAS_PATH": str(ptxas), "TMPDIR": str(temporary)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not pid.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in json.loads(output)["errors"][0] and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert list(temporary.iterdir()) == []
    limit = time.monotonic() + 10
    while runs(pid.read_text().strip()):
        assert time.monotonic() < limit, "ptxas still runs"
        time.sleep(0.05)


def runs(pid: str) -> bool:
    """Whether a process is there, and not only waits for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_triton
def test_multimem_is_compiled_where_it_is_asked_for(tmp_path: Path) -> None:
    plain = SELECTED[2]
    (form,) = multimem_forms([SELECTED[0], SELECTED[1], plain])
    selection = ("--variant", SELECTED[0].name, "--variant", plain.name)
    done = run_compile("--arch", "sm_90", *selection, "--multimem", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "manifest.json").read_text())["cubins"]
    assert [e["name"] for e in entries] == [plain.name, SELECTED[0].name, form.name]
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


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89"])
def test_multimem_is_refused_where_the_instructions_lack(arch: str) -> None:
    (form,) = multimem_forms([SELECTED[2]])
    assert arch in NO_MULTIMEM
    with pytest.raises(
        ValueError, match=f"{arch} has no multimem instructions; sm_90 and later have"
    ):
        plan_job(form, arch, TRITON, PTXAS)
    assert plan_job(form, "sm_90", TRITON, PTXAS).variant == form


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89"])
def test_an_early_start_is_refused_where_the_instructions_lack(arch: str) -> None:
    late = dataclasses.replace(SELECTED[0], early=0)
    early = dataclasses.replace(late, early=512)
    with pytest.raises(ValueError, match=f"{arch} has no programmatic dependent launches; sm_90"):
        plan_job(early, arch, TRITON, PTXAS)
    job = plan_job(early, "sm_90", TRITON, PTXAS)
    assert job.key != plan_job(late, "sm_90", TRITON, PTXAS).key
    assert job.variant.name == f"{late.name}_early512"


def test_a_kernel_is_the_same_just_in_time_and_ahead_of_time(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    sources = str(Path(gemm_allreduce.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("both_compilations.py"))],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": sources},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for name, just_in_time, *ahead_of_time in lines:
        assert ahead_of_time == [just_in_time], name


def test_known_fault_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, archs in (("3.6.0", ["sm_100", "sm_103"]), ("3.5.1", []), ("3.7.1", [])):
        triton = SimpleNamespace(__version__=version)
        monkeypatch.setattr(toolchain, "import_triton", lambda triton=triton: triton)
        assert [arch for arch in SHARED_LIMITS if warnings_for(arch)] == archs


def test_ptxas_must_be_that_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_line("12.8", "sm_90", PTXAS)
    with pytest.raises(MissingToolError, match=r"is ptxas 12\.8\.93, not that of CUDA 12\.4"):
        check_line("12.4", "sm_90", PTXAS)
    without_triton(monkeypatch)
    arguments = ["--arch", "sm_90", "--quick", "--out", str(tmp_path / "out"), "--cuda"]
    assert main([*arguments, "12.9"]) == 3
    assert "TRITON_PTXAS_PATH" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "12.8"]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["cuda"] == "12.8"


@needs_triton
@pytest.mark.parametrize("variant", SELECTED[:3:2], ids=lambda variant: variant.algorithm)
def test_kernels_take_the_arguments_that_launch_gives(variant: Variant) -> None:
    with compile_environment():
        kernel = kernel_of(variant)
    assert kernel.arg_names == [*ARGUMENTS, *constexprs(variant)]
    assert list(kernel.do_not_specialize) == list(INTEGERS)
