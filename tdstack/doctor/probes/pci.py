"""GPUs' slots, NVSwitches, bridges with their ACS bits, and the IOMMU, by /sys."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tdstack.doctor.hardware import Bridge, Gpu, Pcie, Switch
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

DEVICES = "sys/bus/pci/devices"
NVIDIA = 0x10DE
ADDRESS = re.compile(r"^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")
GENERATIONS = {"2.5": 1, "5.0": 2, "5": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}
# PCI Express Base Specification 5.0, 7.6.3 (extended capabilities) and 7.7.8 (ACS).
EXTENDED, ACS, ACS_CONTROL = 0x100, 0x000D, 6
REDIRECTS = 0x04 | 0x08


@dataclass(frozen=True)
class Device:
    """A PCI function; `above` are the functions between it and its root complex."""

    address: str
    kind: int
    vendor: int
    above: tuple[str, ...]

    @property
    def is_gpu(self) -> bool:
        """Display controllers: VGA or 3D."""
        return self.vendor == NVIDIA and self.kind >> 16 == 0x03

    @property
    def is_switch(self) -> bool:
        """NVSwitches are NVIDIA's bridges of the class `other` (0x0680)."""
        return self.vendor == NVIDIA and self.kind >> 8 == 0x0680


def pci(tree: Tree) -> Part:
    """Read /sys/bus/pci and /sys/kernel/iommu_groups."""
    devices = _devices(tree)
    if devices is None:
        return Part(why={"pcie": "/sys/bus/pci cannot be read"})
    part = Part()
    gpus = [device for device in devices if device.is_gpu]
    part.sections["gpus@pci"] = tuple(_slot(tree, device) for device in gpus)
    part.sections["fabric.switches"] = tuple(
        Switch(device.address, _hex(tree, device.address, "device"))
        for device in devices
        if device.is_switch
    )
    ends = [*gpus, *(d for d in devices if tree.has(f"{DEVICES}/{d.address}/infiniband"))]
    above = {address for device in ends for address in device.above}
    bridges = tuple(
        _bridge(tree, device.address, device.address in above)
        for device in devices
        if device.kind >> 8 == 0x0604
    )
    if any(bridge.acs is None for bridge in bridges):
        part.unknown("pcie.bridges.acs", "a bridge's extended configuration is for root alone")
    groups = tree.names("sys/kernel/iommu_groups")
    if groups is None:
        part.unknown("pcie.iommu", "/sys/kernel/iommu_groups cannot be read")
    part.sections["pcie"] = Pcie(
        bridges=bridges,
        iommu=None if groups is None else _iommu(tree, groups, gpus),
        iommu_groups=None if groups is None else len(groups),
        nvidia_devices=len(gpus),
    )
    return part


def acs_control(config: bytes) -> int | None:
    """Return the ACS control register of a configuration space; 0 without one. Pure.

    None when the extended capabilities are not in these bytes, or run in a circle.
    """
    if len(config) <= EXTENDED:
        return None
    at, seen = EXTENDED, set()
    while at:
        if at in seen or at + 8 > len(config):
            return None
        seen.add(at)
        (header,) = struct.unpack_from("<I", config, at)
        if header in (0, 0xFFFFFFFF):
            break
        if header & 0xFFFF == ACS:
            return int(struct.unpack_from("<H", config, at + ACS_CONTROL)[0])
        at = header >> 20 & 0xFFC
    return 0


def _devices(tree: Tree) -> list[Device] | None:
    names = tree.names(DEVICES)
    if names is None:
        return None
    found = []
    for name in filter(ADDRESS.match, names):
        kind = tree.number(f"{DEVICES}/{name}/class", 16)
        vendor = tree.number(f"{DEVICES}/{name}/vendor", 16)
        steps = (tree.target(f"{DEVICES}/{name}") or "").split("/")
        above = tuple(step for step in steps if ADDRESS.match(step) and step != name)
        found.append(Device(name, kind or 0, vendor or 0, above))
    return found


def _slot(tree: Tree, device: Device) -> Gpu:
    folder = f"{DEVICES}/{device.address}"
    return Gpu(
        pci=device.address,
        numa_node=tree.number(f"{folder}/numa_node"),
        pcie_generation=_generation(tree.text(f"{folder}/current_link_speed")),
        pcie_generation_max=_generation(tree.text(f"{folder}/max_link_speed")),
        pcie_width=tree.number(f"{folder}/current_link_width"),
        pcie_width_max=tree.number(f"{folder}/max_link_width"),
    )


def _bridge(tree: Tree, address: str, above: bool) -> Bridge:
    place = f"{DEVICES}/{address}/config"
    config = tree.data(place, 4096) or b""
    try:
        whole = tree.path(place).stat().st_size
    except OSError:
        whole = 0
    # Others than root get the first 64 bytes of what the file's size says.
    control = None if not config or len(config) < whole else 0
    if control == 0 and len(config) > EXTENDED:
        control = acs_control(config)
    return Bridge(address, control, None if control is None else bool(control & REDIRECTS), above)


def _iommu(tree: Tree, groups: Iterable[str], gpus: list[Device]) -> str | None:
    groups = list(groups)
    if not groups:
        return "off"
    own = [tree.target(f"{DEVICES}/{gpu.address}/iommu_group") or "" for gpu in gpus]
    asked = [name for name in (link.rpartition("/")[2] for link in own) if name] or groups
    kinds = {tree.text(f"sys/kernel/iommu_groups/{name}/type") for name in asked}
    if None in kinds:
        return None
    return "passthrough" if kinds == {"identity"} else "translated"


def _generation(text: str | None) -> int | None:
    return GENERATIONS.get(text.split()[0]) if text else None


def _hex(tree: Tree, address: str, file: str) -> str | None:
    value = tree.number(f"{DEVICES}/{address}/{file}", 16)
    return None if value is None else f"{value:04x}"
