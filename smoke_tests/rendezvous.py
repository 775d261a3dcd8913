"""Which node this is of how many, and where they meet: from Slurm, Kubernetes, or as given. Pure.

Standard library only; nothing here looks at the host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Final

PORT: Final = 29500
MOST_HOSTS: Final = 65536
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)")


class RendezvousError(ValueError):
    """What the environment or the options say does not add up to a launch."""

    def __init__(self, what: str, where: str, remedy: str = "") -> None:
        super().__init__(f"{what} ({where})" + (f"; {remedy}" if remedy else ""))
        self.what, self.where, self.remedy = what, where, remedy


@dataclass(frozen=True)
class Given:
    """What was said on the command line; None where nothing was."""

    nodes: int | None = None
    node: int | None = None
    ranks_per_node: int | None = None
    address: str | None = None
    port: int | None = None
    service: str | None = None


@dataclass(frozen=True)
class Rendezvous:
    """This node's part in a launch.

    Attributes:
        nodes, node: how many there are, and which one this is, from 0.
        ranks_per_node: processes that torchrun starts here.
        address, port: where node 0 keeps the store.
        source: who said so, for people.
    """

    nodes: int
    node: int
    ranks_per_node: int
    address: str
    port: int
    source: str

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.ranks_per_node < 1:
            got = f"{self.nodes} nodes of {self.ranks_per_node} ranks"
            raise RendezvousError(f"a launch needs a node and a rank, not {got}", self.source)
        if not 0 <= self.node < self.nodes:
            raise RendezvousError(f"no node {self.node} among {self.nodes}", self.source)
        if not 0 < self.port < 65536:
            raise RendezvousError(f"no port {self.port}", self.source)

    def torchrun(self) -> list[str]:
        """Return torchrun's options. Ranks are never restarted: a rank that died is a finding."""
        return [
            f"--nnodes={self.nodes}",
            f"--node-rank={self.node}",
            f"--nproc-per-node={self.ranks_per_node}",
            f"--master-addr={self.address}",
            f"--master-port={self.port}",
            "--max-restarts=0",
        ]


def resolve(environment: Mapping[str, str], given: Given, ranks_per_node: int) -> Rendezvous:
    """Return this node's part; what is given goes before what the environment says.

    ``ranks_per_node`` is taken where none is given. Without any sign of a launch: this host alone.
    Raises: RendezvousError for variables that are missing, are no numbers, or contradict.
    """
    if "SLURM_JOB_ID" in environment:
        found = _slurm(environment)
    elif "JOB_COMPLETION_INDEX" in environment:
        found = _kubernetes(environment, given)
    else:
        found = _Found("the options")
    nodes = _first(given.nodes, found.nodes, 1)
    address = given.address or found.address
    if not address and nodes > 1:
        raise RendezvousError(
            f"{nodes} nodes, and none is said to be the first",
            found.source,
            "name it with --master-addr",
        )
    if nodes > 1 and given.node is None and found.node is None:
        raise RendezvousError(
            f"which of {nodes} nodes this is, nothing says",
            found.source,
            "give --node-rank, another one on each node, from 0",
        )
    return Rendezvous(
        nodes,
        _first(given.node, found.node, 0),
        _first(given.ranks_per_node, ranks_per_node),
        address if nodes > 1 else given.address or "127.0.0.1",
        _first(given.port, found.port, PORT),
        found.source,
    )


@dataclass(frozen=True)
class _Found:
    source: str
    nodes: int | None = None
    node: int | None = None
    address: str = ""
    port: int | None = None


