"""The compiler in its container: what it is asked, what its answers mean, what is checked."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdstack.assemble.compiler import (
    check_manifest,
    compile_command,
    compile_cubins,
    ptxas_of,
    triton_of,
)
from tdstack.engines.base import RunRequest, RunResult
from tdstack.errors import CheckFailed, HostError, IntegrityError, TdstackError
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.plan import Plan, make_plan
from tdstack.stack import Request, make_stack
from tdstack.variants import variant_names
from tdstack.verify import gpuless
from tdstack.wheelhouse.store import Store, file_of
from tests.conftest import MakeWheel
from tests.triton_wheels import a_fork

ROOT = Path(__file__).resolve().parent.parent
LOCK, _ = load_lock(ROOT)
FORK = a_fork("cp311-cp311-linux_x86_64", "3.4.0+dist.01234567")


def plan(**wishes: Any) -> Plan:
    request = Request(**{"triton": "stock", "archs": ("sm_80", "sm_90"), **wishes})
    return make_plan(make_stack(LOCK, request), ROOT)


def cubin(name: str, arch: str, ptxas: str) -> dict[str, Any]:
    """A manifest's entry of a file that holds its own name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    told = {"name": name, "arch": arch, "file": f"{arch}/{name}.cubin", "ptxas": ptxas}
    return {**told, "sha256": digest, "size": len(name)}


def manifest_of(made: Plan) -> dict[str, Any]:
    """The manifest of a bundle that was compiled as planned."""
    names = variant_names(ROOT, made.stack.archs)
    distribution = triton_of(made.stack)
    return {
        "schema": 2,
        "package": "gemm_allreduce",
        "version": "0.3.0",
        "cuda": made.stack.cuda,
        "triton": {
            "version": distribution.partition("+")[0],
            "distribution": distribution,
            "distributed": made.stack.flavour == "distributed",
        },
        "cubins": [cubin(n, a, ptxas_of(made.stack)) for a, own in names.items() for n in own],
    }


class Compiler:
    """An engine whose only container compiles `manifest`, or ends as it is told."""

    def __init__(self, manifest: dict[str, Any], status: int = 0, errors: tuple[str, ...] = ()):
        self.manifest, self.status, self.errors = manifest, status, errors
        self.requests: list[RunRequest] = []

    def owner(self) -> str:
        return "1234:5678"

    def run(self, request: RunRequest, say: Callable[[str], None]) -> RunResult:
        self.requests.append(request)
        say("half way")
        if self.status == 0:
            place = next(m.source for m in request.mounts if m.target == "/work/bundle")
            for entry in self.manifest["cubins"]:
                (place / entry["arch"]).mkdir(exist_ok=True)
                (place / entry["file"]).write_text(entry["name"])
            (place / "manifest.json").write_text(json.dumps(self.manifest))
        report = {"ok": not self.status, "errors": list(self.errors), "compiled": 3, "reused": 4}
        return RunResult(self.status, json.dumps(report) if self.status < 100 else "", "its words")


@pytest.fixture
def wheel(tmp_path: Path, store: Store, make_wheel: MakeWheel) -> LockedFile:
    sources = {"gemm_allreduce/compile.py": "print()", "gemm_allreduce/dispatch.toml": "[[rule]]"}
    path = make_wheel(tmp_path, "gemm_allreduce", "0.3.0", sources)
    file = file_of(path)
    store.admit(path, file, origin="kernels/", move=True)
    return file


def compiled(
    engine: Compiler, made: Plan, wheel: LockedFile, store: Store
) -> tuple[Any, list[str]]:
    scratch = store.work() / "scratch"
    scratch.mkdir()
    heard: list[str] = []
    done = compile_cubins(engine, made, wheel, scratch, ROOT, store, heard.append)  # type: ignore[arg-type]
    return done, heard


def test_what_the_wheel_installs_is_compiled_below_the_kernels_as_ourselves(
    wheel: LockedFile, store: Store
) -> None:
    made = plan()
    engine = Compiler(manifest_of(made))
    done, heard = compiled(engine, made, wheel, store)
    (request,) = engine.requests
    assert request.ref == made.layers[-2].ref
    assert made.layers[-2].name == "cuda"
    assert request.user == "1234:5678"
    places = {m.target: m for m in request.mounts}
    own = places["/work/sources"].source / "gemm_allreduce"
    assert (own / "compile.py").read_text() == "print()"
    assert (own / "dispatch.toml").read_text() == "[[rule]]"
    assert places["/work/cache"].source == store.cubins()
    assert {t for t, m in places.items() if m.writable} == {"/work/cache", "/work/bundle"}
    assert request.env["PYTHONPATH"] == "/work/sources"
    assert heard == ["  half way"]
    shown = done.as_dict()
    assert (shown["compiled"], shown["reused"]) == (3, 4)
    assert shown["cubins"] == sum(made.cubins.values())
    assert shown["size"] == sum(c["size"] for c in engine.manifest["cubins"])
    assert (shown["triton"], shown["ptxas"]) == ("3.4.0", "12.4.131")
    assert "bundle" not in shown


