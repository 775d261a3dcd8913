"""The doctor's probes against made-up /proc and /sys, and against this very host."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from tdstack.doctor.facts import UNLIMITED, Clock, Interface, Module, Route
from tdstack.doctor.hardware import Bridge, Fabric, RdmaPort, Switch
from tdstack.doctor.probes import (
    container,
    driver,
    engines,
    fabric,
    host,
    inside,
    installed,
    network,
    packages,
    pci,
    rdma,
    spaces,
)
from tdstack.doctor.probes.tree import Tree
from tests.host_trees import config, device, gpu_host, plant, process

HERE = Tree(Path("/"), dict(os.environ))


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
    assert found.ports == (
        RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 400.0, "ens1f0", 2, 1, 3, 0),
    )


def test_no_rdma_module_means_no_devices_and_no_sys_means_not_known(tmp_path: Path) -> None:
    assert rdma.rdma(plant(tmp_path, {"sys/class/net/lo/mtu": "1"})).sections["rdma"] == ()
    assert "rdma" in rdma.rdma(Tree(tmp_path / "none", {})).why


def test_the_system_keeps_what_concerns_the_stack(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "etc/os-release": 'NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="22.04"\nODD\n',
            "proc/sys/kernel/osrelease": "5.15.0-105-generic\n",
            "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=UUID=1 intel_iommu=on iommu=pt "
            "ds=nocloud;h=host password=x pci=disable_acs_redir=0000:00 nvidia.NVreg_X=1\n",
        },
        NVSHMEM_DISABLE_NVLS="1",
        NVSHMEM_BOOTSTRAP_UID_SESSION_ID="10.0.0.1:5",
        LD_LIBRARY_PATH="/home/somebody/lib",
        SECRET="x",
    )
    part = host.system(tree)
    found = part.sections["os"]
    assert (found.distro, found.distro_version) == ("ubuntu", "22.04")
    assert found.kernel == "5.15.0-105-generic"
    assert found.cmdline == (
        "intel_iommu=on iommu=pt pci=disable_acs_redir=0000:00 nvidia.NVreg_X=1"
    )
    assert part.sections["environment"] == {"NVSHMEM_DISABLE_NVLS": "1", "LD_LIBRARY_PATH": "set"}


def test_memory_limits_and_pages(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       528000 kB\nMemAvailable: 1000 kB\n"
            "HugePages_Total:      16\nHugePages_Free: 4\nHugepagesize: 2048 kB\nOdd line\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/system/node/node0/x": "",
            "sys/devices/system/node/node1/x": "",
            "sys/devices/system/node/possible": "0-1",
            "proc/sys/kernel/numa_balancing": "0\n",
            "proc/self/limits": (
                "Limit                     Soft Limit           Hard Limit           Units     \n"
                "Max stack size            8388608              unlimited            bytes     \n"
                "Max locked memory         65536                unlimited            bytes     \n"
            ),
        },
    )
    memory = host.memory(tree).sections["memory"]
    assert (memory.total, memory.available) == (528000 * 1024, 1000 * 1024)
    assert (memory.hugepages_total, memory.hugepages_free, memory.hugepage_size) == (16, 4, 2 << 20)
    assert (memory.transparent_hugepages, memory.numa_nodes) == ("madvise", 2)
    assert memory.numa_balancing is False
    limits = host.limits(tree).sections["limits"]
    assert (limits.memlock_soft, limits.memlock_hard) == (65536, UNLIMITED)
    assert (limits.stack_soft, limits.nofile_soft) == (8388608, None)


def test_this_process_limits_are_those_of_getrlimit() -> None:
    found = host.limits(HERE).sections["limits"]
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    told = [UNLIMITED if value == resource.RLIM_INFINITY else value for value in (soft, hard)]
    assert [found.memlock_soft, found.memlock_hard] == told


def timex(status: int, offset: int = 0, maxerror: int = 0) -> Any:
    state = host.Timex()
    state.status, state.offset, state.maxerror = status, offset, maxerror
    return lambda: state


def test_the_clocks_state_is_the_kernels(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"proc/self/comm": ""} | process(3, "chronyd"))
    good = host.clock(tree, timex(0x2001, offset=-2_500_000, maxerror=1500)).sections["clock"]
    assert good == Clock(True, -0.0025, 0.0015, "chronyd")
    micro = host.clock(tree, timex(0x0001, offset=2500)).sections["clock"]
    assert micro.offset_s == pytest.approx(0.0025)
    bad = host.clock(tree, timex(0x40, offset=5))
    assert (bad.sections["clock"].synchronised, bad.sections["clock"].offset_s) == (False, None)

    def refused() -> Any:
        raise PermissionError(1, "Operation not permitted")

    part = host.clock(plant(tmp_path / "b", {"proc/self/comm": ""}), refused)
    assert part.sections["clock"] == Clock(source="")
    assert "not permitted" in part.why["clock"]


def test_this_kernel_answers_about_its_clock() -> None:
    state = host.adjtimex()
    before = state.status
    assert host.adjtimex().status == before  # asking changes nothing
    assert state.maxerror >= 0


MOUNTS = """\
22 1 252:0 / / rw - ext4 /dev/vda rw
23 22 0:20 / /dev rw shared:2 - devtmpfs devtmpfs rw
24 23 0:21 / /dev/shm rw - tmpfs tmpfs rw
25 22 0:30 / /mnt/a\\040b rw - nfs4 server:/x rw
26 22 0:31 / /mnt/a\\040b rw - xfs /dev/y rw
broken line
""".splitlines()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dev/shm", "tmpfs"),
        ("/dev/shmem", "devtmpfs"),
        ("/tmp", "ext4"),
        ("/mnt/a b/c", "xfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, expected: str) -> None:
    assert spaces.filesystem_of(path, MOUNTS) == expected
    assert spaces.filesystem_of(path, []) is None


def test_a_space_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    part = spaces.space("cache", str(tmp_path / "not/yet"), HERE)
    found = part.sections["spaces.cache"]
    told = os.statvfs(tmp_path)
    assert found.path == str(tmp_path / "not/yet")
    assert found.size == told.f_blocks * told.f_frsize
    assert found.free is not None
    assert found.free <= found.size
    assert found.filesystem


def test_where_the_cache_is() -> None:
    variables = {"HOME": "/h", "XDG_CACHE_HOME": ""}
    assert spaces.cache_folder(Tree(Path("/"), variables)) == "/h/.cache/tdstack"
    assert spaces.cache_folder(Tree(Path("/"), variables | {"TDSTACK_CACHE": "/c"})) == "/c"


@pytest.mark.parametrize(
    ("files", "variables", "expected"),
    [
        ({}, {}, ""),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
        ({"proc/self/cgroup": "0::/kubepods.slice/x\n"}, {}, "kubernetes"),
        ({"proc/1/environ": b"PATH=/\0container=lxc\0"}, {}, "lxc"),
        ({"proc/1/environ": b"container=systemd-nspawn\0"}, {}, "other"),
        ({"proc/self/cgroup": f"12:cpu:/docker/{'0a' * 32}\n"}, {}, "docker"),
        ({"proc/self/cgroup": f"0::/system.slice/docker-{'0a' * 32}.scope\n"}, {}, "docker"),
        ({"proc/self/cgroup": "0::/system.slice/docker.service\n"}, {}, ""),
    ],
)
def test_whose_container_this_is(
    tmp_path: Path, files: dict[str, str | bytes], variables: dict[str, str], expected: str
) -> None:
    assert inside.container_kind(plant(tmp_path, files, **variables)) == expected


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


def test_versions_of_packages() -> None:
    assert packages.upstream("1:2.3~rc1-4ubuntu1") == "2.3~rc1"
    assert packages.upstream("2.3") == "2.3"
    assert packages.upstream("1:2.3") == "2.3"
    assert packages.upstream(None) is None
    assert "libc6" in packages.installed_versions(HERE) or not Path("/var/lib/dpkg/status").exists()


CDI = """\
---
cdiVersion: 0.5.0
containerEdits:
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.14
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: all
kind: nvidia.com/gpu
"""


def test_containers_toolkit_and_cdi(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "usr/bin/nvidia-ctk": "",
            "etc/nvidia-container-runtime/config.toml": "[nvidia-container-cli]\n"
            'no-cgroups = true\n[nvidia-container-runtime]\nmode = "cdi"\n',
            "etc/cdi/nvidia.yaml": CDI,
            "etc/cdi/readme.txt": "x",
            "var/run": "-> ../run",
            "run/cdi/other.json": '{"cdiVersion":"0.5.0",\n"kind": "vendor.com/net",\n'
            '"devices": [\n{"name": "a"}]}',
        },
    )
    found = container.container(tree).sections["container"]
    assert (found.inside, found.kind, found.cgroup) == (False, "", 2)
    assert found.memory_limit == UNLIMITED
    assert (found.toolkit, found.toolkit_mode, found.toolkit_no_cgroups) == (True, "cdi", True)
    mine, other = found.cdi
    assert (mine.file, mine.kind, mine.devices, mine.driver) == (
        *("/etc/cdi/nvidia.yaml", "nvidia.com/gpu", 2, "550.54.14"),
    )
    # /var/run is /run: the same file is told once.
    assert (other.kind, other.driver) == ("vendor.com/net", None)


def test_a_broken_toolkit_configuration_is_a_reason(tmp_path: Path) -> None:
    part = container.container(plant(tmp_path, {container.TOOLKIT: "mode = = x"}))
    assert part.sections["container"].toolkit_mode is None
    assert "config.toml" in part.why["container.toolkit_mode"]


INFO = {
    "Driver": "overlay2",
    "DockerRootDir": "/data/docker",
    "Runtimes": {"runc": {}, "nvidia": {}},
    "CDISpecDirs": ["/etc/cdi"],
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "CgroupDriver": "systemd",
}


def test_docker_is_asked_by_its_api(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"usr/bin/docker": "", "usr/bin/podman": ""}, HOME="/h")
    part = engines.engines(tree, lambda: ({"Version": "28.2.2"}, INFO))
    docker, podman, *_ = part.sections["container.engines"]
    assert (docker.works, docker.version, docker.storage) == (True, "28.2.2", "overlay2")
    assert (docker.root, docker.runtimes) == ("/data/docker", ("nvidia", "runc"))
    assert (docker.cdi, docker.rootless, docker.cgroup_driver) == (True, True, "systemd")
    assert (podman.name, podman.installed, podman.version) == ("podman", True, None)


def test_a_docker_that_does_not_answer_or_is_not_there(tmp_path: Path) -> None:
    def silent() -> Any:
        raise ConnectionError("Connection refused")

    def lacking() -> Any:
        raise ImportError("docker")

    there = plant(tmp_path / "a", {"usr/bin/docker": ""})
    found = engines.engines(there, silent).sections["container.engines"][0]
    assert (found.installed, found.works, found.why) == (True, False, "Connection refused")
    part = engines.engines(there, lacking)
    assert part.sections["container.engines"][0].works is None
    assert "pip install docker" in part.why["container.engines.docker"]
    none = engines.engines(Tree(tmp_path / "b", {}), silent).sections["container.engines"][0]
    assert (none.installed, none.works) == (False, False)


ANY = "0" * 32


def test_interfaces_families_and_routes(tmp_path: Path) -> None:
    tree = plant(
        tmp_path,
        {
            "sys/class/net/eth0/flags": "0x1003\n",
            "sys/class/net/eth0/operstate": "up\n",
            "sys/class/net/eth0/mtu": "9000\n",
            "sys/class/net/eth0/speed": "100000\n",
            "sys/class/net/eth0/device/x": "",
            "sys/class/net/lo/flags": "0x9\n",
            "sys/class/net/lo/operstate": "unknown\n",
            "sys/class/net/ib0/flags": "0x1002\n",
            "sys/class/net/ib0/speed": "-1\n",
            "sys/class/net/bonding_masters": "\n",
            "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU\n"
            "eth0 00000000 0100000A 0003 0 0 0 00000000 0\n"
            "eth0 0000000A 00000000 0001 0 0 0 00FFFFFF 0\n",
            "proc/net/ipv6_route": f"{ANY} 00 {ANY} 00 {ANY} ffffffff 1 0 00200200 lo\n"
            f"{ANY} 00 {ANY} 00 fe80{ANY[4:]} 400 1 0 00000003 eth0\n",
        },
    )
    known = {"eth0": frozenset({"10.0.0.2", "fe80::1"}), "ib0": frozenset({"2001:db8::2"})}
    found = network.network(tree, lambda: known, lambda: ("eth0", "AF_INET")).sections["network"]
    assert found.interfaces == (
        Interface("eth0", True, False, False, 9000, 100000, ("AF_INET",)),
        Interface("ib0", False, False, True, None, None, ("AF_INET6",)),
        Interface("lo", True, True, True, None, None, ()),
    )
    assert found.default_routes == (Route("AF_INET", "eth0"), Route("AF_INET6", "eth0"))
    assert (found.bootstrap_interface, found.bootstrap_family) == ("eth0", "AF_INET")


def test_without_the_smoke_tests_the_families_are_not_known(tmp_path: Path) -> None:
    def lacking() -> Any:
        raise ImportError("No module named 'smoke_tests'")

    part = network.network(plant(tmp_path, {"sys/class/net/eth0/flags": "0x1003"}), lacking)
    assert part.sections["network"].interfaces[0].families is None
    assert "smoke_tests" in part.why["network.bootstrap_interface"]


def test_a_prefix_is_absent_broken_or_whole(tmp_path: Path) -> None:
    def state(name: str, files: dict[str, str | bytes]) -> Any:
        return installed.prefix_state(
            plant(tmp_path, {f"{name}/{k}": v for k, v in files.items()}), name
        )

    manifest = '{"cuda": "12.4", "archs": ["sm_90"], "driver_floor": "525.60.13"}'
    version: dict[str, str | bytes] = {"versions/ab12/share/tdstack/manifest.json": manifest}
    whole = state("a", {**version, "current": "-> versions/ab12", "versions/ab12/bin/python": ""})
    assert (whole.state, whole.key, whole.cuda, whole.archs) == (
        "whole",
        "ab12",
        "12.4",
        ("sm_90",),
    )
    assert whole.driver_floor == "525.60.13"
    lost = state("b", {**version, "current": "-> versions/ab12"})
    assert (lost.state, lost.problems) == ("broken", ("bin/python is missing or leads nowhere",))
    assert state("c", version).state == "broken"
    assert "nowhere" in state("d", {**version, "current": "-> versions/gone"}).problems[0]
    assert "manifest" in state("e", {"x": ""}).problems[0]
    odd = {"share/tdstack/manifest.json": "[1]", "bin/python": ""}
    assert state("f", odd).problems == ("its manifest is not an object",)
    assert installed.prefix_state(Tree(tmp_path, {}), "none").state == "absent"


def test_an_image_of_tdstack_knows_itself(tmp_path: Path) -> None:
    tree = plant(tmp_path, {"opt/tdstack/manifest.json": '{"cuda": "12.8", "archs": 3}'})
    found = installed.installed(tree).sections["tdstack"]
    assert (found.where, found.state, found.cuda, found.archs) == (
        "container",
        "whole",
        "12.8",
        None,
    )
    assert installed.installed(Tree(tmp_path / "x", {})).sections["tdstack"].where == "none"


def test_every_probe_survives_a_host_without_files(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {})
    probes = (host.system, host.memory, host.limits, host.clock, driver.driver, pci.pci)
    for probe in (*probes, fabric.fabric, rdma.rdma, container.container, network.network):
        begin = time.monotonic()
        assert probe(tree) is not None
        assert time.monotonic() - begin < 5
