"""The command line of scripts/kubernetes/render. Standard library only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

from tdstack.cluster import read
from tdstack.errors import TdstackError, UsageError
from tdstack.kubernetes.render import MANIFESTS, render
from tdstack.kubernetes.settings import APPLIES, Options

HELP: Final = {
    "namespace": "of everything that is in one",
    "name": "of the Job or server (default: tdstack-smoke, tdstack-multi-node, tdstack-server)",
    "node": "smoke: on this node, even where it is tainted as unfit",
    "gpu_nodes": "node-check: a label of nodes with GPUs, NAME=VALUE; repeatable",
    "runtime_class": "runtimeClassName that gives pods the driver, such as nvidia",
    "pull_secret": "name of the secret for the registry",
    "gpus": "GPUs of each pod",
    "nodes": "multi-node: how many",
    "cpus": "cores of each pod with ranks",
    "memory": "memory of each pod with ranks, /dev/shm included",
    "shm": "size of /dev/shm",
    "resources": "more that each pod with ranks asks for, NAME=COUNT; repeatable",
    "kind": "gpu, or cpu: ranks in Triton's interpreter, without GPUs",
    "deadline_s": "seconds that a Job may take",
    "interval_s": "node-check: seconds between checks",
    "check_limit_s": "node-check: seconds that a check may take",
    "tolerate": "node-check: findings that make no node unfit, with commas between them",
    "taint": "node-check: on, or off: label only",
    "server_image": "serving: SGLang's image with the kernels, by digest",
    "model": "serving: folder of the model in the claim",
    "models_claim": "serving: the persistent volume claim with the models",
    "replicas": "serving: how many servers, each on a node",
}
REPEATED: Final = {"gpu_nodes": "--gpu-node", "resources": "--resource"}


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """Print a manifest of the checkout at `root`; return the exit code."""
    given = vars(_parser().parse_args(arguments))
    file, manifest = given.pop("file"), given.pop("manifest")
    chosen = {name: value for name, value in given.items() if value is not None}
    chosen |= {name: tuple(chosen[name]) for name in REPEATED if name in chosen}
    try:
        for name in chosen:
            if name not in APPLIES[manifest]:
                expected = ", ".join(flag_of(n) for n in APPLIES[manifest])
                raise UsageError(f"{manifest} has no {flag_of(name)}", expected=expected)
        text = render(root, manifest, read(file), Options(**chosen))
    except TdstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # kubectl's own message says why it ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def flag_of(name: str) -> str:
    """Return how an option is written on the command line."""
    return REPEATED.get(name, f"--{name.replace('_', '-')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="render",
        description="Print a manifest, filled from the cluster file, for kubectl apply -f -",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, help="cluster.env, by invoke push or pull --cluster")
    parser.add_argument("manifest", choices=MANIFESTS)
    for option in fields(Options):
        default = option.default
        shown = f" (default: {default})" if isinstance(default, str | int) and default else ""
        parser.add_argument(
            flag_of(option.name),
            dest=option.name,
            type=int if isinstance(default, int) else str,
            action="append" if option.name in REPEATED else "store",
            help=HELP[option.name] + shown,
        )
    return parser
