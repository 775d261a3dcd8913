"""Made-up /proc, /sys and /etc of hosts, as files under a folder."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from tdstack.doctor.probes.tree import Tree

BUS = "sys/bus/pci/devices"


def plant(root: Path, files: Mapping[str, str | bytes], **variables: str) -> Tree:
    """Write files under `root`; a text that starts with `-> ` is a symbolic link's target."""
    for place, content in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Tree(root, variables)


def config(control: int | None, *, before: int = 1) -> bytes:
    """Return a PCIe configuration space with `before` other capabilities, then ACS, if any."""
    space = bytearray(4096)
    offsets = [0x100 + 0x44 * at for at in range(before + 1)]
    for at, offset in enumerate(offsets):
        last = offset == offsets[-1]
        if last and control is None:
            # The chain ends one earlier.
            header = struct.unpack_from("<I", space, offsets[at - 1])[0] & 0xFFFFF
            struct.pack_into("<I", space, offsets[at - 1], header)
            break
        kind = 0x000D if last else 0x0001
        following = 0 if last else offsets[at + 1]
        struct.pack_into("<I", space, offset, following << 20 | 1 << 16 | kind)
        if last:
            struct.pack_into("<HH", space, offset + 4, 0x7F, control or 0)
    return bytes(space)


def device(
    address: str, kind: str, vendor: str = "0x10de", above: str = "", **files: str | bytes
) -> dict[str, str | bytes]:
    """Return the files of a PCI function; `above` is the path of bridges to it."""
    home = f"sys/devices/pci0000:00/{above}{address}"
    up = "../../../devices/pci0000:00"
    return {
        f"{BUS}/{address}": f"-> {up}/{above}{address}",
        f"{home}/class": kind,
        f"{home}/vendor": vendor,
        **{f"{home}/{name}": content for name, content in files.items()},
    }


def gpu_host() -> dict[str, str | bytes]:
    """Return a host with a GPU and an RDMA device below one switch, an NVSwitch, and an IOMMU."""
    switch = "0000:00:01.0/"
    return {
        "proc/modules": "nvidia 56807424 12 nvidia_uvm, Live 0x0\nib_core 1 0 - Live 0x0\n"
        "snd 1 0 - Live 0x0\n",
        "sys/module/nvidia/version": "550.54.14\n",
        "sys/module/nvidia_peermem/version": "550.54.14\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64"
        "  550.54.14  Release Build  (dvs-builder@U16-I3-B03-2-1)\nGCC version:  gcc 12\n",
        "proc/driver/nvidia/params": 'EnableMSI: 1\nRegistryDwords: ""\n',
        "proc/driver/nvidia/gpus/0000:1b:00.0/information": "Model: \t\t NVIDIA H100\n"
        "IRQ:   \t\t 1\nGPU UUID: \t GPU-0f0e0d0c-1111-2222-3333-444455556666\n",
        "dev/nvidia0": "",
        "dev/nvidiactl": "",
        "dev/null": "",
        **device("0000:00:01.0", "0x060400", "0x8086", config=config(0x1D)),
        **device("0000:00:02.0", "0x060400", "0x8086", config=config(None)),
        **device("0000:00:03.0", "0x060400", "0x8086", config=b"\0" * 64),
        **device(
            "0000:1b:00.0",
            "0x030200",
            above=switch,
            numa_node="1",
            current_link_speed="16.0 GT/s PCIe",
            max_link_speed="32.0 GT/s PCIe",
            current_link_width="8",
            max_link_width="16",
            iommu_group="-> ../../../../kernel/iommu_groups/7",
        ),
        **device("0000:c3:00.0", "0x068000", device="0x22a3"),
        **device("0000:2a:00.0", "0x020700", "0x15b3", above=switch, **{"infiniband/mlx5_0": ""}),
        "sys/kernel/iommu_groups/7/type": "DMA-FQ\n",
        "sys/kernel/iommu_groups/8/type": "identity\n",
        "proc/self/comm": "python",
    }


def process(number: int, name: str) -> dict[str, str]:
    """Return the file of a running program's name, cut as the kernel cuts it."""
    return {f"proc/{number}/comm": name[:15] + "\n"}


def truncate(path: Path, size: int) -> None:
    """Make a file say another size than it gives, as /sys does to users without rights."""
    os.truncate(path, size)
