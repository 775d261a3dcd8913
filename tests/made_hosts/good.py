"""Hosts as they should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tdstack.doctor.facts import Container, Facts, Installed, Os
from tdstack.doctor.hardware import Fabric, Pcie, Rdma, RdmaPort, Switch
from tests.made_hosts.parts import (
    DOCKER,
    GIB,
    alike,
    bridges,
    driver,
    engines,
    gpus,
    host,
    infiniband,
    nvlinks,
    pairs,
    spec,
)

MANAGER_OF = "550.90.07"


def h100_sxm() -> Facts:
    """Return a node with a whole HGX H100 and InfiniBand."""
    held = gpus(8, "NVIDIA H100 80GB HBM3", "9.0", 81559 * 2**20)
    joined: dict[str, Any] = {
        "fabric_state": "completed",
        "fabric_status": "success",
        "fabric_health": (),
    }
    return host(
        "H100 SXM, eight GPUs, InfiniBand",
        driver(MANAGER_OF, "12.4"),
        gpus=tuple(replace(gpu, nvlinks=nvlinks(18, 4), multicast=True, **joined) for gpu in held),
        pairs=pairs(8),
        fabric=Fabric(
            tuple(Switch(f"0000:{at:02x}:00.0", "22a3") for at in (7, 8, 9, 10)),
            *(True, True, MANAGER_OF, "enabled"),
        ),
        pcie=Pcie(bridges(8), "passthrough", 210, 8),
        rdma=infiniband(8),
    )


def h20() -> Facts:
    """Return a node with a whole HGX H20, a newer driver and no RDMA."""
    good = h100_sxm()
    name = "NVIDIA H20"
    version = "580.82.07"
    return replace(
        good,
        label="synthetic: H20, eight GPUs",
        driver=driver(version, "13.0", "proprietary"),
        gpus=tuple(
            replace(gpu, name=name, memory=97871 * 2**20, power_limit=500.0, power_default=500.0)
            for gpu in good.gpus or ()
        ),
        fabric=replace(good.fabric, manager_version=version),
        container=engines(DOCKER, cdi=(spec(version),)),
        rdma=(),
    )


def cards() -> Facts:
    """Return a node with two A100 cards that reach each other over PCIe, and InfiniBand."""
    more = {"power_limit": 300.0, "power_default": 300.0, "clock_sm_max": 1410}
    slots = {"pcie_generation": 4, "pcie_generation_max": 4}
    return host(
        "A100 PCIe, two cards, InfiniBand",
        driver("550.90.07", "12.4"),
        gpus=gpus(2, "NVIDIA A100 80GB PCIe", "8.0", 80 * GIB, nvlinks=(), **more, **slots),
        pairs=pairs(2),
        pcie=Pcie(bridges(2), "off", 0, 2),
        rdma=infiniband(1, 200.0),
    )


def container() -> Facts:
    """Return a container with two GPUs of an HGX H100, started as it should be."""
    good = h100_sxm()
    return replace(
        good,
        label="synthetic: a container with two H100",
        gpus=good.gpus[:2] if good.gpus else (),
        pairs=pairs(2),
        rdma=(),
        fabric=Fabric((), None, None, None, None),
        container=Container(True, "docker", 2, engines=(), cdi=()),
        environment={"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
        tdstack=Installed(
            *("container", "/opt/tdstack", "whole", (), "0.9.0", "12.4", "distributed", "cuda"),
            *("3.11", "0" * 64, ("sm_80", "sm_86", "sm_89", "sm_90"), "525.60.13", "passed"),
        ),
    )


def b200_open() -> Facts:
    """Return a node with a whole HGX B200 and RoCE."""
    good, version = h100_sxm(), "580.82.07"
    port = RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 400.0, "ens1f0np0", 3, 2)
    return replace(
        alike(
            good,
            name="NVIDIA B200",
            capability="10.0",
            memory=180 * GIB,
            nvlinks=nvlinks(18, 5),
            power_limit=1000.0,
            power_default=1000.0,
        ),
        label="synthetic: B200, eight GPUs, RoCE",
        driver=driver(version, "13.0"),
        fabric=replace(good.fabric, manager_version=version),
        container=engines(DOCKER, cdi=(spec(version),)),
        rdma=(Rdma("mlx5_0", ports=(port,)), Rdma("mlx5_1", ports=(port,))),
    )


def grace() -> Facts:
    """Return a GH200, which is no x86_64 machine."""
    system = Os("ubuntu", "24.04", "6.8.0-1013-nvidia-64k", "aarch64", "2.39", "3.12.3", root=True)
    held = gpus(1, "NVIDIA GH200 480GB", "9.0", 96 * GIB)
    return host(
        "GH200", driver("580.65.06", "13.0"), os=system, gpus=held, pcie=Pcie((), "off", 0, 1)
    )