def test_only_the_distributed_flavour_compiles_through_the_stub() -> None:
    stock, distributed = compile_command(plan()), compile_command(plan(triton="distributed"))
    assert stock[:3] == ["/opt/tdstack/bin/python", "-m", "gemm_allreduce.compile"]
    assert distributed == [stock[0], "/work/verify/gpuless.py", *stock[1:]]
    _, program = gpuless.parse(distributed[2:])
    assert (program.kind, program.what) == ("-m", "gemm_allreduce.compile")
    assert (ROOT / "tdstack/verify/gpuless.py").is_file()
    assert stock[3:] == [
        "--json", "--cuda", "12.4", "--out", "/work/bundle", "--cache", "/work/cache",
        "--arch", "sm_80", "--arch", "sm_90",
    ]  # fmt: skip


def test_more_cubins_get_more_time(wheel: LockedFile, store: Store) -> None:
    made = plan(archs=(), cuda="12.9")
    engine = Compiler(manifest_of(made))
    compiled(engine, made, wheel, store)
    # One slow core: 1.5 s each were measured.
    assert engine.requests[0].limit_s > 10 * sum(made.cubins.values())


@pytest.mark.parametrize("cuda", ["12.4", "12.6", "12.8", "12.9", "13.0"])
def test_the_planned_tools_are_those_of_the_lock(cuda: str) -> None:
    made = plan(cuda=cuda)
    assert ptxas_of(made.stack).startswith(f"{cuda}.")
    assert triton_of(made.stack) == next(
        p.version for p in made.stack.packages["triton"] if p.name == "triton"
    )
    assert triton_of(plan(triton="distributed", fork=FORK).stack) == "3.4.0+dist.01234567"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (1, CheckFailed, "one.cubin: a spill"),
        (2, CheckFailed, "one.cubin: a spill"),
        (3, HostError, "one.cubin: a spill"),
        (137, CheckFailed, "its words"),  # killed: no report, what it said last
    ],
)
def test_a_failure_ends_with_the_compilers_words(
    wheel: LockedFile, store: Store, status: int, kind: type[TdstackError], words: str
) -> None:
    made = plan()
    engine = Compiler(manifest_of(made), status, ("one.cubin: a spill",))
    with pytest.raises(kind) as caught:
        compiled(engine, made, wheel, store)
    assert words in caught.value.got
    assert made.layers[-2].ref in caught.value.where


def _another_triton(manifest: dict[str, Any]) -> None:
    manifest["triton"]["distribution"] = "3.5.0"


def _the_fork(manifest: dict[str, Any]) -> None:
    manifest["triton"]["distributed"] = True


def _another_ptxas(manifest: dict[str, Any]) -> None:
    manifest["cubins"][5]["ptxas"] = "12.8.93"


def _one_missing(manifest: dict[str, Any]) -> None:
    manifest["cubins"].pop(7)


def _another_arch(manifest: dict[str, Any]) -> None:
    manifest["cubins"].append(cubin("more", "sm_100", "12.4.131"))


@pytest.mark.parametrize(
    ("change", "expected", "got"),
    [
        (_another_triton, "Triton: 3.4.0", "Triton: 3.5.0"),
        (_the_fork, "Triton-distributed: False", "Triton-distributed: True"),
        (_another_ptxas, "ptxas: ['12.4.131']", "ptxas: ['12.4.131', '12.8.93']"),
        (_one_missing, "cubins: {'sm_80': ", "cubins: {'sm_80': "),
        (_another_arch, "all cubins: ", "all cubins: "),
    ],
)
def test_a_bundle_that_others_compiled_is_refused(
    wheel: LockedFile,
    store: Store,
    change: Callable[[dict[str, Any]], None],
    expected: str,
    got: str,
) -> None:
    made = plan()
    manifest = manifest_of(made)
    check_manifest(copy.deepcopy(manifest), made.stack, made.cubins, "here")
    change(manifest)
    with pytest.raises(CheckFailed) as caught:
        compiled(Compiler(manifest), made, wheel, store)
    assert caught.value.expected.startswith(expected)
    assert caught.value.got.startswith(got)
    assert caught.value.expected != caught.value.got


def test_files_that_are_not_the_manifests_are_refused(wheel: LockedFile, store: Store) -> None:
    made = plan()
    manifest = manifest_of(made)
    manifest["cubins"][0]["sha256"] = "0" * 64
    with pytest.raises(IntegrityError):
        compiled(Compiler(manifest), made, wheel, store)
