"""What pods run, as the manifests say it: their files unpacked, their commands carried out.

The commands are the rendered ones; the image's Python is played by the distribution's without any
package (the agent), and by this environment's (the ranks).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from base64 import b64decode
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.records import Check, Result, Verdict, read
from tdstack.kubernetes.settings import Options
from tests.kube_api import kube_api, node
from tests.shipped import ROOT
from tests.test_kubernetes_manifests import of_kind, pod

needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)
SUMS = "integers_add_up_over_gloo"
VERIFY = '#!/bin/sh\necho \'{"findings": [{"check": "triton", "ok": true, "detail": "-"}]}\'\n'


def unpacked(manifest: str, options: Options, folder: Path) -> Path:
    data = b64decode(of_kind(manifest, "ConfigMap", options)["binaryData"]["files.tar.gz"])
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        archive.extractall(folder / "files", filter="data")
    return folder / "files"


def container(manifest: str, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = pod(manifest, options)["containers"][0]
    return found


def command_of(one: Mapping[str, Any], places: Mapping[str, str]) -> list[str]:
    """Return a container's command as the kubelet expands it, with its folders elsewhere."""
    words = [word.replace("$(NODE_NAME)", "n1") for word in one["command"]]
    for place, there in places.items():
        words = [word.replace(f"={place}", f"={there}") for word in words]
    return words


def environment_of(one: Mapping[str, Any], files: Path) -> dict[str, str]:
    plain = {e["name"]: e["value"] for e in one["env"] if "value" in e}
    return {name: value.replace("/files", str(files)) for name, value in plain.items()}


def test_the_agents_pod_judges_this_host_with_python_alone(tmp_path: Path) -> None:
    options = Options()
    files = unpacked("node-check", options, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    bare = f'#!/bin/sh\nexec {shutil.which("python3", path="/usr/bin:/bin")} -S "$@"\n'
    for name, text in (("python", bare), ("tdstack-verify", VERIFY)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    agent = container("node-check", options)
    state = tmp_path / "state"
    with kube_api(tmp_path / "credentials") as api:
        api.add(node("n1"))
        command = command_of(agent, {"/state": str(state)})
        command += ["--credentials", str(api.folder), "--server", api.url]
        environment = environment_of(agent, files)
        process = subprocess.Popen(
            command,
            cwd="/",
            env={**environment, "PATH": f"{programs}:/usr/bin:/bin"},
            executable=str(programs / "python"),
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 90
        while not (state / "reported").exists() and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 0, said
        metadata, taints = api.nodes["n1"]["metadata"], api.nodes["n1"]["spec"].get("taints", [])
    report = json.loads((state / "doctor.json").read_text())
    assert {finding["check"] for finding in report["findings"]} > {"glibc", "platform"}, said
    bad = [f["check"] for f in report["findings"] if f["severity"] in ("failure", "missing")]
    assert metadata["labels"]["tdstack.dev/ready"] == ("false" if bad else "true")
    first = sorted(bad, key=lambda name: name == "line")[:1]
    assert [taint["value"] for taint in taints] == first
    if not Path("/dev/nvidiactl").exists():
        assert bad, said
        assert "driver" in metadata["annotations"]["tdstack.dev/verdict"]


def ranks(tmp_path: Path, manifest: str, options: Options, *more: str) -> tuple[list[str], Path]:
    files = unpacked(manifest, options, tmp_path)
    one = container(manifest, options)
    command = command_of(one, {"/reports": str(tmp_path / "reports")})
    assert command[0] == "python"
    return [sys.executable, *command[1:], *more], files


def records(out: str, folder: Path) -> Result:
    """Return the records among the lines of a log."""
    path = folder / "log.jsonl"
    path.write_text("".join(line + "\n" for line in out.splitlines() if line.startswith("{")))
    return read(path)


@needs_torch
def test_the_smoke_pods_log_is_its_report(tmp_path: Path) -> None:
    options = Options(kind="cpu")
    command, files = ranks(tmp_path, "smoke", options, "--check", SUMS)
    # The image has the kernels; a pod has no checkout.
    path = f"{files}:{ROOT / 'kernels/src'}"
    done = subprocess.run(
        command,
        cwd="/",
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = records(done.stdout, tmp_path)
    assert isinstance(result.verdict, Verdict)
    assert result.verdict.ok
    assert [c.name for c in result.checks if isinstance(c, Check)][-1].endswith(SUMS)
    assert result.run.host.startswith("n1")
    assert not list(files.rglob("__pycache__"))


@needs_torch
def test_a_pod_of_several_that_stays_alone_says_so(tmp_path: Path) -> None:
    options = Options(kind="cpu", name="pair")
    command, files = ranks(tmp_path, "multi-node", options, "--dry")
    for index in ("0", "1"):
        done = subprocess.run(
            command,
            cwd="/",
            env={
                **os.environ,
                "PYTHONPATH": str(files),
                "JOB_COMPLETION_INDEX": index,
                "HOSTNAME": f"pair-{index}",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "--nnodes=2" in done.stdout
        assert f"--node-rank={index}" in done.stdout
        assert "--master-addr=pair-0.pair" in done.stdout
