"""`invoke compile`: real compilers in environments of their own, without an engine or a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tdstack.assemble.bundle import read_bundle
from tdstack.compiler.environment import Compiler, compiler_of, make_environment
from tdstack.compiler.host import Host, compiler_stack
from tdstack.compiler.run import CompileJob, run_compiler
from tdstack.errors import CheckFailed, HostError, IntegrityError, TdstackError
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock
from tdstack.process import run
from tdstack.stack import Request
from tdstack.variants import variant_names
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace
from tests.compiled import ARCHS, VARIANTS, compile_few, wheels_of
from tests.conftest import ROOT
from tests.test_cli import invoke
from tests.triton_wheels import TAG, real_fork, slim_stock


def test_line_becomes_a_bundle_and_two_wheels(tmp_path: Path) -> None:
    report = compile_few(tmp_path / "dist")
    assert (report.ptxas, report.triton) == ("12.4.131", "stock")
    assert report.compiled + report.reused == 4
    bundle = tmp_path / "dist" / "cubins" / "cu124"
    assert report.bundle == str(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["triton"] == {"version": "3.4.0", "distribution": "3.4.0", "distributed": False}
    assert {(c["arch"], c["name"]) for c in manifest["cubins"]} == {
        (arch, name) for arch in ARCHS for name in VARIANTS
    }
    files = read_bundle(bundle).files
    assert {a["arch"]: a["cubins"] for a in report.archs} == dict.fromkeys(ARCHS, 2)
    assert sum(a["bytes"] for a in report.archs) == sum(c["size"] for c in manifest["cubins"])
    kernels, cubins = wheels_of(report)
    version = report.version
    assert kernels.name == f"gemm_allreduce-{version}-py3-none-any.whl"
    assert cubins.name == f"gemm_allreduce_cubins_cu124-{version}-py3-none-any.whl"
    with zipfile.ZipFile(cubins) as wheel:
        for file in files:
            assert wheel.read(f"gemm_allreduce_cubins/cu124/{file}") == (bundle / file).read_bytes()


def test_second_run_gives_the_same_bytes_and_compiles_nothing(tmp_path: Path) -> None:
    first = compile_few(tmp_path / "a")
    second = compile_few(tmp_path / "b")
    assert (second.compiled, second.reused) == (0, 4)
    assert [w["sha256"] for w in second.wheels] == [w["sha256"] for w in first.wheels]
    manifests = [Path(r.bundle, "manifest.json").read_bytes() for r in (first, second)]
    assert manifests[0] == manifests[1]


def test_no_other_triton_and_no_setting_of_the_host_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = compile_few(tmp_path / "a")
    poison = tmp_path / "poison"
    for name in ("triton", "gemm_allreduce"):
        (poison / name).mkdir(parents=True)
        (poison / name / "__init__.py").write_text("raise SystemExit('met')\n")
    monkeypatch.setenv("PYTHONPATH", str(poison))
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/bin/false")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.chdir(poison)
    found = compile_few(tmp_path / "b")
    assert [w["sha256"] for w in found.wheels] == [w["sha256"] for w in wanted.wheels]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Return a workspace with a store of its own, and what the user's store has as a wheelhouse."""
    folder = tmp_path_factory.mktemp("private")
    theirs = Workspace.here()
    stack = compiler_stack(load_lock(ROOT)[0], Host.here(), Request("12.4", "stock"), lambda: None)
    files = compiler_of(stack, Host.here(), ROOT, theirs.store).files
    theirs.fetch(files)
    (folder / "wheelhouse").mkdir()
    for file in files:
        (folder / "wheelhouse" / file.name).symlink_to(theirs.store.path(file))
    return Workspace(ROOT, Store(folder / "store"), (folder / "wheelhouse",))


