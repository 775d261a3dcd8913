"""The tables of docs/doctor.md: checks, types of GPUs, thresholds."""

from __future__ import annotations

from typing import Final

from tdstack.doctor.checks import SUBJECTS
from tdstack.doctor.host import gigabytes
from tdstack.doctor.thresholds import GpuType, load_thresholds
from tdstack.pages.places import table
from tdstack.troubleshooting import sections

PAGE: Final = "docs/doctor.md"


def tables() -> dict[str, str]:
    """Return every table of the page by the name of its place. Pure."""
    return {"checks": checks_table(), "gpus": gpu_table(), "limits": limits_table()}


def checks_table() -> str:
    """Return the table of all checks. Pure."""
    rows = [row for section in sections() for row in section.rows if row.id]
    lines = []
    for subject, checks in SUBJECTS.items():
        lines.append([f"**{subject}**", "", ""])
        for check in checks:
            troubles = [row.id for row in rows if check.id in row.checks]
            links = ", ".join(f"[{name}](troubleshooting.md#{name})" for name in troubles)
            lines.append([f'<a id="{check.id}"></a>`{check.id}`', check.asks, links])
    return table(["check", "what must hold", "if not"], lines)


def gpu_table() -> str:
    """Return the table of what is expected of GPUs, by type. Pure."""
    head = ["type", "GPUs of a node", "NVLinks", "PCIe", "NVSwitches", "multicast", "source"]
    return table(head, [_gpu(kind) for kind in load_thresholds().gpu])


def _gpu(kind: GpuType) -> list[str]:
    links = ""
    if kind.nvlinks is not None:
        links = f"{kind.nvlinks} of version {kind.nvlink_version}"
        links += "" if kind.sxm else ", or none"
    slot = " ".join(
        part
        for part, held in (
            (f"{kind.pcie_generation}.0", kind.pcie_generation),
            (f"x{kind.pcie_width}", kind.pcie_width),
        )
        if held
    )
    return [
        *(kind.type, " or ".join(map(str, kind.counts)), links, slot),
        *(str(kind.nvswitches or ""), "yes" if kind.multicast else "", kind.source),
    ]


def limits_table() -> str:
    """Return the table of what is expected of any host. Pure."""
    held = load_thresholds().limits
    rows = [
        ["`/dev/shm`", gigabytes(held.shm_bytes)],
        ["free in `/tmp`", gigabytes(held.tmp_bytes)],
        ["pinned memory", f"unlimited with RDMA devices, else {gigabytes(held.memlock_bytes)}"],
        ["open files", str(held.nofile)],
        ["glibc, without a container", held.glibc],
        ["free for tdstack's store", gigabytes(held.cache_bytes)],
        ["free for the engine's images", gigabytes(held.engine_bytes)],
        ["offset of the clock", f"{held.clock_offset_s:g} s"],
        ["a GPU's distance to the heat that slows it", f"{held.temperature_margin:g} °C"],
        ["errors of an NVLink", str(held.nvlink_errors)],
        ["an Xid counts as failure", f"for {held.xid_age_s / 3600:g} hours"],
    ]
    return table(["threshold", "value"], rows)
