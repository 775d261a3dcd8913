"""What an operator may say about a cluster when manifests are rendered. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tdstack.errors import UsageError
from tdstack.registry.reference import is_pinned

# A DNS label that is short enough to be the start of another, and that YAML takes for a text.
_NAME: Final = r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[a-z]([-a-z0-9]{0,40}[a-z0-9])?"
_LABEL: Final = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9][\w.-]*=[A-Za-z0-9]?[\w.-]*", re.ASCII)
_FORMS: Final = {
    "namespace": _NAME,
    "name": _NAME,
    "node": r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?",
    "runtime_class": rf"({_NAME})?",
    "pull_secret": rf"({_NAME})?",
    "memory": r"[1-9][0-9]{0,5}(Mi|Gi|Ti)",
    "shm": r"[1-9][0-9]{0,5}(Mi|Gi)",
    "cpus": r"[1-9][0-9]{0,3}",
    "tolerate": r"[A-Za-z0-9 ,._-]*",
    "taint": r"on|off",
    "kind": r"gpu|cpu",
    "model": r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*",
    "models_claim": _NAME,
}
_RANGES: Final = {
    "gpus": range(1, 17),
    "nodes": range(1, 10_001),
    "deadline_s": range(60, 86_401),
    "interval_s": range(60, 604_801),
    "check_limit_s": range(10, 86_401),
    "replicas": range(10_001),
}


_EVERY: Final = ("namespace", "runtime_class", "pull_secret")
_RANKS: Final = ("name", "gpus", "cpus", "memory", "shm", "resources")
APPLIES: Final[dict[str, tuple[str, ...]]] = {
    "namespace": ("namespace",),
    "node-check": (*_EVERY, "gpu_nodes", "interval_s", "check_limit_s", "tolerate", "taint"),
    "smoke": (*_EVERY, *_RANKS, "node", "kind", "deadline_s"),
    "multi-node": (*_EVERY, *_RANKS, "nodes", "kind", "deadline_s"),
    "serving": (*_EVERY, *_RANKS, "server_image", "model", "models_claim", "replicas"),
}
"""Which options a manifest has."""


@dataclass(frozen=True)
class Options:
    """How the manifests differ from one cluster to the next. Times in seconds.

    Attributes:
        name: of the Job, or of the server.
        node: run the smoke Job on this node, even where it is tainted as unfit.
        gpu_nodes: labels, NAME=VALUE, of nodes with GPUs.
        resources: more that the ranks' pod asks for, NAME=COUNT, such as RDMA devices.
        kind: of ranks: gpu, or cpu for Triton's interpreter on a cluster without GPUs.

    Raises: UsageError naming the option with a value that is none of its kind.
    """

    namespace: str = "tdstack"
    name: str = ""
    node: str = ""
    gpu_nodes: tuple[str, ...] = ("nvidia.com/gpu.present=true",)
    runtime_class: str = ""
    pull_secret: str = ""
    gpus: int = 8
    nodes: int = 2
    cpus: str = "16"
    memory: str = "64Gi"
    shm: str = "1Gi"
    resources: tuple[str, ...] = ()
    kind: str = "gpu"
    deadline_s: int = 3600
    interval_s: int = 3600
    check_limit_s: int = 600
    tolerate: str = ""
    taint: str = "on"
    server_image: str = ""
    model: str = "model"
    models_claim: str = "models"
    replicas: int = 1

    def __post_init__(self) -> None:
        for name, form in _FORMS.items():
            value = getattr(self, name)
            if not (name == "name" and not value) and not re.fullmatch(form, value, re.ASCII):
                raise bad_option(name, f"a value of the form {form}", value)
        for name, allowed in _RANGES.items():
            if getattr(self, name) not in allowed:
                wanted = f"{allowed.start} to {allowed.stop - 1}"
                raise bad_option(name, wanted, str(getattr(self, name)))
        for name in ("gpu_nodes", "resources"):
            for pair in getattr(self, name):
                counted = name == "gpu_nodes" or pair.partition("=")[2].isdigit()
                if _LABEL.fullmatch(pair) is None or not counted:
                    raise bad_option(name, "NAME=VALUE; of a resource NAME=COUNT", pair)
        if self.server_image and not is_pinned(self.server_image):
            raise bad_option("server_image", "HOST[:PORT]/PATH@sha256:HEX", self.server_image)


def bad_option(option: str, expected: str, got: str) -> UsageError:
    """Return the error for an option whose value does not fit."""
    return UsageError(
        "an option has no value that fits",
        where=f"--{option.replace('_', '-')}",
        expected=expected,
        got=got or "none",
    )
