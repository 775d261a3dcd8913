"""Hosts on which something is wrong with the system, or that are of an odd kind."""

from __future__ import annotations

from dataclasses import replace

from tdstack.doctor.facts import (
    UNLIMITED,
    Clock,
    Container,
    Driver,
    Engine,
    Facts,
    Installed,
    Limits,
    Memory,
    Network,
    Os,
    Space,
)
from tdstack.doctor.hardware import Pcie, Xid
from tests.made_hosts.good import cards, h20, h100_sxm
from tests.made_hosts.parts import (
    DOCKER,
    GIB,
    alike,
    driver,
    engines,
    gpus,
    host,
    infiniband,
    modules,
    spaces,
    wired,
)


def laptop() -> Facts:
    """Return a Debian machine without a GPU and without an engine."""
    silent = Engine("docker", True, False, why="permission denied: /var/run/docker.sock")
    return host(
        "a Debian laptop without GPU or engine",
        Driver(False, devices=(), nvml="no-library", persistenced=False),
        os=Os("debian", "12", "6.1.0-25-amd64", "x86_64", "2.36", "3.11.2", root=False),
        gpus=(),
        pairs=(),
        modules=(),
        limits=Limits(2046 * 2**20, 2046 * 2**20, 1024, 1048576, 8388608, UNLIMITED),
        spaces=spaces(
            shm=Space("/dev/shm", "tmpfs", 8 * GIB, 8 * GIB, True),
            cache=Space("~/.cache/tdstack", "ext4", 200 * GIB, 6 * GIB, True),
            engine=Space(None),
        ),
        memory=Memory(16 * GIB, 12 * GIB, 0, 0, 2097152, "always", 1, False),
        container=Container(False, cgroup=2, engines=(silent,), toolkit=False, cdi=()),
        network=wired("wlp2s0", ("AF_INET", "AF_INET6")),
        clock=Clock(True, 0.0003, 0.05, "systemd-timesyncd"),
        xids=None,
        why={"xids": "reading the kernel's log needs root"},
    )


def low_limits() -> Facts:
    """Return two cards with InfiniBand and the limits of a plain login, badly kept otherwise."""
    bad = replace(cards(), label="synthetic: 64 KiB of pinned memory beside InfiniBand")
    return replace(
        bad,
        driver=replace(bad.driver, kind="proprietary"),
        limits=replace(bad.limits, memlock_soft=65536, memlock_hard=65536, nofile_soft=1024),
        memory=replace(bad.memory, transparent_hugepages="never", numa_balancing=True),
        modules=modules("nvidia_peermem"),
        spaces=spaces(
            shm=Space("/dev/shm", "tmpfs", 512 * GIB, 10 * 2**20, True),
            engine=Space("/var/lib/docker", "ext4", 100 * GIB, 3 * GIB, False),
            cache=Space("~/.cache/tdstack", "nfs", 400 * GIB, 300 * GIB, False),
        ),
    )


def wrong_time() -> Facts:
    """Return an H20 node whose clock nobody sets, in a network that it does not know."""
    bad = replace(h20(), label="synthetic: the clock is not synchronised; IPv6 alone")
    return replace(
        bad,
        clock=Clock(False, None, 16.0, ""),
        network=replace(wired("bond0", ("AF_INET6",)), host_resolves=False),
    )


def off_time() -> Facts:
    """Return an H20 node whose clock is 40 s off, with variables that do not fit it."""
    bad = replace(h20(), label="synthetic: the clock is off; variables of another host")
    return replace(
        bad,
        clock=Clock(True, -40.2, 41.0, "ntpd"),
        environment={
            "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": "ib0",
            "NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY": "AF_INET6",
            "NVSHMEM_DISABLE_CUDA_VMM": "1",
        },
    )


def windows() -> Facts:
    """Return Linux under Windows with one GeForce."""
    held = gpus(1, "NVIDIA GeForce RTX 4090", "8.9", 24 * GIB, ecc=None, pcie_generation_max=4)
    return host(
        "Linux under Windows, one GeForce",
        replace(driver("560.94", "12.6", "proprietary"), devices=(), kind=None),
        os=Os("ubuntu", "24.04", "5.15.153.1-microsoft-standard-WSL2", "x86_64", "2.39", "3.12.3"),
        gpus=held,
        modules=(),
        pcie=Pcie((), "off", 0, 0),
        container=engines(DOCKER),
    )


def lost_prefix() -> Facts:
    """Return a machine that the lock does not serve, with an empty prefix and no way to ask."""
    return host(
        "POWER, an empty prefix, nvidia-ml-py missing",
        Driver(True, "550.90.07", kind="proprietary", nvml="no-package"),
        os=Os("rhel", "9.4", "5.14.0-427.el9.ppc64le", "ppc64le", "2.34", "3.11.7", root=True),
        gpus=None,
        pairs=None,
        tdstack=Installed("prefix", "/opt/tdstack", "absent"),
        network=Network((), (), bootstrap_interface="", bootstrap_family=""),
        container=engines(replace(DOCKER, runtimes=("runc",))),
        why={"gpus": "nvidia-ml-py is not installed"},
    )


def prefix_only() -> Facts:
    """Return a Slurm node: a prefix and no engine, on a driver too old for what is installed."""
    good = replace(cards(), label="synthetic: a prefix of CUDA 13, no engine")
    return replace(
        good,
        container=engines(toolkit=False),
        tdstack=Installed(
            *("prefix", "/opt/tdstack", "whole", (), "0.9.0", "13.0", "stock", "cuda", "3.11"),
            *("0" * 64, ("sm_80", "sm_90"), "580.65.06", "passed"),
        ),
        rdma=infiniband(1, 200.0),
    )


def unreadable() -> Facts:
    """Return an H100 node as a user without rights sees it."""
    bad = alike(h100_sxm(), nvlinks=None, multicast=None, fabric_state=None, capability=None)
    return replace(
        bad,
        label="synthetic: an H100 node, much of it not to be read",
        os=replace(bad.os, root=False),
        pairs=None,
        xids=None,
        modules=None,
        pcie=Pcie(None, None, None, 8),
        fabric=replace(bad.fabric, manager_running=None),
        container=Container(False, engines=(DOCKER,)),
        why={"xids": "reading the kernel's log needs root", "pcie": "config space needs root"},
    )


def unknown() -> Facts:
    """Return a host of which nothing is known."""
    return Facts(label="synthetic: nothing is known")


def foreign() -> Facts:
    """Return two cards on a host that speaks other languages."""
    bad = replace(cards(), label="synthetic: Größe, 机器, حاسوب")
    engine = replace(DOCKER, works=False, why="permission refusée ; проверьте права")
    return replace(
        bad,
        os=replace(bad.os, distro="глагол", kernel="٥.١٥.٠-généric"),
        driver=replace(bad.driver, version="五五〇.九〇", library="550,90,07"),
        container=engines(engine),
        xids=(Xid("gpu", "0000:1b:00.0", 13, 1, 5.0, "Ошибка графического процессора"),),
    )