def _slurm(environment: Mapping[str, str]) -> _Found:
    # A step may have fewer nodes than its job; SLURM_NODEID counts those of the step.
    source = f"Slurm job {environment['SLURM_JOB_ID']}"
    if "SLURM_STEP_ID" not in environment:
        nodes = _number(environment, "SLURM_JOB_NUM_NODES", source)
        if nodes == 1:
            return _Found(source, 1, 0)
        raise RendezvousError(
            f"a job of {nodes} nodes, and this is its batch script, on one of them",
            source,
            "start it with srun --ntasks-per-node=1",
        )
    name = "STEP" if "SLURM_STEP_NODELIST" in environment else "JOB"
    nodes = _number(environment, f"SLURM_{name}_NUM_NODES", source)
    listed = environment.get(f"SLURM_{name}_NODELIST", "")
    hosts = expand_hosts(listed)
    if len(hosts) != nodes:
        what = f"SLURM_{name}_NODELIST names {len(hosts)} of {nodes} nodes: {listed!r}"
        raise RendezvousError(what, source)
    if environment.get("SLURM_LOCALID", "0") != "0":
        raise RendezvousError(
            "torchrun starts a node's ranks itself, and this is a further task of the node",
            source,
            "start it with srun --ntasks-per-node=1",
        )
    job = _number(environment, "SLURM_JOB_ID", source)
    step = _number(environment, "SLURM_STEP_ID", source)
    # Jobs that share a node must not share a port; below those that the kernel gives out.
    port = 20000 + (job * 16 + step) % 10000
    return _Found(source, nodes, _number(environment, "SLURM_NODEID", source), hosts[0], port)


def _kubernetes(environment: Mapping[str, str], given: Given) -> _Found:
    source = "Kubernetes indexed Job"
    index = _number(environment, "JOB_COMPLETION_INDEX", source)
    nodes = given.nodes
    if nodes is None and "SMOKE_NODES" in environment:
        nodes = _number(environment, "SMOKE_NODES", source)
    if nodes is None:
        raise RendezvousError(
            "Kubernetes does not tell a pod how many completions its Job has",
            source,
            "give --nodes, or SMOKE_NODES in the pod's environment",
        )
    service = given.service or environment.get("SMOKE_SERVICE", "")
    host = environment.get("HOSTNAME", "")
    address = ""
    if nodes > 1 and not given.address:
        if not service:
            raise RendezvousError(
                "a pod finds the others by a headless service, and none is named",
                source,
                "give --service, or SMOKE_SERVICE in the pod's environment",
            )
        # An indexed Job calls its pods <job>-<index>, and each of them <pod>.<subdomain>.
        job, dash, last = host.rpartition("-")
        if not dash or last != str(index):
            what = f"HOSTNAME {host!r} is not <job>-{index}, as an indexed Job names its pods"
            raise RendezvousError(what, source, "give --master-addr")
        address = f"{job}-0.{service}"
    return _Found(source, nodes, index, address)


def expand_hosts(text: str) -> list[str]:
    """Return the hosts of a Slurm list: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7, login.

    Brackets may stand anywhere in a name, several times; numbers keep their leading zeros.
    Raises: RendezvousError for text that is no such list, or one of more than 65536 hosts.
    """
    hosts: list[str] = []
    for name in _split(text):
        parts: list[list[str]] = []
        end = 0
        for match in _PART.finditer(name):
            if match.start() != end:
                break
            end = match.end()
            parts.append([match[2]] if match[1] is None else _numbers(match[1], text))
        if end != len(name) or not parts:
            raise _no_list(text)
        if prod(map(len, parts)) + len(hosts) > MOST_HOSTS:
            raise RendezvousError(f"more than {MOST_HOSTS} hosts: {text[:80]!r}", "node list")
        hosts += ["".join(combination) for combination in product(*parts)]
    return hosts


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    names, depth, begin = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise _no_list(text)
        if letter == "," and depth == 0:
            names.append(text[begin:position])
            begin = position + 1
    if depth:
        raise _no_list(text)
    return [*names, text[begin:]]


def _numbers(inside: str, text: str) -> list[str]:
    found: list[str] = []
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if not match:
            raise _no_list(text)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first) or int(last) - int(first) >= MOST_HOSTS:
            raise _no_list(text)
        found += [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return found


def _no_list(text: str) -> RendezvousError:
    return RendezvousError(f"no list of hosts: {text[:80]!r}", "node list")


def _number(environment: Mapping[str, str], name: str, source: str) -> int:
    value = environment.get(name)
    if value is None:
        raise RendezvousError(f"{name} is not set", source)
    if not re.fullmatch(r"\d+", value):
        raise RendezvousError(f"{name} is no number: {value!r}", source)
    return int(value)


def _first(*values: int | None) -> int:
    return next(v for v in values if v is not None)
