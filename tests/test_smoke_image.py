"""`invoke smoke --image`: what a container is asked for. test_build.py runs it in a real one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tdstack.engines.base import Mount, Resources, RunRequest, RunResult, StoredImage
from tdstack.engines.buildah import Buildah, from_command
from tdstack.engines.docker import run_arguments
from tdstack.errors import HostError, UsageError
from tdstack.smoke.image import SHM, STACK, Inside, closure, find_image, request_for, tools
from tdstack.smoke.run import Options, open_image

STORED = StoredImage("ab" * 32, "sha256:" + "cd" * 32, {}, {}, (), 0)


@dataclass
class Told:
    """Stands in for an engine that holds one image, whose Python answers."""

    answer: str
    name: str = "buildah"

    def image(self, ref: str) -> StoredImage | None:
        return STORED

    def run(self, request: RunRequest, say: Any = None) -> RunResult:
        return RunResult(0, self.answer, "no such file")


def inside(gpus: bool) -> Inside:
    engine: Any = Told("")
    return Inside(engine, "tdstack:here", STORED, "2.8.0", gpus)


def test_the_container_gets_what_ranks_need_and_no_privileges() -> None:
    mounts = (Mount(Path("/checkout/smoke_tests"), "/smoke/smoke_tests"),)
    request = request_for(inside(gpus=True), mounts, ["-q"])
    arguments = run_arguments(request)
    assert arguments["user"] == "12345:0"
    assert arguments["network_mode"] == "none"
    assert arguments["shm_size"] == SHM >= 1 << 30
    assert {(u.name, u.soft, u.hard) for u in arguments["ulimits"]} == {
        ("stack", STACK, STACK), ("memlock", -1, -1)
    }  # fmt: skip
    (gpu,) = arguments["device_requests"]
    assert (gpu["Count"], gpu["Capabilities"]) == (-1, [["gpu"]])
    assert not {"privileged", "ipc_mode", "cap_add", "pid_mode"} & set(arguments)
    assert arguments["volumes"]["/checkout/smoke_tests"]["mode"] == "ro"


def test_without_gpus_nothing_is_asked_that_a_daemon_may_refuse() -> None:
    arguments = run_arguments(request_for(inside(gpus=False), (), []))
    assert "device_requests" not in arguments
    assert {u.name for u in arguments["ulimits"]} == {"stack"}


def test_buildah_gets_no_more_stack_than_it_may_give() -> None:
    request = RunRequest("ref", ["true"], resources=Resources(shm=SHM, stack=STACK))
    assert list(from_command("c", request, None)) == [
        "buildah", "from", "--pull-never", "--name", "c", "--shm-size", str(SHM),
        "--ulimit", f"stack={STACK}:{STACK}", "ref",
    ]  # fmt: skip
    assert "stack=4096:4096" in from_command("c", request, 4096)
    plain = from_command("c", RunRequest("ref", ["true"]), None)
    assert list(plain) == ["buildah", "from", "--pull-never", "--name", "c", "ref"]


def test_buildah_says_that_it_passes_no_gpus() -> None:
    request = RunRequest("ref", ["true"], resources=Resources(gpus=True))
    with pytest.raises(HostError, match="does not pass GPUs") as raised:
        Buildah().run(request)
    assert "--engine docker" in raised.value.remedy


def test_the_place_is_named_by_digest() -> None:
    assert inside(gpus=False).place == f"image tdstack:here@{STORED.digest}"


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ("", HostError, "no Python that runs"),
        ('{"gemm-allreduce": "0.1.0", "torch": null}', UsageError, "other kernels"),
        ('{"gemm-allreduce": null, "torch": null}', UsageError, "other kernels"),
    ],
)
def test_an_image_that_the_checks_are_not_for(
    root: Path, answer: str, error: type[Exception], says: str
) -> None:
    engine: Any = Told(answer)
    with pytest.raises(error, match=says):
        find_image(root, engine, "tdstack:here", gpus=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(image="x", tier="multi-node"), "one host"),
        (Options(engine="docker"), "none is named"),
    ],
)
def test_what_contradicts_itself_is_refused(options: Options, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        options.require_valid()


def test_a_tier_of_gpus_needs_one_before_an_image_is_started(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = Told("")
    choice = type("Choice", (), {"engine": engine, "reason": "made up"})()
    monkeypatch.setattr("tdstack.smoke.run.choose_engine", lambda _: choice)
    monkeypatch.setattr("tdstack.smoke.run.host_gpus", lambda: 0)
    with pytest.raises(HostError, match="this host has none"):
        open_image(root, Options(image="x", tier="gpu"))
    monkeypatch.setattr("tdstack.smoke.run.host_gpus", lambda: 8)
    with pytest.raises(HostError, match="does not pass GPUs"):
        open_image(root, Options(image="x", tier="gpu"))


def test_pytest_goes_in_whole_and_runs_from_a_folder(tmp_path: Path) -> None:
    assert {"pytest", "pluggy", "iniconfig", "packaging", "pygments"} <= set(closure("pytest"))
    with tools() as folder:
        code = f"import sys; sys.path[:] = [{str(folder)!r}, *(p for p in sys.path if "
        code += "'site-packages' not in p)]; import pytest; sys.exit(pytest.main(['--version']))"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
