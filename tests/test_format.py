"""The bytes of a layer are part of the format: when they move, plan.FORMAT must move too."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tdstack.assemble.entries import Entry, arrange
from tdstack.assemble.layer import venv_entries
from tdstack.assemble.tar import write_tar
from tdstack.assemble.wheel import WheelEntries
from tdstack.errors import ExitCode
from tdstack.lock.model import Lock
from tdstack.plan import FORMAT, PREFIX
from tdstack.stack import Request, make_stack
from tests.triton_wheels import a_fork

SITE = f"{PREFIX}/lib/python3.11/site-packages"
# The digest that this format gives for the wheel below. A build reuses every layer whose key
# is there, so other bytes under the same key would never reach anybody's store.
KNOWN = {1: "53a8e9d8a0a63f5e40484506c658526b6219ad67212bafce5ff355eaad3f81ab"}


def a_wheel(folder: Path) -> Path:
    path = folder / "demo-1.0-py3-none-any.whl"
    files = {
        "demo/__init__.py": "x = 1\n",
        "demo/__pycache__/__init__.cpython-311.pyc": "stale",
        "demo/data.bin": "\0" * 700,
        "demo-1.0.data/scripts/demo-script": "#!python\nprint(1)\n",
        "demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        "demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
        "demo-1.0.dist-info/entry_points.txt": "[console_scripts]\ndemo = demo:main\n",
        "demo-1.0.dist-info/RECORD": "demo/__init__.py,sha256=abc,6\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return path


def test_the_bytes_of_this_format_have_not_moved(tmp_path: Path) -> None:
    wheel = WheelEntries(a_wheel(tmp_path), "demo-1.0-py3-none-any.whl", PREFIX, SITE)
    entries = wheel.entries(lambda path: path == "demo/data.bin")
    entries += venv_entries("3.11", "/usr/bin/python3.11", SITE)
    entries.append(Entry("var/cache/tdstack", "folder", 0o775))
    blob = write_tar(arrange(entries), tmp_path)
    assert blob.sha256 == KNOWN[FORMAT], "raise plan.FORMAT and add the new digest here"


def test_arm64_says_that_its_torch_is_a_cpu_build(lock: Lock) -> None:
    fork = a_fork("cp312-cp312-linux_aarch64")
    base = "example.org/base@sha256:" + "0" * 64
    stack = make_stack(lock, Request(platform="linux/arm64", base=base, python="3.12", fork=fork))
    assert any("CPU build" in note for note in stack.notes)


def test_a_full_disk_exits_3_and_keeps_nothing_half_done(root: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        import os

        invoke = str(Path(sys.executable).with_name("invoke"))
        done = subprocess.run(
            [invoke, "fetch", "--triton=stock", "--torch=none"],
            cwd=root,
            env={**os.environ, "TDSTACK_CACHE": str(small / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == ExitCode.HOST, done.stderr
        assert "TDSTACK_CACHE" in done.stderr
        assert not list((small / "cache/blobs").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
