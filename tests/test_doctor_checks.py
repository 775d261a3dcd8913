"""Single checks at their edges: what is just enough, just too little, or does not count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tdstack.doctor.check import Finding
from tdstack.doctor.checks import checks
from tdstack.doctor.facts import (
    UNLIMITED,
    CdiSpec,
    Clock,
    Container,
    Engine,
    Facts,
    Installed,
    Interface,
    Limits,
    Memory,
    Network,
    Route,
    Space,
)
from tdstack.doctor.hardware import Bridge, Gpu, NvLink, Pair, Pcie, RdmaPort, Switch, Xid
from tests.made_hosts import good, of_containers, of_drivers, of_links
from tests.made_hosts.parts import (
    DOCKER,
    GIB,
    alike,
    engines,
    infiniband,
    modules,
    nvlinks,
    one,
    spaces,
    spec,
)

CARDS, BOARD = good.cards(), good.h100_sxm()
INSIDE = good.container()


def _of(facts: Facts, check: str, line: str | None = None) -> Finding | None:
    return next((f for f in checks(facts, line) if f.check == check), None)


def _severity(facts: Facts, check: str, line: str | None = None) -> str | None:
    found = _of(facts, check, line)
    return found.severity if found else None


def _with(facts: Facts, part: str, **changed: Any) -> Facts:
    return replace(facts, **{part: replace(getattr(facts, part), **changed)})


# ------------------------------------------------------------------------------------- thresholds


def _shm(size: int, free: int | None = None) -> Facts:
    return replace(CARDS, spaces=spaces(shm=Space("/dev/shm", "tmpfs", size, free, True)))


def _tmp(free: int) -> Facts:
    return replace(CARDS, spaces=spaces(tmp=Space("/tmp", "ext4", 400 * GIB, free, True)))


def _pinned(soft: int, rdma: bool) -> Facts:
    facts = replace(CARDS, rdma=infiniband(1) if rdma else ())
    return _with(facts, "limits", memlock_soft=soft, memlock_hard=soft)


def _room(cache: int, images: int) -> Facts:
    return replace(
        CARDS,
        spaces=spaces(
            cache=Space("c", "ext4", 400 * GIB, cache, True),
            engine=Space("e", "ext4", 400 * GIB, images, False),
        ),
    )


def _fault(source: str, code: int, age: float | None, text: str | None = None) -> Facts:
    return replace(CARDS, xids=(Xid(source, "0000:1b:00.0", code, 1, age, text),))


@pytest.mark.parametrize(
    ("facts", "check", "severity"),
    [
        (_shm(GIB, GIB), "shm", "ok"),
        (_shm(GIB - 4096, GIB - 4096), "shm", "failure"),
        (_shm(2 * GIB, GIB - 4096), "shm", "warning"),
        (_shm(GIB), "shm", "ok"),
        (_tmp(10**9), "tmp", "ok"),
        (_tmp(10**9 - 1), "tmp", "warning"),
        (_pinned(UNLIMITED, True), "memlock", "ok"),
        (_pinned(UNLIMITED - 1, True), "memlock", "failure"),
        (_pinned(8 * 2**20, False), "memlock", "ok"),
        (_pinned(8 * 2**20 - 1, False), "memlock", "warning"),
        (_with(CARDS, "limits", memlock_soft=65536), "memlock", "warning"),  # ulimit -l is enough
        (replace(CARDS, limits=Limits(nofile_soft=4096)), "nofile", "ok"),
        (replace(CARDS, limits=Limits(nofile_soft=4095)), "nofile", "warning"),
        (_room(10 * 10**9, 11 * 10**9), "disk-cache", "ok"),
        (_room(10 * 10**9 - 1, 11 * 10**9), "disk-cache", "warning"),
        (_room(10 * 10**9, 11 * 10**9), "disk-images", "ok"),
        (_room(10 * 10**9, 11 * 10**9 - 1), "disk-images", "warning"),
        (replace(CARDS, clock=Clock(True, -0.5)), "clock-offset", "ok"),
        (replace(CARDS, clock=Clock(True, 0.51)), "clock-offset", "warning"),
        (replace(CARDS, clock=Clock(False, 9.0)), "clock-offset", None),
        (replace(CARDS, clock=Clock(True, None)), "clock-offset", None),
        (one(CARDS, 0, temperature=82.0), "temperature", "ok"),
        (one(CARDS, 0, temperature=82.5), "temperature", "warning"),
        (one(CARDS, 0, power_limit=299.6), "power-limit", "ok"),
        (one(CARDS, 0, power_limit=299.0), "power-limit", "warning"),
        (_fault("gpu", 79, 86400.0), "xid", "failure"),
        (_fault("gpu", 79, 86401.0), "xid", "note"),
        (_fault("gpu", 79, None), "xid", "failure"),
        (_fault("gpu", 31, 5.0), "xid", "note"),
        (_fault("gpu", 63, 5.0), "xid", "warning"),
        (
            _fault("gpu", 154, 5.0, "changed to 0x2 (Reset Required)"),
            "xid",
            "failure",
        ),
        (_fault("gpu", 154, 5.0, "changed to 0x0 (None)"), "xid", "warning"),
        (_fault("gpu", 92, 5.0), "xid", "warning"),
        (_fault("switch", 22013, 5.0, "Non-fatal, Link 4"), "xid", "warning"),
        (_fault("switch", 22013, 5.0, "Fatal, Link 4"), "xid", "failure"),
        (_fault("switch", 31, 5.0), "xid", "warning"),
    ],
)
def test_a_threshold_is_where_it_is_said_to_be(
    facts: Facts, check: str, severity: str | None
) -> None:
    assert _severity(facts, check) == severity


# ------------------------------------------------------------------------------------------- GPUs


def _links(active: int, errors: int = 0) -> tuple[NvLink, ...]:
    rest = tuple(NvLink(index, False) for index in range(active, 18))
    return (*(replace(link, errors=errors) for link in nvlinks(active, 4)), *rest)


def _boards(number: int, facts: Facts = BOARD) -> Facts:
    held = (facts.gpus or ())[:number]
    pairs = tuple(p for p in facts.pairs or () if max(p.a or 0, p.b or 0) < number)
    return replace(facts, gpus=held, pairs=pairs)


@pytest.mark.parametrize(
    ("facts", "check", "severity"),
    [
        (one(CARDS, 1, retired_pending=True), "row-remap", "failure"),
        (one(BOARD, 1, ecc_pending=False), "ecc", "warning"),
        (alike(CARDS, ecc=None), "ecc", None),
        # A card's bridge is an option; half a bridge is not.
        (alike(CARDS, name="NVIDIA H100 PCIe", nvlinks=_links(0)[:12]), "nvlink", None),
        (alike(CARDS, name="NVIDIA H100 PCIe", nvlinks=_links(11)[:12]), "nvlink", "failure"),
        (alike(CARDS, name="NVIDIA H100 PCIe", nvlinks=_links(12)[:12]), "nvlink", "ok"),
        (alike(CARDS, name="A card of next year", nvlinks=_links(17)), "nvlink", "failure"),
        (alike(CARDS, name="A card of next year", nvlinks=_links(18)), "nvlink", "ok"),
        # One GPU alone needs no links.
        (alike(_boards(1), nvlinks=_links(0)), "nvlink", "note"),
        (alike(BOARD, nvlinks=_links(0)), "nvlink", "failure"),
        (alike(BOARD, nvlinks=()), "nvlink", "failure"),
        (one(BOARD, 2, nvlinks=_links(18, 1000)), "nvlink-errors", "ok"),
        (one(BOARD, 2, nvlinks=_links(18, 1001)), "nvlink-errors", "warning"),
        (one(BOARD, 2, nvlinks=nvlinks(18, 5)), "nvlink-version", "ok"),
        (_boards(4), "gpu-count", "ok"),
        (_boards(5), "gpu-count", "warning"),
        (_boards(4), "nvswitch", None),
        (one(CARDS, 0, throttle=("sw-power-cap", "gpu-idle")), "clocks", "ok"),
        (one(CARDS, 0, throttle=("hw-power-brake-slowdown",)), "clocks", "failure"),
        (one(CARDS, 0, compute_mode="prohibited"), "compute-mode", "failure"),
        (one(CARDS, 0, compute_mode="exclusive-thread"), "compute-mode", "warning"),
        (replace(CARDS, gpus=(*(CARDS.gpus or ()), Gpu(2, error="unknown"))), "gpus", "failure"),
        (_with(CARDS, "pcie", nvidia_devices=3), "gpus", "failure"),
        (_with(INSIDE, "pcie", nvidia_devices=8), "gpus", "ok"),
        (_with(CARDS, "pcie", nvidia_devices=None), "gpus", "ok"),
        (one(BOARD, 0, fabric_status="not-supported"), "fabric-state", "failure"),
        (one(BOARD, 0, fabric_state="not-started"), "fabric-state", "failure"),
        (alike(BOARD, fabric_state="not-supported"), "fabric-state", "unknown"),
        (alike(_boards(4), multicast=False), "multicast", "warning"),
        (
            _with(
                alike(BOARD, multicast=False, fabric_state="not-supported"), "fabric", switches=()
            ),
            "multicast",
            None,
        ),
        (replace(BOARD, environment={"NCCL_NVLS_ENABLE": "0"}), "multicast", "note"),
        (replace(BOARD, environment={"NCCL_NVLS_ENABLE": "1"}), "multicast", "ok"),
        (_with(BOARD, "fabric", switches=(Switch("0000:07:00.0"),) * 3), "nvswitch", "failure"),
        (_with(BOARD, "fabric", switches=None), "nvswitch", "unknown"),
        (_with(BOARD, "fabric", manager_version=None), "fabric-manager", "ok"),
        # NVSwitches that are not on this PCIe bus: of a later generation, or outside of a guest.
        (_with(BOARD, "fabric", switches=(), manager_running=False), "fabric-manager", None),
        (_with(BOARD, "fabric", switches=(), manager_version="1.2"), "fabric-manager", "failure"),
        (_with(alike(BOARD, multicast=False), "fabric", switches=()), "multicast", "warning"),
    ],
)
def test_gpus_and_their_links(facts: Facts, check: str, severity: str | None) -> None:
    assert _severity(facts, check) == severity


def test_of_two_directions_the_worse_counts() -> None:
    pairs = (Pair(0, 1, "ok", "ok", "ok"), Pair(1, 0, "ok", "not-supported", "not-supported"))
    found = _of(replace(CARDS, pairs=pairs), "p2p")
    assert found is not None
    assert (found.severity, found.evidence) == ("missing", "1 of 1 pairs: 0-1; not-supported")
    assert _severity(replace(CARDS, pairs=pairs), "p2p-atomics") == "note"
    assert _severity(replace(CARDS, pairs=pairs[:1]), "p2p") == "ok"
    assert _severity(alike(replace(CARDS, pairs=pairs), nvlinks=_links(4)), "p2p") == "failure"
    assert _severity(replace(CARDS, pairs=()), "p2p") == "unknown"


def test_a_gpu_that_no_line_knows_can_be_left_out() -> None:
    old = one(CARDS, 1, name="NVIDIA T400", capability="7.5")
    found = _of(old, "gpu-architecture", "12.4")
    assert found is not None
    assert found.severity == "warning"
    assert "CUDA_VISIBLE_DEVICES=0" in found.remedy
    assert _severity(alike(old, capability="7.5"), "gpu-architecture", "12.4") == "missing"
    assert _severity(alike(CARDS, capability="10.3"), "gpu-architecture", "12.8") == "missing"
    assert _severity(alike(CARDS, capability="10.3"), "gpu-architecture") == "ok"


# ------------------------------------------------------------------------------------ PCIe and RDMA


def _acs(facts: Facts, *registers: int | None) -> Facts:
    held = tuple(
        Bridge(f"0000:{at:02x}:00.0", acs, None if acs is None else bool(acs & 12), True)
        for at, acs in enumerate(registers)
    )
    return replace(facts, pcie=replace(facts.pcie, bridges=held))


ALONE = replace(CARDS, rdma=())
DOWN = RdmaPort(1, "DOWN", "Polling", "Ethernet", 100.0)
UP = RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 100.0, None, 2, 1)


def _ports(*ports: RdmaPort) -> Facts:
    (card,) = infiniband(1)
    return replace(CARDS, rdma=(replace(card, ports=ports),))


def _cards(*boards: str) -> Facts:
    """Return a host with InfiniBand cards of these boards, of which the last is down."""
    ports = [replace(UP, layer="InfiniBand")] * (len(boards) - 1)
    ports.append(replace(DOWN, layer="InfiniBand"))
    cards = zip(infiniband(len(boards)), boards, ports, strict=True)
    return replace(CARDS, rdma=tuple(replace(c, board=b, ports=(p,)) for c, b, p in cards))


@pytest.mark.parametrize(
    ("facts", "check", "severity"),
    [
        (_acs(ALONE, 0x1D), "acs", "failure"),
        (_acs(ALONE, 0x13), "acs", "ok"),  # source validation, translation and upstream alone
        (_acs(ALONE, 0, None), "acs", "unknown"),
        (_acs(ALONE, None, 0x04), "acs", "failure"),
        (_acs(_boards(1, ALONE), 0x1D), "acs", None),
        (_acs(_boards(1, CARDS), 0x1D), "acs", "failure"),
        (_acs(replace(BOARD, rdma=()), 0x1D), "acs", "note"),
        (_acs(BOARD, 0x1D), "acs", "warning"),
        (replace(ALONE, pcie=Pcie((Bridge("0000:00:01.0", 0x1D, True, False),))), "acs", "ok"),
        (_with(_boards(1, ALONE), "pcie", iommu="translated"), "iommu", None),
        (_with(_boards(1, CARDS), "pcie", iommu="translated"), "iommu", "warning"),
        (one(CARDS, 0, pcie_width=8, pcie_width_max=8), "pcie-link", "warning"),
        (alike(CARDS, name="Other", pcie_width=4, pcie_width_max=4), "pcie-link", "ok"),
        (alike(CARDS, name="Other", pcie_width=4, pcie_width_max=16), "pcie-link", "warning"),
        (alike(CARDS, pcie_generation=1), "pcie-link", "ok"),  # idle
        (alike(CARDS, pcie_width=None, pcie_generation_max=None), "pcie-link", None),
        (_ports(DOWN), "rdma-ports", "failure"),
        (_ports(DOWN, UP), "rdma-ports", "warning"),
        (_ports(replace(DOWN, layer="InfiniBand"), UP), "rdma-ports", "warning"),  # one card
        (_cards("a", "a"), "rdma-ports", "failure"),
        (_cards("a", "b"), "rdma-ports", "warning"),
        (_ports(UP, replace(UP, number=2, rate_gbps=25.0)), "rdma-rate", "warning"),
        (_ports(UP, replace(UP, layer="InfiniBand", rate_gbps=25.0)), "rdma-rate", "ok"),
        (_ports(UP, replace(DOWN, rate_gbps=10.0)), "rdma-rate", None),
        (_ports(replace(UP, gids_v2=0)), "roce", "warning"),
        (_ports(replace(DOWN, gids_v2=0)), "roce", None),
        (_ports(replace(UP, layer="InfiniBand", gids_v2=0)), "roce", None),
    ],
)
def test_pcie_and_rdma(facts: Facts, check: str, severity: str | None) -> None:
    assert _severity(facts, check) == severity


@pytest.mark.parametrize(
    ("kind", "kernel", "dma_buf", "severity"),
    [
        ("open", "5.12.0", None, "warning"),
        ("open", "5.4.0-150", None, "failure"),
        ("open", None, None, "failure"),
        ("proprietary", "6.8.0", None, "failure"),
        ("open", "6.8.0", False, "failure"),
        ("proprietary", "5.4.0", True, "warning"),
    ],
)
def test_rdma_reaches_gpu_memory_by_module_or_by_dma_buf(
    kind: str, kernel: str | None, dma_buf: bool | None, severity: str
) -> None:
    facts = replace(CARDS, modules=modules("nvidia_peermem"))
    facts = alike(_with(_with(facts, "driver", kind=kind), "os", kernel=kernel), dma_buf=dma_buf)
    assert _severity(facts, "peermem") == severity
    assert _severity(replace(facts, modules=modules()), "peermem") == "ok"


# ---------------------------------------------------------------------------------------- driver


@pytest.mark.parametrize(
    ("changed", "row"),
    [
        ({"present": False, "nvml": "not-loaded"}, "driver-not-loaded"),
        ({"present": False, "nvml": "no-package"}, "driver-missing"),
        ({"present": False, "nvml": None}, "driver-missing"),
        ({"present": True, "nvml": "no-library"}, "driver-no-library"),
        ({"nvml": "no-package"}, "driver-not-asked"),
    ],
)
def test_what_is_said_of_a_driver(changed: dict[str, Any], row: str) -> None:
    found = _of(_with(CARDS, "driver", **changed), "driver")
    assert found is not None
    assert found.doc == f"docs/troubleshooting.md#{row}"


def test_a_library_without_a_module_is_a_driver_that_is_not_loaded_except_in_a_container() -> None:
    library = {"libnvidia-ml.so.1": True}
    bare = _with(replace(CARDS, libraries=library), "driver", present=False, nvml="no-package")
    found = _of(bare, "driver")
    assert found is not None
    assert found.doc.endswith("#driver-not-loaded")
    inside = _of(replace(bare, container=Container(True)), "driver")
    assert inside is not None
    assert inside.doc.endswith("#driver-inside")


@pytest.mark.parametrize(
    ("version", "line", "severity"),
    [
        ("525.60.13", None, "ok"),
        ("525.60.13", "12.9", "ok"),
        ("525.60.12", "12.9", "missing"),
        ("525.60.12", None, "missing"),
        ("580.65.06", "13.0", "ok"),
        ("580.65.05", "13.0", "missing"),
        ("580.65.05", None, "ok"),
        ("1000.0", "13.0", "ok"),
        ("", "13.0", "unknown"),
    ],
)
def test_the_floor_of_the_driver(version: str, line: str | None, severity: str) -> None:
    facts = _with(CARDS, "driver", version=version, library=None)
    assert _severity(facts, "driver-floor", line) == severity


def test_without_the_modules_version_the_librarys_counts() -> None:
    facts = _with(CARDS, "driver", version=None, library="520.0")
    assert _severity(facts, "driver-floor") == "missing"


# ------------------------------------------------------------------------------------- containers


PODMAN = Engine("podman", True, True, "4.9.3", "overlay", cdi=True)
OTHER_VENDOR = CdiSpec("/etc/cdi/other.yaml", "example.com/nic", 1, None)


@pytest.mark.parametrize(
    ("container", "check", "severity"),
    [
        (engines(replace(DOCKER, version="19.03.15")), "engine-version", "ok"),
        (engines(replace(PODMAN, version="4.0.9")), "engine-version", "failure"),
        (engines(replace(PODMAN, version="4.0.9", works=False)), "engine-version", None),
        (engines(Engine("apptainer", True, True, "1.0")), "engine-version", None),
        (engines(Engine("apptainer", True, True, "1.0"), toolkit=False), "container-toolkit", None),
        (engines(PODMAN, toolkit=False), "container-toolkit", "missing"),
        (engines(replace(DOCKER, runtimes=("runc",))), "container-toolkit", "failure"),
        (
            engines(replace(DOCKER, runtimes=("runc",)), cdi=(spec("550.90.07"),)),
            "container-toolkit",
            "ok",
        ),
        (engines(replace(DOCKER, runtimes=None)), "container-toolkit", "ok"),
        (engines(DOCKER, cdi=()), "cdi", None),
        (engines(DOCKER, cdi=(OTHER_VENDOR,)), "cdi", None),
        (engines(DOCKER, cdi=(), toolkit_mode="cdi"), "cdi", "warning"),
        (engines(PODMAN, cdi=(OTHER_VENDOR,)), "cdi", "warning"),
        (engines(PODMAN, cdi=(spec("550.90.07"),)), "cdi", "ok"),
        (engines(PODMAN, cdi=(spec(""),)), "cdi", "ok"),
        (engines(replace(DOCKER, cgroup_driver="cgroupfs")), "cgroup", "ok"),
        (engines(replace(PODMAN, cgroup_driver="systemd")), "cgroup", "ok"),
        (engines(), "engine", "missing"),
    ],
)
def test_engines(container: Container, check: str, severity: str | None) -> None:
    assert _severity(replace(CARDS, container=container), check) == severity


@pytest.mark.parametrize(
    ("where", "state", "severity"),
    [
        ("prefix", "whole", "note"),
        ("prefix", "broken", "missing"),
        ("container", "whole", "missing"),
        ("none", "absent", "missing"),
    ],
)
def test_a_node_with_a_whole_prefix_needs_no_engine(where: str, state: str, severity: str) -> None:
    facts = replace(CARDS, container=engines(), tdstack=Installed(where, "/opt/x", state))
    assert _severity(facts, "engine") == severity
    untold = replace(facts, container=engines(DOCKER, toolkit=False))
    assert _severity(untold, "container-toolkit") == severity


@pytest.mark.parametrize(
    ("asked", "severity"),
    [
        (None, "ok"),
        ("all", "ok"),
        ("compute, utility", "ok"),
        ("graphics,utility,compute", "ok"),
        ("utility", "failure"),
        ("", "failure"),
    ],
)
def test_what_of_the_driver_a_container_asks_for(asked: str | None, severity: str) -> None:
    environment = {} if asked is None else {"NVIDIA_DRIVER_CAPABILITIES": asked}
    assert _severity(replace(INSIDE, environment=environment), "passthrough") == severity


def test_a_container_is_not_told_of_what_only_the_host_has() -> None:
    found = {f.check for f in checks(replace(INSIDE, fabric=BOARD.fabric))}
    hosts = {"engine", "engine-version", "engine-storage", "cgroup", "container-toolkit", "cdi"}
    assert not found & (hosts | {"gpu-count", "nvswitch", "fabric-manager", "disk-images"})
    assert {"passthrough", "shm", "p2p", "installed"} <= found


# ------------------------------------------------------------------------------- network and stack


LOOPBACK = Interface("lo", True, True, True, families=("AF_INET",))


def _card(name: str, **changed: Any) -> Interface:
    known: dict[str, Any] = {"up": True, "loopback": False, "virtual": False}
    return Interface(name, **{**known, "families": ("AF_INET",), **changed})


def _net(*interfaces: Interface, route: str = "", told: str | None = None) -> Facts:
    routes = (Route("AF_INET", route),) if route else ()
    environment = {} if told is None else {"NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": told}
    return replace(CARDS, network=Network(interfaces, routes), environment=environment)


@pytest.mark.parametrize(
    ("facts", "severity", "interface"),
    [
        (_net(LOOPBACK, _card("eth0")), "ok", ""),
        (_net(LOOPBACK, _card("eth0", up=False), _card("ens3")), "note", "ens3"),
        (_net(LOOPBACK, _card("docker0", virtual=True), _card("ens3")), "note", "ens3"),
        (_net(_card("ens3"), _card("bond0", virtual=True), route="bond0"), "note", "bond0"),
        (_net(LOOPBACK, _card("docker0", virtual=True)), "note", "docker0"),
        (_net(LOOPBACK, _card("ens3", families=())), "note", "lo"),
        (_net(LOOPBACK), "note", "lo"),
        (_net(), "failure", ""),
        (_net(_card("eth0", up=False)), "failure", ""),
        (_net(_card("ens3"), told="ens"), "ok", ""),
        (_net(_card("ens3"), told="ib,=ens3"), "ok", ""),
        (_net(_card("ens3"), told="^docker"), "ok", ""),
        (_net(_card("ens3"), told="ib0,"), "failure", "ens3"),
    ],
)
def test_the_interface_of_the_bootstrap(facts: Facts, severity: str, interface: str) -> None:
    found = _of(facts, "bootstrap-interface")
    assert found is not None
    assert found.severity == severity
    assert f"IFNAME={interface}" in found.remedy if interface else "IFNAME" not in found.remedy


def test_the_way_out_is_believed_before_the_table_of_routes() -> None:
    facts = _net(_card("ens3"), _card("ens4", families=("AF_INET6",)), route="ens3")
    facts = _with(facts, "network", bootstrap_interface="ens4")
    found = _of(facts, "bootstrap-family")
    assert found is not None
    assert (found.severity, found.evidence) == ("warning", "ens4: AF_INET6")
    variables = {"NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY": "AF_INET6"}
    assert _severity(replace(facts, environment=variables), "bootstrap-family") == "ok"


@pytest.mark.parametrize(
    ("changed", "check", "severity"),
    [
        ({"state": "whole", "verify": "failed"}, "installed", "failure"),
        ({"state": None, "verify": None}, "installed", "unknown"),
        ({"driver_floor": "550.90.07"}, "installed-fits", "ok"),
        ({"driver_floor": "550.90.08"}, "installed-fits", "missing"),
        ({"archs": ("sm_80",), "driver_floor": None}, "installed-fits", "missing"),
        ({"archs": None, "driver_floor": None}, "installed-fits", None),
        ({"archs": None, "driver_floor": "525.60.13"}, "installed-fits", "ok"),
    ],
)
def test_what_is_installed(changed: dict[str, Any], check: str, severity: str | None) -> None:
    assert _severity(_with(INSIDE, "tdstack", **changed), check) == severity


@pytest.mark.parametrize(
    ("version", "severity"), [("2.35", "ok"), ("2.34", "warning"), ("2.4", "warning"), ("", None)]
)
def test_the_c_library_of_a_bare_host(version: str, severity: str | None) -> None:
    assert _severity(_with(CARDS, "os", glibc=version), "glibc") == severity


def test_automatic_numa_balancing_matters_with_several_nodes() -> None:
    def facts(nodes: int | None) -> Facts:
        return replace(CARDS, memory=Memory(numa_nodes=nodes, numa_balancing=True))

    assert [_severity(facts(nodes), "numa") for nodes in (1, 2, None)] == ["ok", "note", "ok"]


def test_a_line_that_does_not_run_names_one_that_does() -> None:
    found = _of(of_drivers.b200(), "line", "12.4")
    assert found is not None
    assert "--cuda 12.9" in found.remedy
    assert _severity(of_drivers.b200(), "line", "12.8") == "ok"
    nowhere = _of(of_drivers.old_driver(), "line", "12.4")
    assert nowhere is not None
    assert nowhere.doc.endswith("#line-none")
    assert "experimental" in str(_of(good.h20(), "line", "13.0"))


def test_linux_under_windows_is_not_asked_for_kernel_modules() -> None:
    kernel = "5.15.153.1-microsoft-standard-WSL2"
    facts = _with(replace(CARDS, modules=()), "os", kernel=kernel)
    assert _severity(facts, "driver-modules") is None
    assert _severity(alike(facts, persistence=False), "persistence") is None
    assert _severity(_with(facts, "os", kernel="5.15"), "driver-modules") == "failure"


def test_a_fabric_that_is_down_is_told_by_all_that_depends_on_it() -> None:
    found = {f.check: f.severity for f in checks(of_links.manager_down())}
    names = ("fabric-manager", "fabric-state", "p2p", "multicast")
    assert [found[name] for name in names] == ["failure", "failure", "failure", "warning"]
    assert _severity(of_containers.broken_container(), "tmp") == "failure"