@pytest.fixture(scope="module")
def fork(lock: Lock, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return Triton-distributed made from the real release, whose import asks for a GPU."""
    folder = tmp_path_factory.mktemp("fork")
    stock = slim_stock(lock, folder)
    asking = zipfile.Path(stock, "triton/runtime/jit.py").read_text()
    asking += "\nfrom .driver import driver as _driver\n_driver.active.get_current_target()\n"
    out = folder / f"triton_dist-3.4.0-{TAG}.whl"
    return real_fork(stock, out, {"triton/runtime/jit.py": asking.encode()})


def test_fork_compiles_without_a_gpu(private: Workspace, fork: Path, tmp_path: Path) -> None:
    request = Request("12.4", "distributed", archs=("sm_90",))
    report = compile_few(
        tmp_path / "dist", request, workspace=private, source=ForkSource(str(fork))
    )
    manifest = json.loads(Path(report.bundle, "manifest.json").read_text())
    assert report.triton == "distributed"
    assert manifest["triton"]["distributed"] is True
    assert manifest["triton"]["distribution"].startswith("3.4.0+dist.")


def test_wheel_that_rotted_in_the_store_is_not_used(private: Workspace, tmp_path: Path) -> None:
    host, store = Host.here(), Store(tmp_path / "store")
    stack = compiler_stack(load_lock(ROOT)[0], host, Request("12.4", "stock"), lambda: None)
    compiler = compiler_of(stack, host, ROOT, store)
    Workspace(ROOT, store, private.folders).fetch(compiler.files)
    small = store.path(min(compiler.files, key=lambda f: f.size))
    small.write_bytes(small.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="not the file that the lock names"):
        make_environment(compiler, host, ROOT, store)
    assert not compiler.made
    assert not list(store.work().iterdir())


def test_environment_is_made_anew_when_its_python_is_gone(
    private: Workspace, tmp_path: Path
) -> None:
    request = Request("12.4", "stock", archs=("sm_90",))
    first = compile_few(tmp_path / "a", request, workspace=private)
    stack = compiler_stack(load_lock(ROOT)[0], Host.here(), request, lambda: None)
    python = compiler_of(stack, Host.here(), ROOT, private.store).python
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert (
        compile_few(tmp_path / "b", request, workspace=private).wheels[1]["sha256"]
        == (first.wheels[1]["sha256"])
    )
    assert python.exists()


# `invoke compile` of a few kernels: all of them take minutes.
SOME = tuple(n for n in variant_names(ROOT, ["sm_80"])["sm_80"] if "_w1_" in n)[:12]
CODE = f"""
from pathlib import Path
import tasks
from tdstack import compile_verb as module
whole = module.compile_verb
module.compile_verb = lambda *a, **k: whole(*a, **k, variants={SOME!r})
from invoke import Program, Collection
Program(namespace=Collection.from_module(tasks)).run()
"""


def test_interrupted_run_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    theirs = Workspace.here().store
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("blobs", "compilers"):
        (cache / name).symlink_to(theirs.root / name)
    out = tmp_path / "dist"
    words = ["compile", "--triton=stock", "--arch=sm_80", f"--out={out}", "--json"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CODE, *words],
            cwd=ROOT,
            env={**os.environ, "TDSTACK_CACHE": str(cache)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kept() -> int:
        return len([p for p in (cache / "cubins").glob("*/*") if p.name[0] != "."])

    running, limit = start(), time.monotonic() + 90
    while kept() < 2 and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "it resumes" in said
    assert not list((cache / "work").iterdir())
    assert not out.exists()
    limit = time.monotonic() + 5
    while (left := processes_below(cache)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left
    resumed_from = kept()
    assert 2 <= resumed_from < len(SOME)
    again = start()
    told, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    report = json.loads(told)
    assert (report["compiled"], report["reused"]) == (len(SOME) - resumed_from, resumed_from)


def processes_below(folder: Path) -> list[str]:
    done = run(["ps", "-eo", "args"])
    return [line for line in done.stdout.splitlines() if str(folder) in line]


def a_compiler(folder: Path, script: str) -> Compiler:
    """A compiler whose Python is a shell script: what is told apart is how it ends."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return Compiler(folder, python, folder / "ptxas", (), forked=False)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("""echo '{"ok": false, "errors": ["a spilled"]}'; exit 1""", CheckFailed, "a spilled"),
        ("""echo '{"ok": false, "errors": ["no ptxas"]}'; exit 3""", HostError, "no ptxas"),
        ("echo broken >&2; exit 1", HostError, "broken"),
        ("echo '[1, 2]'", HostError, "exit status 0"),
        ("kill -9 $$", HostError, "--jobs 1"),
    ],
)
def test_every_end_of_the_compiler_is_an_error_of_its_own(
    tmp_path: Path, script: str, kind: type[TdstackError], said: str
) -> None:
    compiler = a_compiler(tmp_path / "env", script)
    job = CompileJob("12.4", ("sm_90",), tmp_path, tmp_path / "out", tmp_path / "cache")
    with pytest.raises(kind) as caught:
        run_compiler(compiler, job, tmp_path, lambda _: None)
    assert said in str(caught.value)


def test_progress_passes_through_while_it_runs(tmp_path: Path) -> None:
    script = """echo first >&2
for i in $(seq 100); do [ -e seen ] && break; sleep 0.05; done
[ -e seen ] && printf '{"ok": true, "tmp": "%s"}' "$TMPDIR" """
    compiler = a_compiler(tmp_path / "env", script)
    job = CompileJob("12.4", ("sm_90",), tmp_path, tmp_path / "out", tmp_path / "cache")
    report = run_compiler(compiler, job, tmp_path, lambda _: (tmp_path / "seen").touch())
    # What it would leave behind when it is killed goes with the folder.
    assert report == {"ok": True, "tmp": str(tmp_path)}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--cuda=12.5"], 2, "12.4, 12.6"),
        (["--arch=sm_100"], 2, "sm_80, sm_86, sm_89, sm_90"),
        (["--triton=fork"], 2, "distributed, stock"),
        (["--jobs=-1", "--triton=stock"], 2, "--jobs"),
        (["--triton=stock", "--wheel=x.whl"], 2, "--wheel"),
        (["--wheel=nowhere.whl"], 2, "no such wheel"),
        ([], 3, "--triton stock"),
    ],
)
def test_bad_input_ends_with_the_right_code(
    tmp_path: Path, options: list[str], code: int, said: str
) -> None:
    cache = {"TDSTACK_CACHE": str(tmp_path / "cache")}
    ended = invoke(ROOT, "compile", f"--out={tmp_path / 'dist'}", *options, **cache)
    assert ended.code == code
    assert said in ended.err
    assert not (tmp_path / "dist").exists()


def test_dry_run_says_what_it_would_take(tmp_path: Path) -> None:
    out = tmp_path / "dist"
    cache = {"TDSTACK_CACHE": str(tmp_path / "cache")}
    ended = invoke(ROOT, "compile", "--triton=stock", "--dry", "--json", f"--out={out}", **cache)
    assert ended.code == 0
    told = json.loads(ended.out)
    assert told["cubins"] == {"sm_80": 64, "sm_86": 64, "sm_89": 96, "sm_90": 174}
    assert told["fetch_bytes"] > 150e6
    assert f"cp{sys.version_info[0]}{sys.version_info[1]}-" in " ".join(
        f["name"] for f in told["compiler"]
    )
    assert not out.exists()
