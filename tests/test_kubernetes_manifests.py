"""The manifests: valid for every Kubernetes there are schemas for, and tight where schemas are not.

The strict schemas know every field, so a misspelt one is found.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.cluster import write
from tdstack.errors import UsageError
from tdstack.kubernetes.command import main
from tdstack.kubernetes.pack import closure, pack
from tdstack.kubernetes.render import FOLDER, MANIFESTS, render
from tdstack.kubernetes.settings import APPLIES, Options
from tdstack.templates import fill
from tests.shipped import ROOT
from tests.test_cluster import CLUSTER, DIGEST

SERVER = "registry.example/team/sglang@sha256:" + "ab" * 32
OPTIONS = Options(server_image=SERVER, runtime_class="nvidia", pull_secret="registry")
VERSIONS: list[str] = [*dict.fromkeys(kubernetes_validate.utils.all_versions())]
KINDS = {
    "namespace": ["Namespace", "NetworkPolicy"],
    "node-check": [
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "DaemonSet",
    ],
    "smoke": ["ConfigMap", "Job"],
    "multi-node": ["ConfigMap", "Service", "Job"],
    "serving": ["Deployment", "Service", "NetworkPolicy"],
}
WITH_PODS = [name for name in MANIFESTS if name != "namespace"]


@lru_cache(maxsize=32)
def text_of(manifest: str, options: Options = OPTIONS) -> str:
    return render(ROOT, manifest, CLUSTER, options)


def documents(manifest: str, options: Options = OPTIONS) -> list[dict[str, Any]]:
    return [*yaml.safe_load_all(text_of(manifest, options))]


def of_kind(manifest: str, kind: str, options: Options = OPTIONS) -> dict[str, Any]:
    return next(d for d in documents(manifest, options) if d["kind"] == kind)


def pod(manifest: str, options: Options = OPTIONS) -> dict[str, Any]:
    work = next(d for d in documents(manifest, options) if "template" in d.get("spec", {}))
    spec: dict[str, Any] = work["spec"]["template"]["spec"]
    return spec


def containers(manifest: str) -> Iterator[dict[str, Any]]:
    spec = pod(manifest)
    yield from [*spec.get("initContainers", []), *spec["containers"]]


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a version's definitions once, and not for every document."""
    read = lru_cache(maxsize=32)(kubernetes_validate.utils.schema_contents)
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", read)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("read_once")
def test_every_schema_there_is_takes_them(version: str) -> None:
    assert len(VERSIONS) >= 8
    for manifest in MANIFESTS:
        assert [d["kind"] for d in documents(manifest)] == KINDS[manifest]
        for options in (OPTIONS, Options(server_image=SERVER)):
            for document in documents(manifest, options):
                kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_find_a_field_that_is_misspelt() -> None:
    job = of_kind("smoke", "Job")
    job["spec"]["template"]["spec"]["containers"][0]["securityContext"]["runAsNonRot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="runAsNonRot"):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("manifest", WITH_PODS)
def test_images_are_those_of_the_cluster_file_by_digest(manifest: str) -> None:
    wanted = SERVER if manifest == "serving" else CLUSTER.image
    assert {c["image"] for c in containers(manifest)} == {wanted}
    assert {c["imagePullPolicy"] for c in containers(manifest)} == {"IfNotPresent"}
    assert pod(manifest)["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize("manifest", WITH_PODS)
def test_pods_keep_the_restricted_standard_and_more(manifest: str) -> None:
    spec = pod(manifest)
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 12345,
        "runAsGroup": 0,
        "fsGroup": 12345,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for container in containers(manifest):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        assert name not in spec
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "projected", "persistentVolumeClaim"}
    assert spec["automountServiceAccountToken"] is False
    labels = of_kind("namespace", "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("manifest", WITH_PODS)
def test_what_is_written_is_on_volumes_with_a_limit(manifest: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    for volume in volumes.values():
        assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
    main_one = pod(manifest)["containers"][0]
    mounts = {mount["mountPath"]: mount["name"] for mount in main_one["volumeMounts"]}
    assert mounts["/dev/shm"] == "shm"
    assert "/tmp" in mounts
    used = {m["name"] for c in containers(manifest) for m in c["volumeMounts"]}
    assert used == set(volumes)


@pytest.mark.parametrize("manifest", ["smoke", "multi-node", "serving"])
def test_ranks_get_what_they_are_given(manifest: str) -> None:
    options = Options(
        gpus=4, cpus="8", memory="32Gi", shm="2Gi", resources=("rdma/hca=1",), server_image=SERVER
    )
    resources = pod(manifest, options)["containers"][0]["resources"]
    both = {"memory": "32Gi", "nvidia.com/gpu": "4", "rdma/hca": "1"}
    assert resources == {"limits": both, "requests": {**both, "cpu": "8"}}
    shm = next(v for v in pod(manifest, options)["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"]["sizeLimit"] == "2Gi"
    # An extended resource is no part of a request that is not its limit.
    cpu = Options(kind="cpu", server_image=SERVER)
    assert "nvidia.com/gpu" not in pod(manifest, cpu)["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("manifest", WITH_PODS)
def test_every_container_asks_for_what_it_needs_and_has_a_limit(manifest: str) -> None:
    for container in containers(manifest):
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("manifest", ["smoke", "multi-node"])
def test_jobs_end_and_go(manifest: str) -> None:
    spec = of_kind(manifest, "Job")["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 3600)
    assert spec["ttlSecondsAfterFinished"] == 86400
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"}
    ]


def test_pods_of_several_nodes_find_each_other_by_name() -> None:
    options = Options(nodes=3, name="pair")
    job, service = of_kind("multi-node", "Job", options), of_kind("multi-node", "Service", options)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"] == "pair"
    command = spec["template"]["spec"]["containers"][0]["command"]
    assert {"--nodes=3", "--service=pair"} <= set(command)
    terms = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
    term = terms["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_the_agent_may_get_and_patch_nodes_and_nothing_else() -> None:
    role = of_kind("node-check", "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}]
    binding = of_kind("node-check", "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = of_kind("node-check", "ServiceAccount")
    assert binding["subjects"] == [
        {
            "kind": "ServiceAccount",
            "name": account["metadata"]["name"],
            "namespace": account["metadata"]["namespace"],
        }
    ]
    assert pod("node-check")["serviceAccountName"] == account["metadata"]["name"]
    for manifest in WITH_PODS[1:]:
        assert "serviceAccountName" not in pod(manifest)


def test_the_agent_has_probes_a_token_that_ends_and_comes_to_every_gpu_node() -> None:
    spec = pod("node-check")
    agent = spec["containers"][0]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(agent)
    credentials = next(v for v in spec["volumes"] if v["name"] == "credentials")
    sources = credentials["projected"]["sources"]
    assert sources[0]["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600}
    assert sources[1]["configMap"]["name"] == "kube-root-ca.crt"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true", "kubernetes.io/arch": "amd64"}
    assert {"key": "tdstack.dev/unfit", "operator": "Exists"} in spec["tolerations"]
    assert spec["terminationGracePeriodSeconds"] <= 30


@pytest.mark.parametrize(
    ("path", "text", "code"),
    [("alive", "", 0), ("old", "", 1), ("none", "", 1)],
)
def test_the_probes_tell_an_agent_that_works_from_one_that_does_not(
    tmp_path: Path, path: str, text: str, code: int
) -> None:
    probe = pod("node-check")["containers"][0]["livenessProbe"]["exec"]["command"]
    alive = tmp_path / "alive"
    if path != "none":
        alive.touch()
    if path == "old":
        subprocess.run(["touch", "-d", "-5 minutes", str(alive)], check=True)
    here = [word.replace("/state", str(tmp_path)) for word in probe]
    assert subprocess.run(here, capture_output=True, check=False).returncode == code


def test_a_suspect_node_can_be_looked_at() -> None:
    spec = pod("smoke", Options(node="gpu-7.example"))
    assert spec["nodeSelector"]["kubernetes.io/hostname"] == "gpu-7.example"
    assert {"key": "tdstack.dev/unfit", "operator": "Exists"} in spec["tolerations"]
    ready = pod("multi-node")["nodeSelector"]
    assert ready["tdstack.dev/ready"] == "true"
    assert ready["tdstack.dev/image"] == DIGEST.removeprefix("sha256:")[:12]
    assert pod("serving")["nodeSelector"]["tdstack.dev/ready"] == "true"
    assert "runtimeClassName" not in pod("smoke", Options())


@pytest.mark.parametrize("manifest", ["node-check", "smoke", "multi-node"])
def test_kubectl_can_apply_the_files(manifest: str) -> None:
    config_map = of_kind(manifest, "ConfigMap")
    # What kubectl keeps in kubectl.kubernetes.io/last-applied-configuration.
    assert len(json.dumps(config_map, separators=(",", ":"))) < 262_144 - 4096
    assert config_map["immutable"] is True
    name = config_map["metadata"]["name"]
    packed = next(v for v in pod(manifest)["volumes"] if v["name"] == "packed")
    assert packed["configMap"]["name"] == name
    assert re.fullmatch(r"tdstack-(agent|smoke)-[0-9a-f]{10}", name)


@pytest.mark.parametrize("manifest", ["node-check", "smoke", "multi-node"])
def test_the_files_unpack_as_the_pods_command_does(manifest: str, tmp_path: Path) -> None:
    data = b64decode(of_kind(manifest, "ConfigMap")["binaryData"]["files.tar.gz"])
    (tmp_path / "files.tar.gz").write_bytes(data)
    command = next(c for c in containers(manifest) if c["name"] == "files")["command"]
    assert command[0] == "python"
    here = [
        w.replace("/packed/", f"{tmp_path}/").replace("/files", f"{tmp_path}/f") for w in command
    ]
    here[4] = str(tmp_path / "files.tar.gz")
    done = subprocess.run([sys.executable, *here[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {"smoke": "kubernetes/smoke.py", "multi-node": "kubernetes/smoke.py"}
    assert (tmp_path / "f/tdstack" / wanted.get(manifest, "kubernetes/agent.py")).exists()
    assert not list((tmp_path / "f").rglob("__pycache__"))


def test_equal_files_give_equal_bytes_and_too_many_are_refused() -> None:
    files = {"b": b"2", "a": b"1"}
    assert pack(files) == pack(dict(reversed(files.items())))
    with tarfile.open(fileobj=io.BytesIO(pack(files).data)) as archive:
        assert archive.getnames() == ["a", "b"]
        assert {m.uid for m in archive} == {0}
    with pytest.raises(UsageError, match="too large"):
        pack({"noise": random_bytes(200_000)})


def random_bytes(size: int) -> bytes:
    import random

    return random.Random(1).randbytes(size)


def test_a_closure_has_what_is_imported_and_no_more() -> None:
    found = closure(ROOT, ["tdstack.kubernetes.agent"])
    assert {"tdstack/__init__.py", "tdstack/kubernetes/__init__.py"} <= found
    assert {"tdstack/kubernetes/verdict.py", "tdstack/kubernetes/api.py"} <= found
    assert "tdstack/kubernetes/render.py" not in found


def test_the_script_prints_what_kubectl_takes(tmp_path: Path) -> None:
    file = tmp_path / "cluster.env"
    write(file, CLUSTER)
    command = [str(ROOT / FOLDER / "render"), str(file), "smoke", "--gpus", "4", "--resource"]
    # With the distribution's Python alone, as on a login node.
    done = subprocess.run(
        ["python3", "-S", *command, "rdma/hca=1"], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == text_of("smoke", Options(gpus=4, resources=("rdma/hca=1",)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["smoke", "--shm", "64M"], "--shm"),
        (["smoke", "--gpus", "0"], "1 to 16"),
        (["smoke", "--nodes", "2"], "smoke has no --nodes"),
        (["smoke", "--namespace", "Team_A"], "--namespace"),
        (["smoke", "--resource", "rdma=x"], "--resources"),
        (["serving"], "--server-image"),
        (["serving", "--server-image", "sglang:latest"], "--server-image"),
        (["node-check", "--gpu-node", "gpu"], "--gpu-nodes"),
    ],
)
def test_options_that_do_not_fit_end_with_2(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.env"
    write(file, CLUSTER)
    assert main(ROOT, [str(file), *options]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
    assert main(ROOT, [str(tmp_path / "none"), "smoke"]) == 2


OTHERS: dict[str, object] = {
    "namespace": "other",
    "name": "other",
    "node": "gpu-7",
    "gpu_nodes": ("pool=gpu",),
    "runtime_class": "other",
    "pull_secret": "other",
    "gpus": 4,
    "nodes": 4,
    "cpus": "4",
    "memory": "4Gi",
    "shm": "4Gi",
    "resources": ("rdma/hca=1",),
    "kind": "cpu",
    "deadline_s": 100,
    "interval_s": 100,
    "check_limit_s": 100,
    "tolerate": "clock",
    "taint": "off",
    "server_image": SERVER.replace("ab", "cd"),
    "model": "other",
    "models_claim": "other",
    "replicas": 4,
}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_has_the_options_that_change_it(manifest: str) -> None:
    assert set(OTHERS) == {field.name for field in fields(Options)}
    for name, value in OTHERS.items():
        other = text_of(manifest, replace(OPTIONS, **{name: value}))  # type: ignore[arg-type]
        if name in APPLIES[manifest]:
            assert other != text_of(manifest), name
        elif (manifest, name) != ("serving", "kind"):  # without GPUs, which it does not offer
            assert other == text_of(manifest), name


STRINGS = [f.name for f in fields(Options) if isinstance(f.default, str)]


def shape(data: object) -> object:
    """Return keys and types: what no value may change."""
    if isinstance(data, dict):
        return {key: shape(value) for key, value in data.items()}
    return [shape(value) for value in data] if isinstance(data, list) else type(data).__name__


WORDS = st.sampled_from(["on", "no", "null", "1", "0x1", "1e3", "~", "a: b", "a #", "{", "- a"])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(STRINGS), st.text(max_size=30) | WORDS)
def test_no_value_of_an_option_is_more_than_a_value(name: str, value: str) -> None:
    given_one = {"server_image": SERVER, "runtime_class": "a", "pull_secret": "b", name: value}
    try:
        options = Options(**given_one)  # type: ignore[arg-type]
    except UsageError:
        return
    if not value:
        return
    for manifest in ("serving", "namespace"):
        parsed = [*yaml.safe_load_all(render(ROOT, manifest, CLUSTER, options))]
        assert shape(parsed) == shape(documents(manifest))
        if name == "namespace":
            assert value in {d["metadata"].get("namespace") for d in parsed}


def test_a_line_without_a_value_goes_and_an_unknown_name_is_an_error() -> None:
    assert fill("a: ${A}\nb: ${B}\n", {"A": "", "B": "1"}) == "b: 1\n"
    assert fill("c: $(NODE) ${B}", {"B": "1"}) == "c: $(NODE) 1\n"
    with pytest.raises(KeyError):
        fill("${C}", {})
