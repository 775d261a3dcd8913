"""An API server of Kubernetes in small: nodes over TLS with a token, as far as the agent goes.

What is refused and with which status follows the real one: a PATCH's media type, validation of
labels and taints, a resourceVersion that is not the latest. It tells kubectl enough of itself that
kubectl reads and changes these nodes too, which is how the semantics here are checked.
"""

from __future__ import annotations

import copy
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.authorities import make_authority
from tests.scripted import Asked, Reply, Scripted, scripted_server

NODES = "/api/v1/nodes"
PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
REASONS = {401: "Unauthorized", 404: "NotFound", 409: "Conflict", 422: "Invalid"}
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
RESOURCES = {
    "v1": [("namespaces", "Namespace", False), ("nodes", "Node", False)]
    + [(f"{kind.lower()}s", kind, True) for kind in ("ConfigMap", "Service", "ServiceAccount")],
    "apps/v1": [("daemonsets", "DaemonSet", True), ("deployments", "Deployment", True)],
    "batch/v1": [("jobs", "Job", True)],
    "rbac.authorization.k8s.io/v1": [
        ("clusterroles", "ClusterRole", False),
        ("clusterrolebindings", "ClusterRoleBinding", False),
    ],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy", True)],
    "policy/v1": [("poddisruptionbudgets", "PodDisruptionBudget", True)],
}


def node(name: str, *taints: dict[str, str], **labels: str) -> dict[str, Any]:
    """Return a node."""
    metadata = {"name": name, "resourceVersion": "1", "labels": labels, "annotations": {}}
    spec = {"taints": list(taints)} if taints else {}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": {}}


@dataclass
class KubeApi:
    """The server's state. `faults` are taken in turn before a request is served; None serves it.

    `before` is called with each request, as somebody else who changes the nodes meanwhile.
    """

    folder: Path
    token: str = "first"
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Callable[[], Reply | None] | None] = field(default_factory=list)
    before: Callable[[Asked], None] = lambda asked: None
    version: int = 1
    server: Scripted | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"https://{self.server.host}"

    @property
    def asked(self) -> list[str]:
        """Return what was asked for, without kubectl's questions about the server."""
        assert self.server is not None
        return [a.method for a in self.server.asked if a.path.startswith(NODES)]

    def add(self, one: dict[str, Any]) -> None:
        """Add a node, or replace it as somebody else would."""
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        self.nodes[one["metadata"]["name"]] = one

    def write_token(self, token: str = "") -> None:
        """Write the pod's credentials, as the kubelet does; with `token` the server wants that."""
        self.token = token or self.token
        (self.folder / "token").write_text(self.token)

    def reply(self, asked: Asked) -> Reply | None:
        """Answer."""
        if self.faults and asked.path.startswith(NODES):
            fault = self.faults.pop(0)
            if fault is not None:
                return fault()
        if asked.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized")
        self.before(asked)
        path = asked.path.partition("?")[0]
        if (told := _discovery(path)) is not None:
            return _json(told)
        match = re.fullmatch(rf"{NODES}/([^/]+)", path)
        if match is None:
            return status(404, "the server could not find the requested resource")
        found = self.nodes.get(match[1])
        if found is None:
            return status(404, f'nodes "{match[1]}" not found')
        if asked.method == "PATCH":
            return self._patch(found, asked)
        return _json(found) if asked.method == "GET" else status(405, "no such method here")

    def _patch(self, found: dict[str, Any], asked: Asked) -> Reply:
        kind = asked.headers.get("Content-Type", "")
        if kind not in PATCHES[:3]:
            return status(415, f"the body of the request was in an unknown format - {kind}")
        try:
            patch = json.loads(asked.body)
        except ValueError:
            return status(400, "the body is no JSON")
        if kind == PATCHES[0]:
            return status(501, "no JSON patches here")
        # In a node the strategic kind differs in lists that have a merge key; taints have none.
        merged = merge(found, patch)
        if merged["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
            return status(409, "the object has been modified; please apply your changes")
        if wrong := _invalid(merged):
            return status(422, wrong)
        self.add(merged)
        return _json(merged)


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def status(code: int, message: str, **headers: str) -> Reply:
    """Return an answer that refuses, as the API server words it."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    told = {"message": message, "reason": REASONS.get(code, ""), "code": code}
    return _json({**body, **told}, code, **headers)


def slow(seconds: float) -> Callable[[], Reply | None]:
    """Return a fault: no answer for so long, then none at all."""

    def fault() -> None:
        time.sleep(seconds)

    return fault


@contextmanager
def kube_api(folder: Path) -> Iterator[KubeApi]:
    """Run the server; ca.crt and token lie in `folder` as in a pod."""
    authority = make_authority(folder)
    certificate, key = authority.sign("apiserver", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    api = KubeApi(folder)
    api.write_token()
    with scripted_server(api.reply, context) as server:
        api.server = server
        yield api


def _json(data: object, code: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(code, json.dumps(data).encode(), {"Content-Type": "application/json", **named})


def _invalid(one: dict[str, Any]) -> str:
    metadata = one["metadata"]
    for name, value in (metadata.get("labels") or {}).items():
        if not isinstance(value, str) or len(value) > 63 or VALUE.fullmatch(value) is None:
            return f"metadata.labels: Invalid value: {name}={value!r}"
    if sum(len(k) + len(v) for k, v in (metadata.get("annotations") or {}).items()) > 256 << 10:
        return "metadata.annotations: Too long: must have at most 262144 bytes"
    seen = set()
    for taint in one["spec"].get("taints") or []:
        value = taint.get("value", "")
        if len(value) > 63 or VALUE.fullmatch(value) is None or taint["effect"] not in EFFECTS:
            return f"spec.taints: Invalid value: {taint}"
        if (taint["key"], taint["effect"]) in seen:
            return "spec.taints: Duplicate value: taints must be unique by key and effect pair"
        seen.add((taint["key"], taint["effect"]))
    return ""


def _discovery(path: str) -> dict[str, Any] | None:
    if path == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0", "platform": "linux/amd64"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [_group(version) for version in RESOURCES if "/" in version]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in RESOURCES or path.count("/") != (3 if "/" in version else 2):
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update"]
    resources = [
        {"name": name, "singularName": "", "namespaced": within, "kind": kind, "verbs": verbs}
        for name, kind, within in RESOURCES[version]
    ]
    head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version}
    return {**head, "resources": resources}


def _group(version: str) -> dict[str, Any]:
    entry = {"groupVersion": version, "version": version.partition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [entry], "preferredVersion": entry}
