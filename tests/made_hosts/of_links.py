"""Hosts on which something is wrong between GPUs, or between hosts."""

from __future__ import annotations

from dataclasses import replace

from tdstack.doctor.facts import Facts
from tdstack.doctor.hardware import Fabric, NvLink, Pcie, Rdma, RdmaPort
from tests.made_hosts.good import cards, h20, h100_sxm
from tests.made_hosts.parts import (
    GIB,
    alike,
    bridges,
    driver,
    gpus,
    host,
    modules,
    nvlinks,
    one,
    pairs,
)


def manager_down() -> Facts:
    """Return an H100 node whose Fabric Manager does not run."""
    bad = replace(
        h100_sxm(), label="synthetic: Fabric Manager down", pairs=pairs(8, "not-supported")
    )
    bad = replace(bad, fabric=replace(bad.fabric, manager_running=False, unit="disabled"))
    return alike(bad, fabric_state="in-progress", fabric_status=None, multicast=False)


def manager_missing() -> Facts:
    """Return an H100 node without Fabric Manager, on which a switch is missing, too."""
    bad = replace(manager_down(), label="synthetic: Fabric Manager not installed, a switch missing")
    switches = (bad.fabric.switches or ())[:3]
    return replace(bad, fabric=Fabric(switches, False, False, None, "absent"))


def manager_old() -> Facts:
    """Return an H100 node whose driver was updated without Fabric Manager."""
    bad = replace(h20(), label="synthetic: Fabric Manager of another version")
    return replace(bad, fabric=replace(bad.fabric, manager_version="570.124.06"))


def acs_on() -> Facts:
    """Return two cards below bridges that redirect, with an IOMMU that translates."""
    bad = replace(cards(), label="synthetic: ACS on, IOMMU on")
    bad = replace(bad, pcie=Pcie(bridges(2, 0x1D), "translated", 61, 2))
    return replace(bad, rdma=())


def acs_nvlink() -> Facts:
    """Return a node with NVLink and InfiniBand below bridges that redirect; a lane is missing."""
    bad = replace(h100_sxm(), label="synthetic: ACS on beside NVLink, a slot with eight lanes")
    return one(replace(bad, pcie=replace(bad.pcie, bridges=bridges(8, 0x1D))), 6, pcie_width=8)


def no_p2p() -> Facts:
    """Return four cards without NVLink that do not reach each other; one in an old slot."""
    more = {"power_limit": 350.0, "power_default": 350.0, "pcie_generation": 4}
    held = gpus(4, "NVIDIA L40S", "8.9", 48 * GIB, pcie_generation_max=4, nvlinks=(), **more)
    facts = host(
        "L40S, four cards without direct access",
        driver("535.183.06", "12.2"),
        gpus=held,
        pairs=pairs(4, "chipset-not-supported", "not-supported"),
        pcie=Pcie(bridges(4), "off", 0, 4),
    )
    return one(facts, 2, pcie_generation_max=3)


def link_down() -> Facts:
    """Return an H100 node with one NVLink down, one full of errors, and one slow."""
    bad = replace(h100_sxm(), label="synthetic: NVLink 7 of GPU 3 down")
    links = list(nvlinks(18, 4))
    links[7] = NvLink(7, False, 4, "switch", errors=0)
    bad = one(bad, 3, nvlinks=tuple(links), fabric_health=("degraded-bandwidth",))
    links[7] = NvLink(7, True, 3, "switch", errors=48211)
    return one(bad, 5, nvlinks=tuple(links))


def port_down() -> Facts:
    """Return an H100 node with a rail down and a slow one."""
    bad = replace(h100_sxm(), label="synthetic: an InfiniBand port down, one slow")
    rails = list(bad.rdma or ())
    down = RdmaPort(1, "DOWN", "Polling", "InfiniBand", 10.0, gids=1, gids_v2=0)
    rails[3] = replace(rails[3], ports=(down,))
    slow = RdmaPort(1, "ACTIVE", "LinkUp", "InfiniBand", 200.0, gids=1, gids_v2=0)
    rails[5] = replace(rails[5], ports=(slow,))
    return replace(bad, rdma=tuple(rails))


def roce() -> Facts:
    """Return two cards with RoCE ports: one without an address, one not cabled."""
    bad = replace(cards(), label="synthetic: RoCE without addresses, no modules for RDMA")
    bare = RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 100.0, "ens1f0np0", 1, 0)
    loose = RdmaPort(1, "DOWN", "Disabled", "Ethernet", 40.0, "ens1f1np1", 1, 0)
    cards_of = (Rdma("mlx5_0", ports=(bare,)), Rdma("mlx5_1", ports=(loose,)))
    return replace(bad, rdma=cards_of, modules=modules("nvidia_peermem", "gdrdrv"))
