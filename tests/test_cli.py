"""The verbs as a user runs them: exit codes and messages for bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tdstack.errors import ExitCode
from tests.checkouts import copy_checkout

INVOKE = str(Path(sys.executable).with_name("invoke"))


@dataclass(frozen=True)
class Ended:
    """How a verb ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkout that a test may damage."""
    return copy_checkout(root, tmp_path / "checkout")


def invoke(where: Path, *arguments: str, **environment: str) -> Ended:
    done = subprocess.run(
        [INVOKE, *arguments],
        cwd=where,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("verb", ["plan", "fetch", "build", "quickstart"])
@pytest.mark.parametrize("line", ["12.40", "13", "abc", ""])
def test_an_unknown_line_exits_2_and_names_the_valid_ones(root: Path, verb: str, line: str) -> None:
    ended = invoke(root, verb, f"--cuda={line}")
    assert ended.code == ExitCode.USAGE
    assert "12.4, 12.6, 12.8, 12.9, 13.0" in ended.err


@pytest.mark.parametrize(
    "options",
    [
        ["--triton=fork"],
        ["--torch=rocm"],
        ["--platform=windows/amd64"],
        ["--python=3.9"],
        ["--engine=containerd"],
        ["--cuda=13.0", "--triton=distributed"],
        ["--platform=linux/arm64", "--triton=stock"],
    ],
)
def test_unknown_values_exit_2(root: Path, options: list[str]) -> None:
    assert invoke(root, "build", *options).code == ExitCode.USAGE


def test_an_error_is_json_too_when_asked(root: Path) -> None:
    ended = invoke(root, "plan", "--cuda=1.0", "--json")
    report = json.loads(ended.out)
    assert report["exit_code"] == ended.code == ExitCode.USAGE
    assert "12.4" in report["expected"]


def test_a_truncated_lock_exits_4_and_says_where(checkout: Path) -> None:
    lock = checkout / "versions.lock"
    lock.write_text(lock.read_text()[:5000])
    ended = invoke(checkout, "plan", "--triton=stock")
    assert ended.code == ExitCode.INTEGRITY
    assert "versions.lock, line" in ended.err


def test_a_corrupt_lock_exits_4_and_names_the_entry(checkout: Path) -> None:
    lock = checkout / "versions.lock"
    data = json.loads(lock.read_text())
    data["packages"]["torch==2.8.0"][0]["sha256"] = "no hash"
    lock.write_text(json.dumps(data))
    ended = invoke(checkout, "plan", "--triton=stock")
    assert ended.code == ExitCode.INTEGRITY
    assert "packages.torch==2.8.0.0.sha256" in ended.err


def test_an_unknown_schema_exits_2(checkout: Path) -> None:
    lock = checkout / "versions.lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "schema": 99}))
    ended = invoke(checkout, "plan", "--triton=stock")
    assert ended.code == ExitCode.USAGE
    assert "schema 99" in ended.err


def test_lock_check_passes_here_and_fails_when_the_wishes_moved(root: Path, checkout: Path) -> None:
    assert invoke(root, "lock", "--check").code == 0
    wishes = checkout / "images/versions.toml"
    wishes.write_text(wishes.read_text().replace("numpy<2.4", "numpy<2.3"))
    ended = invoke(checkout, "lock", "--check")
    assert ended.code == ExitCode.CHECK_FAILED
    assert "invoke lock" in ended.err


def test_lock_without_a_change_writes_the_same_bytes_and_asks_nobody(checkout: Path) -> None:
    before = (checkout / "versions.lock").read_bytes()
    ended = invoke(checkout, "lock", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert ended.code == 0, ended.err
    assert (checkout / "versions.lock").read_bytes() == before


def test_an_unreachable_index_exits_5(root: Path, tmp_path: Path) -> None:
    ended = invoke(
        root,
        "fetch",
        "--triton=stock",
        "--torch=none",
        TDSTACK_CACHE=str(tmp_path / "cache"),
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_CONFIG_FILE=os.devnull,
        PIP_EXTRA_INDEX_URL="",
    )
    assert ended.code == ExitCode.UPSTREAM
    assert "pip config list" in ended.err or "--wheelhouse" in ended.err
    assert not list((tmp_path / "cache/blobs").glob("*.partial"))


def test_triton_distributed_out_of_reach_exits_5_with_every_way_in(
    checkout: Path, tmp_path: Path
) -> None:
    lock = checkout / "versions.lock"
    data = json.loads(lock.read_text())
    data["triton_distributed"]["repository"] = "http://127.0.0.1:9/Triton-distributed"
    lock.write_text(json.dumps(data))
    ended = invoke(checkout, "fetch", TDSTACK_CACHE=str(tmp_path / "cache"))
    assert ended.code == ExitCode.UPSTREAM
    for way in ("--wheel FILE", "--wheelhouse DIR", "--triton stock"):
        assert way in ended.err


def test_a_stock_wheel_offered_as_the_fork_exits_4(root: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "triton-3.4.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("triton/_C/libtriton.so", b"\x7fELF stock")
        archive.writestr("triton-3.4.0.dist-info/METADATA", "Name: triton\nVersion: 3.4.0\n\n")
        archive.writestr("triton-3.4.0.dist-info/RECORD", "")
    ended = invoke(root, "build", f"--wheel={wheel}", TDSTACK_CACHE=str(tmp_path / "cache"))
    assert ended.code == ExitCode.INTEGRITY
    assert "stock Triton" in ended.err


def test_no_engine_exits_3_with_the_remedy(root: Path, tmp_path: Path) -> None:
    ended = invoke(
        root,
        "build",
        "--triton=stock",
        "--torch=none",
        PATH=str(tmp_path),
        DOCKER_HOST=f"unix://{tmp_path}/none.sock",
    )
    assert ended.code == ExitCode.HOST
    assert "bootstrap.sh" in ended.err


def test_an_unreadable_base_exits_5(root: Path) -> None:
    if shutil.which("buildah") is None:
        pytest.skip("needs buildah")
    ended = invoke(
        root, "build", "--triton=stock", "--torch=none", "--engine=buildah",
        "--base=127.0.0.1:9/no/such@sha256:" + "0" * 64,
    )  # fmt: skip
    assert ended.code == ExitCode.UPSTREAM
    assert "127.0.0.1:9/no/such" in ended.err


def test_a_cache_that_cannot_be_written_exits_3(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = invoke(root, "plan", "--triton=stock", TDSTACK_CACHE=str(tmp_path / "file"))
    assert ended.code == ExitCode.HOST
    assert "TDSTACK_CACHE" in ended.err


def test_dry_runs_leave_nothing(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for verb in ("fetch", "build"):
        ended = invoke(
            root, verb, "--triton=stock", "--torch=none", "--dry", TDSTACK_CACHE=str(cache)
        )
        assert ended.code == 0, ended.err
    assert not any(p.is_file() for p in cache.rglob("*"))
