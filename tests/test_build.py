"""Real images in real engines: the slim build (no torch), with each engine that can start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.records import read
from tdstack.engines.base import Engine, RunRequest
from tdstack.engines.choose import choose_engine
from tdstack.errors import IntegrityError
from tdstack.fork.model import ANYWHERE
from tdstack.lock.io import load_lock
from tdstack.plan import PREFIX
from tdstack.quickstart import check_cubins
from tdstack.stack import Request
from tdstack.variants import variant_names
from tdstack.verbs import build as build_verb
from tdstack.verbs import verify_image
from tdstack.wheelhouse.store import Store, default_cache
from tdstack.workspace import Workspace
from tests.checkouts import few_kernels
from tests.engine_stores import buildah_store, docker_daemon
from tests.registries import running_registry
from tests.triton_wheels import TAG, real_fork, real_stock

pytestmark = pytest.mark.engine
ARCH = "sm_80"
SLIM = Request(cuda="12.4", triton="stock", torch="none", archs=(ARCH,))
# Asked before any test changes the environment.
HOST_CACHE = default_cache()
STORES = {"buildah": buildah_store, "docker": docker_daemon}


@dataclass(frozen=True)
class Built:
    """A slim image of a checkout with few kernels, in a private store."""

    checkout: Path
    engine: Engine
    name: str
    environment: dict[str, str]
    report: dict[str, Any]

    @property
    def ref(self) -> str:
        return str(self.report["ref"])


def invoke(root: Path, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("invoke")), *arguments, "--json"]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def build_arguments(engine: str, cuda: str = "12.4") -> list[str]:
    options = ["--cuda", cuda, "--triton", "stock", "--torch", "none", "--engine", engine]
    return ["build", *options, "--arch", ARCH]


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_kernels(root, tmp_path_factory.mktemp("few") / "checkout")


@pytest.fixture(scope="module")
def cubins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a store that compiled nothing yet, and has all the host's files."""
    return own_cubins(tmp_path_factory.mktemp("cache"))


def own_cubins(folder: Path) -> dict[str, str]:
    theirs = Store(HOST_CACHE)  # makes what is not there
    for place in theirs.root.iterdir():
        if place.is_dir() and place != theirs.cubins():
            (folder / place.name).symlink_to(place)
    return {"TDSTACK_CACHE": str(folder)}


