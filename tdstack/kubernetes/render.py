"""Manifests of scripts/kubernetes/, filled from the cluster file. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tdstack.cluster import Cluster
from tdstack.errors import UsageError
from tdstack.kubernetes.pack import agent_files, smoke_files
from tdstack.kubernetes.patch import IMAGE, READY, UNFIT, Checked
from tdstack.kubernetes.settings import Options, bad_option
from tdstack.templates import fill

FOLDER: Final = Path("scripts/kubernetes")
MANIFESTS: Final = ("namespace", "node-check", "smoke", "multi-node", "serving")


def render(root: Path, manifest: str, cluster: Cluster, options: Options) -> str:
    """Return one of MANIFESTS as YAML. Equal input gives equal text.

    Raises: UsageError for a manifest that is not there or lacks an option; HostError and UsageError
    as pack.py does.
    """
    if manifest not in MANIFESTS:
        raise UsageError("no such manifest", expected=", ".join(MANIFESTS), got=manifest)
    template = (root / FOLDER / f"{manifest}.yaml").read_text()
    values = _values(manifest, cluster, options)
    if manifest == "serving" and not options.server_image:
        raise bad_option("server_image", "SGLang's image with the kernels, by digest", "")
    if manifest == "node-check":
        packed = agent_files(root)
        values |= {"AGENT_SHA": packed.sha, "AGENT_FILES": packed.base64}
    if manifest in ("smoke", "multi-node"):
        packed = smoke_files(root)
        values |= {"SMOKE_SHA": packed.sha, "SMOKE_FILES": packed.base64}
    return fill(template, values)


def _values(manifest: str, cluster: Cluster, options: Options) -> dict[str, str]:
    arch = {"kubernetes.io/arch": cluster.platform.partition("/")[2]}
    checked = Checked(cluster.line, cluster.image)
    fit = {**arch, READY: "true"}
    gpus = {"nvidia.com/gpu": str(options.gpus)} if options.kind == "gpu" else {}
    more = dict(pair.split("=", 1) for pair in options.resources)
    asked = {"cpu": options.cpus, "memory": options.memory, **gpus, **more}
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    node = {"kubernetes.io/hostname": options.node} if options.node else {}
    suspect = manifest == "smoke" and options.node
    unfit = [{"key": UNFIT, "operator": "Exists"}] if suspect else []
    server = manifest == "serving"
    values: dict[str, object] = {
        "IMAGE": cluster.image,
        "CUDA": cluster.cuda,
        "LINE": cluster.line,
        "NAMESPACE": options.namespace,
        "NAME": options.name or ("tdstack-server" if server else f"tdstack-{manifest}"),
        "GPUS": options.gpus,
        "NODES": options.nodes,
        "SHM": options.shm,
        "KIND": options.kind,
        "DEADLINE_S": options.deadline_s,
        "INTERVAL_S": options.interval_s,
        "CHECK_LIMIT_S": options.check_limit_s,
        "TOLERATE": options.tolerate,
        "TAINT": options.taint,
        "RUNTIME_CLASS": options.runtime_class,
        "PULL_SECRETS": _flow([{"name": options.pull_secret}] if options.pull_secret else ""),
        "GPU_NODES": _flow({**dict(p.split("=", 1) for p in options.gpu_nodes), **arch}),
        "NODE": _flow({**arch, **node}),
        "FIT_NODES": _flow(fit),
        "READY_NODES": _flow({**fit, IMAGE: checked.digest}),
        "TOLERATIONS": _flow([*tolerations, *unfit]),
        "REQUESTS": _flow(asked),
        "LIMITS": _flow({k: v for k, v in asked.items() if k != "cpu"}),
        "MODEL": options.model,
        "MODELS_CLAIM": options.models_claim,
        "REPLICAS": options.replicas,
        "SERVER_IMAGE": options.server_image,
    }
    return {name: str(value) for name, value in values.items()}


def _flow(data: object) -> str:
    return json.dumps(data) if data else ""
