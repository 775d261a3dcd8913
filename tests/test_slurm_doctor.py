"""The doctor itself as the health check of a real Slurm: a node whose /dev/shm is too small.

This host may lack a GPU, so that only the check of shared memory counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_cluster import NODES, Slurm, needs_slurm, running

pytestmark = needs_slurm
REASON = "tdstack doctor: shm: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Return a folder with the three programs of slurm.conf, and their settings."""
    folder = tmp_path_factory.mktemp("doctor")
    for name in ("prolog", "epilog", "healthcheck"):
        script = folder / f"{name}.sh"
        script.write_text(
            f"#!/bin/bash\nexport TDSTACK_HEALTH_CONF={folder}/health.env\n"
            f"exec {root}/scripts/slurm/{name}.sh\n"
        )
        script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Slurm]:
    extra = [f"Prolog={folder}/prolog.sh", f"Epilog={folder}/epilog.sh"]
    for cluster in running(tmp_path_factory, extra):
        settings = {
            "TDSTACK_HEALTH_ONLY": "shm",
            "TDSTACK_HEALTH_LIMIT_S": "55",  # this host may be busy; Slurm itself ends it at 60
            "TDSTACK_HEALTH_STATE": f"{folder}/state",
            "TDSTACK_HEALTH_LOG": f"{folder}/log",
            "TDSTACK_HEALTH_SLURM_CONF": f"{cluster.folder}/slurm.conf",
            "TDSTACK_HEALTH_PYTHON": sys.executable,
        }
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        folder.joinpath("health.env").write_text(text)
        yield cluster


def shared_memory(slurm: Slurm, node: str, size: str) -> None:
    slurm.on_node(node, "mount", "-o", f"remount,size={size}", "/dev/shm")


def log(folder: Path) -> str:
    file = folder / "log"
    return file.read_text() if file.exists() else ""


def test_healthy_nodes_run_a_job_and_stay(slurm: Slurm, folder: Path) -> None:
    job = slurm.submit("--nodes=2", "--output=job.log", "--wrap=srun hostname", cwd=folder)
    assert slurm.ended(job, 180)["ExitCode"] == "0:0", slurm.logs()
    slurm.until(lambda: all(slurm.node(n) == ("idle", "none") for n in NODES), 120, "idle")
    assert log(folder) == ""
    assert all((folder / "state" / f"{node}.json").exists() for node in NODES)


def test_the_prolog_drains_a_node_with_too_little_shared_memory(slurm: Slurm, folder: Path) -> None:
    shared_memory(slurm, "node2", "64k")
    job = slurm.submit("--nodes=2", "--output=job.log", "--wrap=srun hostname", cwd=folder)
    slurm.until(lambda: slurm.node("node2")[0].startswith("drain"), 120, "drained")
    said = slurm.run("sinfo", "-R", "--noheader", "-o", "%200E|%N")
    reason, node = said.strip().split("|")
    assert (node, reason.strip()) == ("node2", slurm.node("node2")[1])
    assert reason.startswith(f"{REASON}/dev/shm is too small")
    slurm.until(lambda: slurm.job(job)["JobState"] == "PENDING", 120, "back in the queue")
    assert slurm.job(job)["Restarts"] == "1"
    slurm.run("scancel", job)
    slurm.until(lambda: slurm.node("node1") == ("idle", "none"), 120, "node1 is kept")


def test_slurms_own_health_check_gives_it_back_when_it_is_well(slurm: Slurm, folder: Path) -> None:
    assert slurm.node("node2")[0] == "drained"
    with (slurm.folder / "slurm.conf").open("a") as stream:
        stream.write(f"HealthCheckProgram={folder}/healthcheck.sh\nHealthCheckInterval=5\n")
        stream.write("HealthCheckNodeState=ANY\n")
    shared_memory(slurm, "node2", "2g")
    slurm.run("scontrol", "reconfigure")
    slurm.until(lambda: slurm.node("node2")[0] == "idle", 180, "undrained")
    # The script logs what it did once Slurm has said yes.
    slurm.until(lambda: f"undrained, as this is no more: {REASON}" in log(folder), 60, "logged")
    shared_memory(slurm, "node1", "64k")
    slurm.until(lambda: slurm.node("node1")[0] == "drained", 180, "drained without a job")
    assert slurm.node("node1")[1].startswith(REASON)
    assert slurm.node("node2")[0] == "idle"