@pytest.fixture(scope="module", params=["buildah", "docker"])
def built(
    request: pytest.FixtureRequest,
    checkout: Path,
    cubins: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp(request.param) / "store"
    with STORES[request.param](folder) as store, pytest.MonkeyPatch.context() as patch:
        environment = {**store, **cubins}
        for name, value in environment.items():
            patch.setenv(name, value)
        report = invoke(checkout, build_arguments(request.param), environment)
        engine = choose_engine(request.param).engine
        yield Built(checkout, engine, request.param, environment, report)


def sources(report: dict[str, Any]) -> dict[str, str]:
    return {layer["name"]: layer["source"] for layer in report["layers"]}


def test_a_clean_store_gets_every_layer_within_its_budget(built: Built) -> None:
    assert set(sources(built.report).values()) == {"built"}
    assert all(0 < layer["size"] <= layer["budget"] for layer in built.report["layers"])


def test_verify_passes_inside_as_an_arbitrary_user(built: Built) -> None:
    findings = verify_image(built.engine, built.ref)
    names = {str(f["check"]) for f in findings}
    assert {"packages", "files", "triton", "ptxas", "nvshmem-device", "pip check", "cache"} <= names


def test_imports_work_as_uid_12345_and_the_network_is_off(built: Built) -> None:
    code = (
        "import os, triton, nvshmem.core, gemm_allreduce;"
        "print(os.getuid(), triton.__version__, sorted(os.listdir('/sys/class/net')))"
    )
    command = ["/opt/tdstack/bin/python", "-c", code]
    done = built.engine.run(RunRequest(built.ref, command, user="12345:0"))
    assert done.status == 0, done.stderr
    uid, version, interfaces = done.stdout.split(maxsplit=2)
    assert (uid, version) == ("12345", "3.4.0")
    probe = "import socket; socket.create_connection(('192.0.2.1', 9), 3)"
    offline = built.engine.run(RunRequest(built.ref, ["/opt/tdstack/bin/python", "-c", probe]))
    assert "Network is unreachable" in offline.stderr, (interfaces, offline.stderr)


def test_triton_can_still_compile_its_launcher(built: Built) -> None:
    code = (
        "import sysconfig, subprocess, pathlib, os;"
        "p = pathlib.Path(os.environ['TRITON_CACHE_DIR']) / 'x.c';"
        "p.write_text('#include <Python.h>\\nint x(void) { return PY_MAJOR_VERSION; }');"
        "subprocess.run(['gcc', '-shared', '-fPIC', '-I' + sysconfig.get_path('include'),"
        " str(p), '-o', str(p) + '.so'], check=True)"
    )
    env = {"TRITON_CACHE_DIR": "/var/cache/tdstack/triton"}
    command = ["/opt/tdstack/bin/python", "-c", code]
    done = built.engine.run(RunRequest(built.ref, command, env=env, user="12345:0"))
    assert done.status == 0, done.stderr


# Prints the manifest of the bundle in the image, and the sha256 of every file beside it.
BUNDLE = """
import hashlib, json, pathlib, sys
import gemm_allreduce_cubins
folder = pathlib.Path(*gemm_allreduce_cubins.__path__) / sys.argv[1]
files = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
         for p in folder.rglob("*") if p.is_file()}
print(json.dumps([json.loads((folder / "manifest.json").read_text()), files]))
"""


def bundle_in(engine: Engine, ref: str, line: str) -> dict[str, Any]:
    """The manifest of the bundle in the image, whose files are those that it names, unharmed."""
    command = [f"/{PREFIX}/bin/python", "-c", BUNDLE, line]
    done = engine.run(RunRequest(ref, command, user="12345:0"))
    assert done.status == 0, done.stderr
    manifest: dict[str, Any]
    manifest, files = json.loads(done.stdout)
    del files["manifest.json"]
    assert files == {c["file"]: c["sha256"] for c in manifest["cubins"]}
    return manifest


def check_bundle(manifest: dict[str, Any], checkout: Path, cuda: str, ptxas: str) -> None:
    names = [c["name"] for c in manifest["cubins"] if c["arch"] == ARCH]
    assert sorted(names) == sorted(variant_names(checkout, [ARCH])[ARCH])
    assert len(names) == len(manifest["cubins"])
    assert {c["ptxas"] for c in manifest["cubins"]} == {ptxas}
    assert manifest["cuda"] == cuda


def test_the_image_holds_what_its_own_tools_compiled(built: Built) -> None:
    manifest = bundle_in(built.engine, built.ref, "cu124")
    check_bundle(manifest, built.checkout, "12.4", "12.4.131")
    assert manifest["triton"] == {
        "version": "3.4.0", "distribution": "3.4.0", "distributed": False,
    }  # fmt: skip
    (bundle,) = check_cubins(built.engine, built.ref)
    assert [(a["arch"], a["cubins"]) for a in bundle["archs"]] == [(ARCH, len(manifest["cubins"]))]
    told = built.report["cubins"]
    assert told["compiled"] + told["reused"] == told["cubins"] == len(manifest["cubins"])
    assert told["size"] == sum(c["size"] for c in manifest["cubins"])


def test_a_kernel_can_still_be_compiled_in_the_image(built: Built) -> None:
    assert compiled_inside(built.engine, built.ref) == {"12.4.131"}


def compiled_inside(engine: Engine, ref: str, *launcher: str) -> set[str]:
    """Compile one kernel in the image as an arbitrary user; return the versions of ptxas."""
    command = [f"/{PREFIX}/bin/python", *launcher, "-m", "gemm_allreduce.compile", "--quick"]
    command += ["--json", "--out", "/tmp/cubins", "--arch", "sm_90"]
    done = engine.run(RunRequest(ref, command, user="12345:0"))
    assert done.status == 0, done.stderr
    return {cubin["ptxas"] for cubin in json.loads(done.stdout)["cubins"]}


def test_the_smoke_tests_run_inside_and_say_what_they_left_out(
    built: Built, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    command = ["smoke", "--image", built.ref, "--engine", built.name, "--out", str(out)]
    invoke(built.checkout, command, built.environment)
    result = read(out / "run.jsonl")
    assert result.verdict is not None
    tiers = dict(result.verdict.tiers)
    assert {t: o for t, o in tiers.items() if o != "skipped"} == {
        "import": "passed", "compile": "passed"
    }  # fmt: skip
    assert {s.tier: s.reason for s in result.skips}["cpu"] == "not installed: torch"
    assert result.run.place.startswith(f"image {built.ref}")
    stored = built.engine.image(built.ref)
    assert stored
    assert (stored.digest or stored.id) in result.run.place
    assert result.run.machine["torch"] is None
    assert (out / "index.html").is_file()


def test_the_same_build_again_builds_nothing(built: Built) -> None:
    begin = time.monotonic()
    report = invoke(built.checkout, build_arguments(built.name), built.environment)
    assert time.monotonic() - begin < 10  # under 3 s on a quiet machine
    assert set(sources(report).values()) == {"local"}
    assert report["image_id"] == built.report["image_id"]
    assert report["cubins"] is None


def test_the_whole_table_is_compiled_for_an_arch(built: Built, root: Path) -> None:
    # The host's own cache: compiled once on a host that keeps it.
    environment = {**built.environment, "TDSTACK_CACHE": str(HOST_CACHE)}
    report = invoke(root, build_arguments(built.name), environment)
    assert {n for n, s in sources(report).items() if s == "built"} == {"kernels"}
    manifest = bundle_in(built.engine, report["ref"], "cu124")
    check_bundle(manifest, root, "12.4", "12.4.131")
    assert len(manifest["cubins"]) > 50


def test_touching_a_kernel_builds_the_kernels_layer_alone(built: Built, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(built.checkout, copy)
    source = copy / "kernels/src/gemm_allreduce/variants.py"
    source.write_text(source.read_text() + "\n# touched\n")
    workspace = Workspace(copy, Workspace.here().store)
    report = build_verb(
        workspace, SLIM, source=ANYWHERE, engine=built.name, output="", as_json=False, dry=False
    )
    assert report is not None
    assert {x.name for x in report.layers if x.source == "built"} == {"kernels"}
    assert report.image_id != built.report["image_id"]


def test_another_cuda_line_shares_all_but_its_own_layers(built: Built) -> None:
    report = invoke(built.checkout, build_arguments(built.name, "12.8"), built.environment)
    made = {name for name, source in sources(report).items() if source == "built"}
    assert made == {"cuda", "kernels"}
    assert any(
        f["check"] == "ptxas" and "12.8.93" in str(f["detail"])
        for f in verify_image(built.engine, report["ref"])
    )
    manifest = bundle_in(built.engine, report["ref"], "cu128")
    check_bundle(manifest, built.checkout, "12.8", "12.8.93")


@pytest.fixture(scope="module")
def again(
    checkout: Path, cubins: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The report of a clean build after another one, whatever engine that had."""
    with buildah_store(tmp_path_factory.mktemp("second") / "store") as environment:
        return invoke(checkout, build_arguments("buildah"), environment | cubins)


def test_every_clean_build_gives_one_image_id_under_every_engine(
    built: Built, again: dict[str, Any]
) -> None:
    assert again["image_id"] == built.report["image_id"]
    assert set(sources(again).values()) == {"built"}
    # What was compiled for the first one was not compiled again.
    assert again["cubins"]["compiled"] == 0
    assert again["cubins"]["reused"] == built.report["cubins"]["cubins"]


def test_a_wiped_machine_pulls_it_and_builds_nothing(
    built: Built, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A short path: the names of a daemon's sockets have a limit.
    folder = tmp_path_factory.mktemp("wiped") / "store"
    options = build_arguments(built.name)[1:]
    with running_registry(tmp_path / "registry") as running:
        at = ["--registry", f"{running.host}/team/tdstack"]
        pushed = invoke(built.checkout, ["push", *options, *at], built.environment)
        assert set(pushed["layers"].values()) == {"pushed"}
        again = invoke(built.checkout, ["push", *options, *at], built.environment)
        assert (again["sent"], set(again["layers"].values())) == (0, {"present"})
        # Neither images nor a store: what there is comes from the registry.
        (tmp_path / "cache").mkdir()
        with STORES[built.name](folder) as store, pytest.MonkeyPatch.context() as patch:
            wiped = {**built.environment, **store, "TDSTACK_CACHE": str(tmp_path / "cache")}
            for name, value in wiped.items():
                patch.setenv(name, value)
            pulled = invoke(built.checkout, ["pull", *options, *at], wiped)
            assert pulled["image_id"] == built.report["image_id"]
            assert pulled["checks"] > 5  # tdstack-verify ran inside
            begin = time.monotonic()
            again = invoke(built.checkout, ["pull", *options, *at], wiped)
            assert time.monotonic() - begin < 10  # under 3 s on a quiet machine
            assert again["source"] == "local"
            engine = choose_engine(built.name).engine
            for layer in built.report["layers"][-2:]:
                engine.untag(f"localhost/tdstack/{layer['name']}:{layer['key'][:20]}")
            for tag in built.report["tags"]:
                engine.untag(tag)
            report = invoke(built.checkout, ["build", *options, *at], wiped)
            expected = dict.fromkeys(sources(report), "local")
            assert sources(report) == {**expected, "cuda": "registry", "kernels": "registry"}
            assert report["image_id"] == built.report["image_id"]
            assert not list((tmp_path / "cache" / "blobs").iterdir())  # no wheel was fetched


@dataclass(frozen=True)
class Ended:
    """How a build ended that did not come to its end."""

    code: int
    err: str


def build_in(checkout: Path, environment: dict[str, str], engine: str) -> Ended:
    command = [str(Path(sys.executable).with_name("invoke")), *build_arguments(engine)]
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stderr)


def test_a_kernel_that_does_not_compile_ends_the_build_with_its_name_and_leaves_nothing(
    built: Built, tmp_path: Path
) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(built.checkout, copy)
    source = copy / "kernels/src/gemm_allreduce/device.py"
    text = source.read_text()
    assert "tl.debug_barrier()" in text
    source.write_text(text.replace("tl.debug_barrier()", "tl.no_such_barrier()"))
    before = image_names(built)
    ended = build_in(copy, built.environment, built.name)
    assert ended.code == 1, ended.err
    assert "no_such_barrier" in ended.err
    assert "one_shot_bf16_w8" in ended.err
    assert sorted(image_names(built)) == sorted(before)
    assert not list(Workspace.here().store.work().glob("build-*"))


def test_an_interrupted_compilation_goes_on_where_it_was(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    environment = built.environment | own_cubins(folder)
    cache = Store(folder).cubins()
    copy = tmp_path / "checkout"
    shutil.copytree(built.checkout, copy)
    source = copy / "kernels/src/gemm_allreduce/device.py"
    source.write_text(source.read_text() + "\n# another kernels layer\n")
    command = [str(Path(sys.executable).with_name("invoke")), *build_arguments(built.name)]
    with (tmp_path / "err").open("w") as err:
        running = subprocess.Popen(
            command,
            cwd=copy,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
        while not (kept(cache) and having_mounted(cache)):
            assert running.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGTERM)  # what a scheduler sends; a Ctrl-C is tried below
        running.communicate(timeout=120)
    assert running.returncode == 130, (tmp_path / "err").read_text()
    assert not list(Store(folder).work().glob("build-*"))
    assert no_container_is_left(cache)
    done = len(kept(cache))
    report = invoke(copy, build_arguments(built.name), environment)
    told = report["cubins"]
    assert 0 < told["reused"] == done < told["cubins"]
    assert told["compiled"] == told["cubins"] - done


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() and path.name[0] != "."]


def no_container_is_left(cache: Path) -> bool:
    """Whether every process that has this folder mounted ends, soon after the container."""
    deadline = time.monotonic() + 15
    while inside := having_mounted(cache):
        if time.monotonic() > deadline:
            return not inside
        time.sleep(0.2)
    return True


def having_mounted(folder: Path) -> list[Path]:
    tail = "/".join(folder.parts[-4:])  # of another file system the mount point is left out
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [process] if f"/{tail} " in (process / "mountinfo").read_text() else []
    return found


def test_a_fork_wheel_gives_an_image_in_which_it_is_the_only_triton(
    built: Built, fork_wheel: Path
) -> None:
    options = ["--torch", "none", "--engine", built.name, "--wheel", str(fork_wheel)]
    options += ["--arch", ARCH]
    report = invoke(built.checkout, ["build", "--cuda", "12.4", *options], built.environment)
    assert sources(report)["nvshmem"] == "local"
    assert {n for n, s in sources(report).items() if s == "built"} == {"triton", "cuda", "kernels"}
    found = {str(f["check"]): str(f["detail"]) for f in verify_image(built.engine, report["ref"])}
    assert found["triton"].startswith("distributed: triton 3.4.0+dist.")
    assert found["pip check"] == "no broken requirements"
    code = (
        "import importlib.metadata as m, os;"
        "print(m.version('triton-dist'), os.environ['UV_CONSTRAINT'])"
    )
    command = ["/opt/tdstack/bin/python", "-c", code]
    done = built.engine.run(RunRequest(built.ref, command, user="12345:0"))
    assert done.status != 0  # the stock image has neither
    done = built.engine.run(RunRequest(report["ref"], command, user="12345:0"))
    assert done.stdout.split()[1] == "/opt/tdstack/share/tdstack/constraints.txt", done.stderr
    refused = [*command[:1], "-m", "pip", "install", "--no-index", "triton==3.4.1"]
    done = built.engine.run(RunRequest(report["ref"], refused, user="0:0"))
    assert done.status != 0
    assert "(constraint) triton==3.4.0+dist." in done.stdout + done.stderr
    # The stub that the fork's import needs without a GPU served the compiler too.
    manifest = bundle_in(built.engine, report["ref"], "cu124")
    check_bundle(manifest, built.checkout, "12.4", "12.4.131")
    assert manifest["triton"]["distributed"]
    assert manifest["triton"]["distribution"] == found["triton"].split()[2].rstrip(",")
    launcher = f"/{PREFIX}/lib/tdstack_verify/gpuless.py"
    assert compiled_inside(built.engine, report["ref"], launcher) == {"12.4.131"}


@pytest.fixture(scope="module")
def fork_wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton-distributed made from the real release, whose import asks for a GPU's driver."""
    folder = tmp_path_factory.mktemp("fork")
    stock = real_stock(load_lock(root)[0])
    asking = zipfile.Path(stock, "triton/runtime/jit.py").read_text()
    asking += "\nfrom .driver import driver as _driver\n_driver.active.get_current_target()\n"
    out = folder / f"triton_dist-3.4.0-{TAG}.whl"
    return real_fork(
        real_stock(load_lock(root)[0]), out, {"triton/runtime/jit.py": asking.encode()}
    )


def test_the_archive_holds_the_image_that_the_engine_holds(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "image.tar"
    invoke(built.checkout, [*build_arguments(built.name), "--output", str(out)], built.environment)
    with tarfile.open(out) as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
        manifest_digest = index["manifests"][0]["digest"].removeprefix("sha256:")
        member = archive.extractfile(f"blobs/sha256/{manifest_digest}")
        assert member is not None
        manifest = json.loads(member.read())
        names = set(archive.getnames())
    assert manifest["config"]["digest"] == f"sha256:{built.report['image_id']}"
    assert all(f"blobs/{x['digest'].replace(':', '/')}" in names for x in manifest["layers"])
    told = invoke(built.checkout, ["diff", str(out), "versions.lock"], built.environment)
    assert told["equal"]
    assert set(told["not_compared"]) == {"cubins", "env", "files", "labels", "layers"}


def test_no_partial_image_stays_behind(built: Built) -> None:
    assert not any("partial" in ref or "tdstack-load" in ref for ref in image_names(built))


def image_names(built: Built) -> list[str]:
    env = {**os.environ, **built.environment}
    if built.name == "buildah":
        command = ["buildah", "images", "--format", "{{.Name}}:{{.Tag}}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return done.stdout.split()
    import docker

    client = docker.DockerClient(base_url=built.environment["DOCKER_HOST"])
    return [tag for image in client.images.list() for tag in image.tags]


class TestBuildah:
    """What needs one engine only."""

    @pytest.fixture(autouse=True)
    def _store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cubins: dict[str, str]
    ) -> Iterator[None]:
        with buildah_store(tmp_path / "own") as environment:
            self.environment = {**environment, **cubins}
            for name, value in self.environment.items():
                monkeypatch.setenv(name, value)
            yield

    def test_an_interrupted_build_leaves_nothing_and_goes_on(self, checkout: Path) -> None:
        command = [str(Path(sys.executable).with_name("invoke")), *build_arguments("buildah")]
        running = subprocess.Popen(
            command,
            cwd=checkout,
            env={**os.environ, **self.environment},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert running.stderr is not None
        for line in running.stderr:
            if "base     built" in line:
                break
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=120)
        assert running.returncode == 130
        store = Workspace.here().store
        assert not list(store.work().glob("build-*"))
        listing = subprocess.run(
            ["buildah", "images", "--format", "{{.Name}}"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        assert set(listing) <= {"localhost/tdstack/base", "localhost/tdstack/nvshmem"}, listing
        report = invoke(checkout, build_arguments("buildah"), self.environment)
        assert sources(report)["base"] == "local"
        engine = choose_engine("buildah").engine
        assert verify_image(engine, report["ref"])
        self._check_tampering(engine, report["ref"])
        self._check_foreign_base(checkout, engine, report)

    def _check_tampering(self, engine: Engine, ref: str) -> None:
        victim = "/opt/tdstack/lib/python3.11/site-packages/triton/language/core.py"
        inside = ["buildah", "run", "--isolation", "chroot", "--user", "0", "tampered", "--"]
        for command in (
            ["buildah", "from", "--pull-never", "--name", "tampered", ref],
            [*inside, "rm", victim],
            ["buildah", "commit", "--rm", "tampered", "localhost/tampered:1"],
        ):
            subprocess.run(
                command, env={**os.environ, **self.environment}, check=True, capture_output=True
            )
        with pytest.raises(IntegrityError, match="lock slice") as caught:
            verify_image(engine, "localhost/tampered:1")
        assert "triton/language/core.py" in caught.value.got

    def _check_foreign_base(self, checkout: Path, engine: Engine, report: dict[str, Any]) -> None:
        base = engine.image("localhost/tdstack/base:" + report["layers"][0]["key"][:20])
        assert base is not None
        ref = f"localhost/tdstack/base@{base.digest}"
        arguments = [*build_arguments("buildah"), "--base", ref, "--python", "3.11"]
        other = invoke(checkout, arguments, self.environment)
        assert set(sources(other).values()) == {"built"}
        assert verify_image(engine, other["ref"])
