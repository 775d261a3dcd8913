"""What hosts are made of, in good order."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

from tdstack.doctor.facts import (
    UNLIMITED,
    CdiSpec,
    Clock,
    Container,
    Driver,
    Engine,
    Facts,
    Installed,
    Interface,
    Limits,
    Memory,
    Module,
    Network,
    Os,
    Route,
    Space,
    Spaces,
)
from tdstack.doctor.hardware import Bridge, Gpu, NvLink, Pair, Pcie, Rdma, RdmaPort

GIB = 2**30


MODULES = ("nvidia", "nvidia_uvm", "nvidia_peermem", "gdrdrv", "mlx5_ib")


def gpus(number: int, name: str, capability: str, memory: int, **more: Any) -> tuple[Gpu, ...]:
    """Return GPUs of one type, in order and idle."""
    common: dict[str, Any] = {
        "persistence": True,
        "compute_mode": "default",
        "mig": False,
        "processes": 0,
        "ecc": True,
        "ecc_pending": True,
        "ecc_uncorrected_volatile": 0,
        "ecc_uncorrected_aggregate": 0,
        "remap_pending": False,
        "remap_failed": False,
        "remap_uncorrected": 0,
        "clock_sm": 345,
        "clock_sm_max": 1980,
        "throttle": ("gpu-idle",),
        "temperature": 31.0,
        "temperature_slowdown": 87.0,
        "power_limit": 700.0,
        "power_default": 700.0,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
    }
    return tuple(
        Gpu(
            index=index,
            name=name,
            capability=capability,
            memory=memory,
            pci=f"0000:{0x1B + 0x10 * index:02x}:00.0",
            **{**common, **more},
        )
        for index in range(number)
    )


def nvlinks(number: int, version: int, remote: str = "switch") -> tuple[NvLink, ...]:
    """Return links of a GPU that are all up."""
    return tuple(NvLink(index, True, version, remote, errors=0) for index in range(number))


def pairs(number: int, status: str = "ok", atomics: str = "ok") -> tuple[Pair, ...]:
    """Return what each GPU can do with each other one."""
    return tuple(
        Pair(a, b, read=status, write=status, atomics=atomics)
        for a, b in permutations(range(number), 2)
    )


def modules(*left_out: str) -> tuple[Module, ...]:
    """Return the kernel modules of a GPU host, but some."""
    return tuple(Module(name, "") for name in MODULES if name not in left_out)


def infiniband(number: int, rate: float = 400.0) -> tuple[Rdma, ...]:
    """Return ConnectX-7 cards, each with a port that is up."""
    port = RdmaPort(1, "ACTIVE", "LinkUp", "InfiniBand", rate, gids=1, gids_v2=0)
    return tuple(
        Rdma(f"mlx5_{index}", board="MT_0000000838", firmware="28.39.1002", ports=(port,))
        for index in range(number)
    )


def driver(version: str, cuda: str, kind: str = "open") -> Driver:
    """Return a driver in good order."""
    nodes = ("nvidia0", "nvidiactl", "nvidia-uvm")
    return Driver(True, version, version, cuda, kind, "ok", devices=nodes, persistenced=True)


DOCKER = Engine(
    name="docker",
    installed=True,
    works=True,
    version="27.3.1",
    storage="overlay2",
    runtimes=("io.containerd.runc.v2", "nvidia", "runc"),
    cdi=True,
    cgroup_driver="systemd",
)


def spec(version: str) -> CdiSpec:
    """Return a CDI file that was written for a driver."""
    return CdiSpec("/etc/cdi/nvidia.yaml", "nvidia.com/gpu", 9, version)


def engines(*held: Engine, **more: Any) -> Container:
    """Return a host with these engines and NVIDIA's toolkit."""
    common: dict[str, Any] = {"toolkit": True, "toolkit_version": "1.17.8", "cdi": ()}
    return Container(False, cgroup=2, engines=held, **{**common, **more})


def wired(interface: str = "eth0", families: tuple[str, ...] = ("AF_INET",)) -> Network:
    """Return a network with one interface beside the loopback."""
    loopback = Interface("lo", True, True, True, families=("AF_INET", "AF_INET6"))
    card = Interface(interface, True, False, False, 1500, 10000, families)
    return Network(
        (loopback, card),
        tuple(Route(one, interface) for one in families),
        bootstrap_interface=interface,
        bootstrap_family=families[0],
        host_resolves=True,
    )


def spaces(**more: Space) -> Spaces:
    """Return room enough everywhere."""
    common = {
        "shm": Space("/dev/shm", "tmpfs", 512 * GIB, 511 * GIB, True),
        "tmp": Space("/tmp", "ext4", 400 * GIB, 300 * GIB, True),
        "cache": Space("~/.cache/tdstack", "ext4", 400 * GIB, 300 * GIB, True),
        "engine": Space("/var/lib/docker", "ext4", 3000 * GIB, 2000 * GIB, False),
    }
    return Spaces(**{**common, **more})


def host(label: str, held: Driver, **more: Any) -> Facts:
    """Return a well kept server with this driver, without GPUs."""
    common: dict[str, Any] = {
        "os": Os("ubuntu", "22.04", "5.15.0-122-generic", "x86_64", "2.35", "3.11.9", root=True),
        "modules": modules(),
        "limits": Limits(UNLIMITED, UNLIMITED, 1048576, 1048576, 8388608, UNLIMITED),
        "spaces": spaces(),
        "memory": Memory(2048 * GIB, 2000 * GIB, 0, 0, 2097152, "madvise", 2, False),
        "container": engines(DOCKER, cdi=(spec(held.version or ""),)),
        "network": wired(),
        "clock": Clock(True, 0.000012, 0.001, "chronyd"),
        "pcie": Pcie((), "passthrough", 90, 0),
        "xids": (),
        "rdma": (),
        "tdstack": Installed("none"),
        "environment": {},
    }
    return Facts(label=f"synthetic: {label}", driver=held, **{**common, **more})


def bridges(number: int, register: int = 0) -> tuple[Bridge, ...]:
    """Return PCIe switch ports, each above a GPU, with this ACS register."""
    redirects = bool(register & 0x0C)
    return tuple(
        Bridge(f"0000:{0x1A + 0x10 * index:02x}:01.0", register, redirects, True)
        for index in range(number)
    )


def one(facts: Facts, index: int, **changed: Any) -> Facts:
    """Return a host with one GPU changed."""
    held = list(facts.gpus or ())
    held[index] = replace(held[index], **changed)
    return replace(facts, gpus=tuple(held))


def alike(facts: Facts, **changed: Any) -> Facts:
    """Return a host with every GPU changed."""
    return replace(facts, gpus=tuple(replace(gpu, **changed) for gpu in facts.gpus or ()))
