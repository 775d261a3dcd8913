"""Facts about a host, as data: what is known, and why the rest is not.

`None` always means "not known", never "absent". Absent is said by the value: `False`, 0, `()`.
So `gpus=None` is a host nobody could ask, `gpus=()` a host without GPUs. Sizes are in bytes.
Records of other versions load too (`tdstack/doctor/load.py`): keys may be missing or new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from tdstack.doctor.hardware import Fabric, Gpu, Pair, Pcie, Rdma, Xid
from tdstack.doctor.kinds import Bytes, Count, Flag, Lengths, Real, Text, Words
from tdstack.doctor.surroundings import CdiSpec, Container, Engine, Interface, Network, Route

__all__ = [
    "SCHEMA",
    "UNLIMITED",
    "CdiSpec",
    "Clock",
    "Container",
    "Driver",
    "Engine",
    "Facts",
    "Installed",
    "Interface",
    "Limits",
    "Memory",
    "Module",
    "Network",
    "Os",
    "Probe",
    "Route",
    "Space",
    "Spaces",
]

SCHEMA = (1, 0)
"""Major and minor: a newer minor adds keys, a newer major gives a key another meaning."""

UNLIMITED = 2**64 - 1
"""A limit without a bound, so that comparing with a size needs no special case."""


@dataclass(frozen=True)
class Os:
    """The operating system. `cmdline` is the kernel's; `root` whether the facts were read as root.

    `distro` is os-release's ID, such as `debian`; `glibc` such as `2.36`; `arch` such as `x86_64`.
    """

    distro: Text = None
    distro_version: Text = None
    kernel: Text = None
    arch: Text = None
    glibc: Text = None
    python: Text = None
    cmdline: Text = None
    root: Flag = None
    cpus: Count = None


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver.

    `version` is the loaded kernel module's; `library` that of libnvidia-ml and libcuda.
    `cuda` is the newest CUDA that it serves, such as `12.4`. `kind` is `open` or `proprietary`.
    `nvml` is `ok`, `no-library`, `no-package` (pynvml), `not-loaded`, `mismatch`, `no-permission`,
    `timeout` (it hangs) or `error`. `parameters` are those of /proc/driver/nvidia/params.
    `devices` are names in /dev: `nvidia*`, `gdrdrv`, `infiniband`, `dxg`.
    """

    present: Flag = None
    version: Text = None
    library: Text = None
    cuda: Text = None
    kind: Text = None
    nvml: Text = None
    parameters: Mapping[str, str] | None = None
    devices: Words = None
    persistenced: Flag = None


@dataclass(frozen=True)
class Module:
    """A loaded kernel module that concerns the stack: NVIDIA's, GDRCopy, RDMA's, vfio.

    `version` is empty where it states none.
    """

    name: Text = None
    version: Text = None


@dataclass(frozen=True)
class Limits:
    """Limits of the process that looked, in bytes or counts; `UNLIMITED` where there is none."""

    memlock_soft: Bytes = None
    memlock_hard: Bytes = None
    nofile_soft: Bytes = None
    nofile_hard: Bytes = None
    stack_soft: Bytes = None
    stack_hard: Bytes = None


@dataclass(frozen=True)
class Space:
    """The file system under a path. `free` is what a user without root may take."""

    path: Text = None
    filesystem: Text = None
    size: Bytes = None
    free: Bytes = None
    writable: Flag = None


@dataclass(frozen=True)
class Spaces:
    """Where room is needed. `cache` is TDSTACK_CACHE's place, `engine` the images' storage."""

    shm: Space = field(default_factory=Space)
    tmp: Space = field(default_factory=Space)
    cache: Space = field(default_factory=Space)
    engine: Space = field(default_factory=Space)
    prefix: Space = field(default_factory=Space)


@dataclass(frozen=True)
class Memory:
    """Main memory; `transparent_hugepages` is `always`, `madvise` or `never`."""

    total: Bytes = None
    available: Bytes = None
    hugepages_total: Count = None
    hugepages_free: Count = None
    hugepage_size: Bytes = None
    transparent_hugepages: Text = None
    numa_nodes: Count = None
    numa_balancing: Flag = None


@dataclass(frozen=True)
class Clock:
    """The kernel's own opinion of its clock (adjtimex(2)), in seconds.

    `source` names the running service that sets it, such as `chronyd`; empty when none was found.
    """

    synchronised: Flag = None
    offset_s: Real = None
    max_error_s: Real = None
    source: Text = None


@dataclass(frozen=True)
class Installed:
    """What of tdstack is here. `where` is `prefix`, `container` or `none`.

    `state` is `whole`, `broken` or `absent`; `problems` say what is broken. `verify` is
    tdstack-verify's verdict, `passed` or `failed`, where it was run.
    """

    where: Text = None
    path: Text = None
    state: Text = None
    problems: Words = None
    version: Text = None
    cuda: Text = None
    triton: Text = None
    torch: Text = None
    python: Text = None
    key: Text = None
    archs: Words = None
    driver_floor: Text = None
    verify: Text = None


@dataclass(frozen=True)
class Probe:
    """How one group of facts was come by: `state` is `ok`, `partial`, `failed` or `timeout`."""

    name: Text = None
    state: Text = None
    seconds: Real = None
    why: Text = None


@dataclass(frozen=True)
class Facts:
    """All that is known of a host.

    `why` maps the path of an unknown fact, or of a section, to the reason. `notes` are what
    loading a record found odd. `label` names the host, in a record without giving its name away.
    `recorded` is a date, `tool` tdstack's version. `environment` holds the variables that the
    stack listens to.
    """

    schema: Text = f"{SCHEMA[0]}.{SCHEMA[1]}"
    label: Text = None
    recorded: Text = None
    tool: Text = None
    os: Os = field(default_factory=Os)
    driver: Driver = field(default_factory=Driver)
    gpus: Annotated[tuple[Gpu, ...] | None, Lengths(256)] = None
    pairs: Annotated[tuple[Pair, ...] | None, Lengths(65536)] = None
    xids: Annotated[tuple[Xid, ...] | None, Lengths(4096)] = None
    fabric: Fabric = field(default_factory=Fabric)
    pcie: Pcie = field(default_factory=Pcie)
    modules: Annotated[tuple[Module, ...] | None, Lengths(4096)] = None
    libraries: Mapping[str, bool] | None = None
    rdma: Annotated[tuple[Rdma, ...] | None, Lengths(256)] = None
    limits: Limits = field(default_factory=Limits)
    spaces: Spaces = field(default_factory=Spaces)
    memory: Memory = field(default_factory=Memory)
    container: Container = field(default_factory=Container)
    network: Network = field(default_factory=Network)
    clock: Clock = field(default_factory=Clock)
    tdstack: Installed = field(default_factory=Installed)
    environment: Mapping[str, str] | None = None
    probes: Annotated[tuple[Probe, ...] | None, Lengths(256)] = None
    why: Mapping[str, str] = field(default_factory=dict)
    notes: Annotated[tuple[str, ...], Lengths(4096)] = ()

    def reason(self, path: str) -> str:
        """Return why the fact at a path such as `fabric.manager_running` is not known, or ''.

        A reason given for a section stands for all that is in it.
        """
        while path:
            if path in self.why:
                return self.why[path]
            path = path.rpartition(".")[0]
        return ""

    def module(self, name: str) -> Flag:
        """Return whether a kernel module is loaded; None where that is not known."""
        if self.modules is None:
            return None
        return any(module.name == name for module in self.modules)
