"""The doctor's probes of the system, its memory, limits, clock and disks."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tdstack.doctor.facts import UNLIMITED, Clock
from tdstack.doctor.probes import (
    container,
    driver,
    fabric,
    host,
    network,
    packages,
    pci,
    rdma,
    spaces,
)
from tdstack.doctor.probes.tree import Tree
from tests.conftest import ROOT
from tests.host_trees import plant, process

HERE = Tree(Path("/"), dict(os.environ))


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


def test_versions_of_packages() -> None:
    assert packages.upstream("1:2.3~rc1-4ubuntu1") == "2.3~rc1"
    assert packages.upstream("2.3") == "2.3"
    assert packages.upstream("1:2.3") == "2.3"
    assert packages.upstream(None) is None
    assert "libc6" in packages.installed_versions(HERE) or not Path("/var/lib/dpkg/status").exists()


def test_every_probe_survives_a_host_without_files(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {})
    probes = (host.system, host.memory, host.limits, host.clock, driver.driver, pci.pci)
    for probe in (*probes, fabric.fabric, rdma.rdma, container.container, network.network):
        begin = time.monotonic()
        assert probe(tree) is not None
        assert time.monotonic() - begin < 5


def test_versions_in_a_database_that_rpm_wrote(tmp_path: Path) -> None:
    # tests/data/rpm: rpm 4.18 put four packages of its own making into a new database.
    packed = (ROOT / "tests/data/rpm/rpmdb.sqlite.zst").read_bytes()
    data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 24)
    tree = plant(tmp_path, {"var/lib/rpm/rpmdb.sqlite": data})
    assert packages.installed_versions(tree) == {
        "nvidia-fabricmanager": "550.54.14",
        "nvidia-container-toolkit": "1.17.8",
        "podman": "5.2.2",
    }
    assert os.listdir(tmp_path / "var/lib/rpm") == ["rpmdb.sqlite"]


@pytest.mark.parametrize("data", [b"", b"no database", b"SQLite format 3\0" + b"\x01" * 5000])
def test_another_file_in_rpms_place_is_no_error(tmp_path: Path, data: bytes) -> None:
    tree = plant(tmp_path, {"usr/lib/sysimage/rpm/rpmdb.sqlite": data})
    assert packages.installed_versions(tree) == {}


@pytest.mark.parametrize("blob", [b"", b"\0" * 8, b"\xff" * 64, b"\0\0\0\x01" + b"\0" * 20])
def test_a_broken_rpm_header_has_no_version(blob: bytes) -> None:
    assert packages.header_version(blob) is None
