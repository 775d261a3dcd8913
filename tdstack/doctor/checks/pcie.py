"""PCIe: what sends traffic between GPUs a longer way, and how wide their slots are."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.host import Host, name_of, some

MOST_BRIDGES = 64


def acs(host: Host) -> Answer | None:
    """Judge whether bridges send traffic between devices up to the root complex."""
    if not host.several and not (host.gpus and host.ports):
        return None
    bridges = host.facts.pcie.bridges
    if bridges is None:
        return unknown(host, "pcie.bridges", "whether ACS redirects traffic is not known")
    above = [bridge for bridge in bridges if bridge.above_gpu]
    unread = [bridge for bridge in above if bridge.redirects is None]
    bad = [bridge.pci or "?" for bridge in above if bridge.redirects]
    if bad:
        evidence = f"{len(bad)} of {len(above)} bridges above GPUs: {some(bad)}"
        loop = " ".join(bad[:MOST_BRIDGES])
        severity, what = _of_redirects(host)
        return trouble(severity, "acs", what, evidence, bridges=loop)
    if unread:
        return unknown(host, "pcie.bridges", "ACS of bridges above GPUs could not be read")
    return ok("ACS redirects nothing between GPUs", f"{len(above)} bridges above GPUs")


def _of_redirects(host: Host) -> tuple[Severity, str]:
    # Over NVLink GPUs do not meet a bridge; RDMA to their memory does.
    if host.wired and not host.ports:
        return "note", "ACS redirects traffic on PCIe; these GPUs have NVLink instead"
    if host.wired:
        return "warning", "ACS sends traffic between GPUs and RDMA devices through the processor"
    return "failure", "ACS sends traffic between GPUs through the processor: slow, or it hangs"


def iommu(host: Host) -> Answer | None:
    """Judge whether the IOMMU translates what devices write to each other."""
    if not host.several and not (host.gpus and host.ports):
        return None
    mode = host.facts.pcie.iommu
    if mode is None:
        return unknown(host, "pcie.iommu", "the mode of the IOMMU is not known")
    if mode == "translated":
        evidence = f"{host.facts.pcie.iommu_groups or 0} groups"
        what = "the IOMMU translates addresses between devices"
        return trouble("warning", "iommu", what, evidence)
    return ok(f"IOMMU: {mode}")


def slot(host: Host) -> Answer | None:
    """Judge the width and generation of the GPUs' slots; an idle GPU may run slower for a while."""
    narrow, slow, known = [], [], False
    for gpu in host.gpus:
        kind = host.kind(gpu)
        width, most = gpu.pcie_width, gpu.pcie_width_max or kind.pcie_width
        known = known or width is not None
        if width is not None and most is not None and width < max(most, kind.pcie_width or 0):
            narrow.append(f"GPU {name_of(gpu)}: x{width} of x{max(most, kind.pcie_width or 0)}")
        best = gpu.pcie_generation_max
        if best is not None and kind.pcie_generation is not None and best < kind.pcie_generation:
            slow.append(f"GPU {name_of(gpu)}: PCIe {best} of {kind.pcie_generation}")
    if narrow:
        return trouble(
            "warning", "pcie-width", "GPUs with fewer PCIe lanes than they have", some(narrow)
        )
    if slow:
        return trouble("warning", "pcie-generation", "GPUs in slower PCIe slots", some(slow))
    return ok("GPUs have all their PCIe lanes") if known else None


CHECKS = (
    Check("acs", "no PCIe bridge above a GPU redirects traffic between devices (ACS)", acs),
    Check("iommu", "the IOMMU is off or passes through", iommu),
    Check("pcie-link", "GPUs have all PCIe lanes, at their generation", slot),
)
