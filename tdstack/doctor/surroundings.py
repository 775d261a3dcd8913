"""Facts about containers and networks: what runs beside the stack, and what it runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tdstack.doctor.kinds import Bytes, Count, Flag, Lengths, Text, Words


@dataclass(frozen=True)
class Engine:
    """A container engine: docker, podman, buildah, apptainer, enroot, containerd.

    `works` says that it answered; `why` is its answer when it did not. `cdi` says that it knows
    the Container Device Interface. `root` is where it keeps images.
    """

    name: Text = None
    installed: Flag = None
    works: Flag = None
    version: Text = None
    storage: Text = None
    root: Text = None
    runtimes: Words = None
    cdi: Flag = None
    rootless: Flag = None
    cgroup_driver: Text = None
    why: Text = None


@dataclass(frozen=True)
class CdiSpec:
    """A file of the Container Device Interface.

    `driver` is the version in the names of the libraries it lists: that of the driver it was
    written for.
    """

    file: Text = None
    kind: Text = None
    devices: Count = None
    driver: Text = None


@dataclass(frozen=True)
class Container:
    """Engines, and whether the facts are those of a container (`inside`) or of the host.

    `kind` is `docker`, `podman`, `kubernetes`, `apptainer`, `enroot`, `lxc` or `other`. `cgroup`
    is 1 or 2; `memory_limit` its bytes, or `UNLIMITED`. `toolkit` says that
    nvidia-container-toolkit is installed.
    """

    inside: Flag = None
    kind: Text = None
    cgroup: Count = None
    memory_limit: Bytes = None
    engines: Annotated[tuple[Engine, ...] | None, Lengths(64)] = None
    toolkit: Flag = None
    toolkit_version: Text = None
    toolkit_mode: Text = None
    toolkit_no_cgroups: Flag = None
    cdi: Annotated[tuple[CdiSpec, ...] | None, Lengths(256)] = None


@dataclass(frozen=True)
class Interface:
    """A network interface. `families` are `AF_INET` and `AF_INET6` (link-local does not count).

    `speed_mbps` is the link's, in 10^6 bits per second.
    """

    name: Text = None
    up: Flag = None
    loopback: Flag = None
    virtual: Flag = None
    mtu: Count = None
    speed_mbps: Count = None
    families: Words = None


@dataclass(frozen=True)
class Route:
    """A default route."""

    family: Text = None
    interface: Text = None


@dataclass(frozen=True)
class Network:
    """Interfaces and default routes; `host_resolves` whether the host's name has an address.

    `bootstrap_interface` and `bootstrap_family` are those of the first default route: what a
    connection to the outside takes; empty when no route leads out.
    """

    interfaces: Annotated[tuple[Interface, ...] | None, Lengths(4096)] = None
    default_routes: Annotated[tuple[Route, ...] | None, Lengths(256)] = None
    bootstrap_interface: Text = None
    bootstrap_family: Text = None
    host_resolves: Flag = None
