"""The role's hooks: a real Slurm, and the real kubectl with an API server in small."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import slurm_cluster
from tests.fleet import Fleet, Ran
from tests.kube_api import KubeApi, kube_api, node
from tests.registries import installed_or_skip
from tests.scripted import Asked, Reply
from tests.slurm_cluster import Slurm, needs_slurm

HOOKS = """
- hosts: all
  gather_facts: false
  tasks:
    - include_role:
        name: tdstack
        tasks_from: "{{ hook }}"
"""


def fleet_of(folder: Path, **variables: Any) -> Fleet:
    local = {"ansible_connection": "local"}
    (folder / "hooks.yml").write_text(HOOKS)
    return Fleet(folder, {"gpu01": local}, {"tdstack_release_id": "0123456789ab", **variables})


def run(fleet: Fleet, hook: str, **variables: Any) -> Ran:
    return fleet.play(str(fleet.folder / "hooks.yml"), hook=hook, **variables)


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    yield from slurm_cluster.running(tmp_path_factory)


@needs_slurm
def test_slurm_drains_waits_and_gives_back_only_what_the_role_drained(
    slurm: Slurm, tmp_path: Path
) -> None:
    environment = {k: slurm.environment[k] for k in ("SLURM_CONF", "PATH")}
    fleet = fleet_of(
        tmp_path,
        tdstack_slurm_controller="localhost",
        tdstack_slurm_environment=environment,
        tdstack_slurm_node="node1",
    )
    # A job that ends while the hook waits for it.
    slurm.submit("--nodelist=node1", "--output=/dev/null", "--wrap=sleep 4", cwd=tmp_path)
    slurm.until(lambda: slurm.node("node1")[0] == "allocated", 30, "the job runs")
    drained = run(fleet, "drain_slurm")
    assert drained.code == 0, drained.out
    assert slurm.node("node1") == ("drained", "tdstack: change to 0123456789ab")
    assert slurm.node("node2")[0] == "idle"
    resumed = run(fleet, "undrain_slurm")
    assert resumed.code == 0, resumed.out
    slurm.until(lambda: slurm.node("node1")[0] == "idle", 30, "the node is back")

    # Somebody else's stays theirs, whatever the role does, and so does the health check's.
    for reason in ("fan", "tdstack: 1 GPU has fallen off the bus"):
        slurm.run("scontrol", "update", "NodeName=node1", "State=DRAIN", f"Reason={reason}")
        for hook in ("drain_slurm", "undrain_slurm"):
            done = run(fleet, hook)
            assert (done.code, done.count("changed")) == (0, {"gpu01": 0}), done.out
        assert slurm.node("node1") == ("drained", reason)
        slurm.run("scontrol", "update", "NodeName=node1", "State=RESUME")

    unknown = run(fleet, "drain_slurm", tdstack_slurm_node="node9")
    assert unknown.code != 0
    assert "Slurm does not know the node node9" in unknown.out
    assert "remedy: set tdstack_slurm_node" in unknown.out


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    installed_or_skip("kubectl")
    served = KubeApi.reply

    def with_pods(self: KubeApi, asked: Asked) -> Reply | None:
        if asked.path.partition("?")[0] == "/api/v1/pods":
            body = b'{"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": []}'
            return Reply(200, body, {"Content-Type": "application/json"})
        return served(self, asked)

    monkeypatch.setattr(KubeApi, "reply", with_pods)
    with kube_api(tmp_path / "credentials") as running:
        running.add(node("gpu01"))
        yield running


def test_kubectl_cordons_and_gives_back_only_what_the_role_cordoned(
    api: KubeApi, tmp_path: Path
) -> None:
    program = tmp_path / "kubectl"
    options = f"--server={api.url} --token={api.token}"
    options += f" --certificate-authority={api.folder / 'ca.crt'}"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("kubectl")} {options} "$@"\n')
    program.chmod(0o755)
    fleet = fleet_of(
        tmp_path,
        tdstack_kubectl=str(program),
        tdstack_kubectl_environment={"KUBECONFIG": "/dev/null", "HOME": str(tmp_path)},
        tdstack_drain_timeout_s=10,
    )
    drained = run(fleet, "drain_kubernetes")
    assert drained.code == 0, drained.out
    assert api.nodes["gpu01"]["spec"]["unschedulable"] is True
    assert api.nodes["gpu01"]["metadata"]["annotations"] == {
        "tdstack.dev/cordoned-for": "0123456789ab"
    }
    back = run(fleet, "undrain_kubernetes")
    assert back.code == 0, back.out
    assert not api.nodes["gpu01"]["spec"].get("unschedulable")
    assert not api.nodes["gpu01"]["metadata"].get("annotations")

    api.add({**node("gpu01"), "spec": {"unschedulable": True}})
    for hook in ("drain_kubernetes", "undrain_kubernetes"):
        assert run(fleet, hook).code == 0
    assert api.nodes["gpu01"]["spec"]["unschedulable"] is True
    unknown = run(fleet, "drain_kubernetes", tdstack_kubernetes_node="gpu99")
    assert unknown.code != 0
    assert "Kubernetes does not know the node gpu99" in unknown.out
