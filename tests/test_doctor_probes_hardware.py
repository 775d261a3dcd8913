"""The doctor's probes of drivers, PCI, RDMA and the fabric, against made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdstack.doctor.facts import Module
from tdstack.doctor.hardware import Bridge, Fabric, RdmaPort, Switch
from tdstack.doctor.probes import (
    driver,
    fabric,
    pci,
    rdma,
)
from tdstack.doctor.probes.tree import Tree
from tests.host_trees import config, device, gpu_host, plant, process


def test_the_driver_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    tree = plant(tmp_path, gpu_host() | process(7, "nvidia-persistenced"))
    part = driver.driver(tree)
    found = part.sections["driver"]
    assert (found.present, found.version, found.kind) == (True, "550.54.14", "open")
    assert found.devices == ("nvidia0", "nvidiactl")
    assert found.persistenced is True
    assert found.parameters == {"EnableMSI": "1", "RegistryDwords": '""'}
    # What is built into the kernel is in /sys/module alone; sound concerns nobody here.
    assert part.sections["modules"] == (
        Module("ib_core", ""),
        Module("nvidia", "550.54.14"),
        Module("nvidia_peermem", "550.54.14"),
    )
    (gpu,) = part.sections["gpus@proc"]
    assert (gpu.name, gpu.pci) == ("NVIDIA H100", "0000:1b:00.0")


@pytest.mark.parametrize(
    ("line", "version", "kind"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
            *("535.104.05", "proprietary"),
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  575.51  Release",
            *("575.51", "open"),
        ),
        ("", None, None),
    ],
)
def test_open_and_proprietary_drivers_are_told_apart(
    tmp_path: Path, line: str, version: str | None, kind: str | None
) -> None:
    found = driver.driver(plant(tmp_path, {"proc/driver/nvidia/version": line}))
    assert (found.sections["driver"].version, found.sections["driver"].kind) == (version, kind)


def test_a_host_without_a_driver_says_so_and_one_without_proc_does_not_know(tmp_path: Path) -> None:
    none = driver.driver(plant(tmp_path / "a", {"proc/modules": "", "proc/self/comm": ""}))
    assert none.sections["driver"].present is False
    assert none.sections["modules"] == ()
    blind = driver.driver(Tree(tmp_path / "b", {}))
    assert blind.sections["driver"].present is None
    assert "modules" in blind.why


def test_slots_switches_bridges_and_the_iommu(tmp_path: Path) -> None:
    part = pci.pci(plant(tmp_path, gpu_host()))
    (gpu,) = part.sections["gpus@pci"]
    assert (gpu.pci, gpu.numa_node) == ("0000:1b:00.0", 1)
    assert (gpu.pcie_generation, gpu.pcie_generation_max) == (4, 5)
    assert (gpu.pcie_width, gpu.pcie_width_max) == (8, 16)
    assert part.sections["fabric.switches"] == (Switch("0000:c3:00.0", "22a3"),)
    found = part.sections["pcie"]
    assert found.nvidia_devices == 1
    assert found.bridges == (
        Bridge("0000:00:01.0", 0x1D, True, True),
        Bridge("0000:00:02.0", 0, False, False),
        Bridge("0000:00:03.0", 0, False, False),  # a PCI bridge without extended capabilities
    )
    assert (found.iommu, found.iommu_groups) == ("translated", 2)
    assert not part.why


def test_bridges_that_only_root_can_read_are_not_known(tmp_path: Path) -> None:
    files = device("0000:00:01.0", "0x060400", config=config(0x1D))
    tree = plant(tmp_path, files)
    whole = Tree.data

    class User(Tree):
        def data(self, place: str, most: int = 0) -> bytes | None:
            found = whole(self, place)
            return found[:64] if found and place.endswith("config") else found

    part = pci.pci(User(tree.root, {}))
    assert part.sections["pcie"].bridges == (Bridge("0000:00:01.0", None, None, False),)
    assert "root" in part.why["pcie.bridges.acs"]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (config(0x1D), 0x1D),
        (config(0, before=3), 0),
        (config(None), 0),
        (b"\0" * 256, None),
        (b"\xff" * 4096, 0),  # a device that fell off the bus
        (b"\0" * 0x100 + b"\x01\x00\x01\x10" + b"\0" * 60, None),  # points at itself
        (b"\0" * 0x100 + b"\x01\x00\x01\xff" + b"\0" * 60, None),  # points past the end
    ],
)
def test_the_acs_register_is_found_in_the_chain(space: bytes, expected: int | None) -> None:
    assert pci.acs_control(space) == expected


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({}, "off"),
        ({"1": "identity"}, "passthrough"),
        ({"1": "DMA", "2": "identity"}, "translated"),
    ],
)
def test_the_iommus_mode(tmp_path: Path, types: dict[str, str], expected: str) -> None:
    files: dict[str, str | bytes] = {"sys/kernel/iommu_groups/x": "", **device("0000:00:02.0", "0")}
    files |= {f"sys/kernel/iommu_groups/{name}/type": kind for name, kind in types.items()}
    tree = plant(tmp_path, files)
    (tmp_path / "sys/kernel/iommu_groups/x").unlink()
    assert pci.pci(tree).sections["pcie"].iommu == expected


def test_rdma_devices_and_their_ports(tmp_path: Path) -> None:
    base = "sys/class/infiniband/mlx5_0"
    port = f"{base}/ports/1"
    tree = plant(
        tmp_path,
        {
            f"{base}/node_guid": "0c42:a103:00ab:cdef\n",
            f"{base}/board_id": "MT_0000000838\n",
            f"{base}/fw_ver": "28.39.1002\n",
            f"{base}/device": "-> ../../../0000:2a:00.0",
            "sys/class/infiniband_verbs/uverbs0/ibdev": "mlx5_0\n",
            "sys/class/infiniband_verbs/uverbs1/ibdev": "mlx5_1\n",
            "sys/class/infiniband_verbs/abi_version": "6\n",
            "dev/infiniband/uverbs1": "",
            f"{port}/state": "4: ACTIVE\n",
            f"{port}/phys_state": "5: LinkUp\n",
            f"{port}/link_layer": "Ethernet\n",
            f"{port}/rate": "400 Gb/sec (4X NDR)\n",
            f"{port}/gids/0": "fe80:0000:0000:0000:0e42:a1ff:feab:cdef\n",
            f"{port}/gids/1": "0000:0000:0000:0000:0000:ffff:0a00:0001\n",
            f"{port}/gids/2": "0000:0000:0000:0000:0000:0000:0000:0000\n",
            f"{port}/gids/3": "fe80:0000:0000:0000:0000:0000:0000:0000\n",
            f"{port}/gid_attrs/types/0": "IB/RoCE v1\n",
            f"{port}/gid_attrs/types/1": "RoCE v2\n",
            f"{port}/gid_attrs/ndevs/0": "ens1f0\n",
            f"{port}/counters/link_downed": "3\n",
            f"{port}/counters/symbol_error": "0\n",
        },
    )
    (found,) = rdma.rdma(tree).sections["rdma"]
    assert (found.name, found.board, found.firmware, found.pci) == (
        *("mlx5_0", "MT_0000000838", "28.39.1002", "0000:2a:00.0"),
    )
    assert found.usable is False  # /sys shows it, and nobody passed its node
    (tmp_path / "dev/infiniband/uverbs0").touch()
    assert rdma.rdma(tree).sections["rdma"][0].usable is True
    assert found.ports == (
        RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 400.0, "ens1f0", 2, 1, 3, 0),
    )


def test_no_rdma_module_means_no_devices_and_no_sys_means_not_known(tmp_path: Path) -> None:
    assert rdma.rdma(plant(tmp_path, {"sys/class/net/lo/mtu": "1"})).sections["rdma"] == ()
    assert "rdma" in rdma.rdma(Tree(tmp_path / "none", {})).why


def test_the_fabric_manager_by_package_unit_and_process(tmp_path: Path) -> None:
    status = (
        "Package: nvidia-fabricmanager-550\nStatus: install ok installed\n"
        "Version: 550.54.14-1\nDescription: x\n and more\n\n"
        "Package: podman\nStatus: deinstall ok config-files\nVersion: 4.3\n"
    )
    unit = "multi-user.target.wants/nvidia-fabricmanager.service"
    host_ = {"var/lib/dpkg/status": status, "proc/self/comm": ""}
    down = plant(tmp_path / "a", host_ | {f"etc/systemd/system/{unit}": "-> /lib/x"})
    assert fabric.fabric(down).sections["fabric"] == Fabric(
        *(None, True, False, "550.54.14", "enabled", False)
    )
    up = plant(tmp_path / "b", host_ | process(9, "nv-fabricmanager"))
    assert fabric.fabric(up).sections["fabric"].manager_running is True
    pod = plant(tmp_path / "c", host_ | {".dockerenv": ""})
    part = fabric.fabric(pod)
    assert part.sections["fabric"].manager_running is None
    assert "container" in part.why["fabric.manager_running"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "absent"),
        ({"lib/systemd/system/nvidia-fabricmanager.service": ""}, "disabled"),
        ({"etc/systemd/system/nvidia-fabricmanager.service": "-> /dev/null"}, "masked"),
    ],
)
def test_the_units_state(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert fabric.unit_state(plant(tmp_path, dict(files))) == expected


@pytest.mark.parametrize(("control", "redirects"), [(0x01, False), (0x04, True), (0x08, True)])
def test_source_validation_alone_redirects_nothing(
    tmp_path: Path, control: int, redirects: bool
) -> None:
    tree = plant(tmp_path, device("0000:00:01.0", "0x060400", config=config(control)))
    assert pci.pci(tree).sections["pcie"].bridges[0].redirects is redirects


def test_a_container_without_device_nodes_has_no_gpus(tmp_path: Path) -> None:
    files = gpu_host() | {".dockerenv": ""}
    passed = driver.driver(plant(tmp_path / "a", files))
    assert len(passed.sections["gpus@proc"]) == 1
    del files["dev/nvidia0"]
    assert driver.driver(plant(tmp_path / "b", files)).sections["gpus@proc"] == ()
