"""kubectl takes the manifests, and sees on a node what the agent said there.

The API server is the small one of tests/kube_api.py; kubectl itself is real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdstack.kubernetes.api import NodeApi
from tdstack.kubernetes.patch import Checked
from tdstack.kubernetes.render import MANIFESTS
from tdstack.kubernetes.report import Reporter
from tdstack.kubernetes.verdict import Verdict
from tests.kube_api import KubeApi, kube_api, node
from tests.test_cluster import CLUSTER
from tests.test_kubernetes_manifests import KINDS, text_of

Kubectl = Callable[..., str]
HELD = "maintenance=soon:NoSchedule"


@pytest.fixture(scope="module")
def program() -> str:
    """Return kubectl; Debian has one in kubernetes-client."""
    found = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("kubectl is missing, and CI must not skip it")
        pytest.skip("kubectl is not installed (Debian: kubernetes-client)")
    return found


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "credentials") as running:
        running.add(node("n1"))
        yield running


@pytest.fixture
def kubectl(program: str, api: KubeApi, tmp_path: Path) -> Kubectl:
    def run(*arguments: str, stdin: str = "") -> str:
        command = [program, f"--server={api.url}", f"--token={api.token}"]
        command += [f"--certificate-authority={api.folder / 'ca.crt'}"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": "/dev/null"}
        done = subprocess.run(
            [*command, *arguments],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubectl_takes_every_manifest(kubectl: Kubectl, manifest: str) -> None:
    # Fields are checked against the published schemas (test_kubernetes_manifests.py).
    options = ["--dry-run=client", "--validate=false", "-o", "json", "-f", "-"]
    told = json.loads(kubectl("apply", *options, stdin=text_of(manifest)))
    items = told["items"] if told["kind"] == "List" else [told]
    assert [item["kind"] for item in items] == KINDS[manifest]
    last = "kubectl.kubernetes.io/last-applied-configuration"
    for item in items:
        assert len(item["metadata"]["annotations"][last]) < 262_144


def test_kubectl_and_the_agent_change_one_node(kubectl: Kubectl, api: KubeApi) -> None:
    said: list[str] = []
    checked = Checked("cu124", CLUSTER.image)
    reporter = Reporter(NodeApi(api.url, api.folder), "n1", checked, said.append)
    kubectl("taint", "node", "n1", HELD)
    assert reporter.report(Verdict("unfit", "acs", "ACS is on; switch it off"), 5)
    taints = json.loads(kubectl("get", "node", "n1", "-o", "json"))["spec"]["taints"]
    assert [taint["key"] for taint in taints] == ["maintenance", "tdstack.dev/unfit"]
    path = "{.metadata.annotations.tdstack\\.dev/verdict}"
    assert "switch it off" in kubectl("get", "node", "n1", "-o", f"jsonpath={path}")
    kubectl("taint", "node", "n1", "maintenance-")
    kubectl("label", "node", "n1", "pool=gpu")
    assert reporter.report(Verdict("ready"), 5)
    left = json.loads(kubectl("get", "node", "n1", "-o", "json"))
    assert left["spec"].get("taints", []) == []
    assert left["metadata"]["labels"]["tdstack.dev/ready"] == "true"
    assert left["metadata"]["labels"]["pool"] == "gpu"


def test_a_taint_by_kubectl_is_a_persons(kubectl: Kubectl, api: KubeApi) -> None:
    kubectl("taint", "node", "n1", "tdstack.dev/unfit=held-back:NoSchedule")
    checked = Checked("cu124", CLUSTER.image)
    reporter = Reporter(NodeApi(api.url, api.folder), "n1", checked, lambda text: None)
    for verdict in (Verdict("ready"), Verdict("unfit", "acs", "-"), Verdict("ready")):
        assert reporter.report(verdict, 5)
        told = json.loads(kubectl("get", "node", "n1", "-o", "json"))["spec"]["taints"]
        assert [(taint["key"], taint["value"]) for taint in told] == [
            ("tdstack.dev/unfit", "held-back")
        ]
