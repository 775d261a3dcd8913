"""Hosts that were made up, good and bad: where the files of tests/data/hosts/ come from.

Each bad host is a good one with one thing changed, or a few that go together. What a type of GPU
has is taken from its datasheet. `label` says of each that it is synthetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import permutations
from typing import Any

from tdstack.doctor.facts import (
    UNLIMITED,
    CdiSpec,
    Clock,
    Container,
    Driver,
    Engine,
    Facts,
    Installed,
    Interface,
    Limits,
    Memory,
    Module,
    Network,
    Os,
    Route,
    Space,
    Spaces,
)
from tdstack.doctor.hardware import (
    Bridge,
    Fabric,
    Gpu,
    NvLink,
    Pair,
    Pcie,
    Rdma,
    RdmaPort,
    Switch,
    Xid,
)

GIB = 2**30
MANAGER_OF = "550.90.07"
MODULES = ("nvidia", "nvidia_uvm", "nvidia_peermem", "gdrdrv", "mlx5_ib")


# ---------------------------------------------------------------------------------------- parts


def gpus(number: int, name: str, capability: str, memory: int, **more: Any) -> tuple[Gpu, ...]:
    """Return GPUs of one type, in order and idle."""
    common: dict[str, Any] = {
        "persistence": True,
        "compute_mode": "default",
        "mig": False,
        "processes": 0,
        "ecc": True,
        "ecc_pending": True,
        "ecc_uncorrected_volatile": 0,
        "ecc_uncorrected_aggregate": 0,
        "remap_pending": False,
        "remap_failed": False,
        "remap_uncorrected": 0,
        "clock_sm": 345,
        "clock_sm_max": 1980,
        "throttle": ("gpu-idle",),
        "temperature": 31.0,
        "temperature_slowdown": 87.0,
        "power_limit": 700.0,
        "power_default": 700.0,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_width_max": 16,
    }
    return tuple(
        Gpu(
            index=index,
            name=name,
            capability=capability,
            memory=memory,
            pci=f"0000:{0x1B + 0x10 * index:02x}:00.0",
            **{**common, **more},
        )
        for index in range(number)
    )


def nvlinks(number: int, version: int, remote: str = "switch") -> tuple[NvLink, ...]:
    """Return links of a GPU that are all up."""
    return tuple(NvLink(index, True, version, remote, errors=0) for index in range(number))


def pairs(number: int, status: str = "ok", atomics: str = "ok") -> tuple[Pair, ...]:
    """Return what each GPU can do with each other one."""
    return tuple(
        Pair(a, b, read=status, write=status, atomics=atomics)
        for a, b in permutations(range(number), 2)
    )


def modules(*left_out: str) -> tuple[Module, ...]:
    """Return the kernel modules of a GPU host, but some."""
    return tuple(Module(name, "") for name in MODULES if name not in left_out)


def infiniband(number: int, rate: float = 400.0) -> tuple[Rdma, ...]:
    """Return ConnectX-7 cards, each with a port that is up."""
    port = RdmaPort(1, "ACTIVE", "LinkUp", "InfiniBand", rate, gids=1, gids_v2=0)
    return tuple(
        Rdma(f"mlx5_{index}", board="MT_0000000838", firmware="28.39.1002", ports=(port,))
        for index in range(number)
    )


def driver(version: str, cuda: str, kind: str = "open") -> Driver:
    """Return a driver in good order."""
    nodes = ("nvidia0", "nvidiactl", "nvidia-uvm")
    return Driver(True, version, version, cuda, kind, "ok", devices=nodes, persistenced=True)


DOCKER = Engine(
    name="docker",
    installed=True,
    works=True,
    version="27.3.1",
    storage="overlay2",
    runtimes=("io.containerd.runc.v2", "nvidia", "runc"),
    cdi=True,
    cgroup_driver="systemd",
)


def spec(version: str) -> CdiSpec:
    """Return a CDI file that was written for a driver."""
    return CdiSpec("/etc/cdi/nvidia.yaml", "nvidia.com/gpu", 9, version)


def engines(*held: Engine, **more: Any) -> Container:
    """Return a host with these engines and NVIDIA's toolkit."""
    common: dict[str, Any] = {"toolkit": True, "toolkit_version": "1.17.8", "cdi": ()}
    return Container(False, cgroup=2, engines=held, **{**common, **more})


def wired(interface: str = "eth0", families: tuple[str, ...] = ("AF_INET",)) -> Network:
    """Return a network with one interface beside the loopback."""
    loopback = Interface("lo", True, True, True, families=("AF_INET", "AF_INET6"))
    card = Interface(interface, True, False, False, 1500, 10000, families)
    return Network(
        (loopback, card),
        tuple(Route(one, interface) for one in families),
        bootstrap_interface=interface,
        bootstrap_family=families[0],
        host_resolves=True,
    )


def spaces(**more: Space) -> Spaces:
    """Return room enough everywhere."""
    common = {
        "shm": Space("/dev/shm", "tmpfs", 512 * GIB, 511 * GIB, True),
        "tmp": Space("/tmp", "ext4", 400 * GIB, 300 * GIB, True),
        "cache": Space("~/.cache/tdstack", "ext4", 400 * GIB, 300 * GIB, True),
        "engine": Space("/var/lib/docker", "ext4", 3000 * GIB, 2000 * GIB, False),
    }
    return Spaces(**{**common, **more})


def host(label: str, held: Driver, **more: Any) -> Facts:
    """Return a well kept server with this driver, without GPUs."""
    common: dict[str, Any] = {
        "os": Os("ubuntu", "22.04", "5.15.0-122-generic", "x86_64", "2.35", "3.11.9", root=True),
        "modules": modules(),
        "limits": Limits(UNLIMITED, UNLIMITED, 1048576, 1048576, 8388608, UNLIMITED),
        "spaces": spaces(),
        "memory": Memory(2048 * GIB, 2000 * GIB, 0, 0, 2097152, "madvise", 2, False),
        "container": engines(DOCKER, cdi=(spec(held.version or ""),)),
        "network": wired(),
        "clock": Clock(True, 0.000012, 0.001, "chronyd"),
        "pcie": Pcie((), "passthrough", 90, 0),
        "xids": (),
        "rdma": (),
        "tdstack": Installed("none"),
        "environment": {},
    }
    return Facts(label=f"synthetic: {label}", driver=held, **{**common, **more})


def bridges(number: int, register: int = 0) -> tuple[Bridge, ...]:
    """Return PCIe switch ports, each above a GPU, with this ACS register."""
    redirects = bool(register & 0x0C)
    return tuple(
        Bridge(f"0000:{0x1A + 0x10 * index:02x}:01.0", register, redirects, True)
        for index in range(number)
    )


# ---------------------------------------------------------------------------------- good hosts


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


def _one(facts: Facts, index: int, **changed: Any) -> Facts:
    held = list(facts.gpus or ())
    held[index] = replace(held[index], **changed)
    return replace(facts, gpus=tuple(held))


def _all(facts: Facts, **changed: Any) -> Facts:
    return replace(facts, gpus=tuple(replace(gpu, **changed) for gpu in facts.gpus or ()))


# ----------------------------------------------------------------------------------- bad hosts


def laptop() -> Facts:
    """Return a Debian machine without a GPU and without an engine."""
    silent = Engine("docker", True, False, why="permission denied: /var/run/docker.sock")
    return host(
        "a Debian laptop without GPU or engine",
        Driver(False, devices=(), nvml="no-library", persistenced=False),
        os=Os("debian", "12", "6.1.0-25-amd64", "x86_64", "2.36", "3.11.2", root=False),
        gpus=(),
        pairs=(),
        modules=(),
        limits=Limits(2046 * 2**20, 2046 * 2**20, 1024, 1048576, 8388608, UNLIMITED),
        spaces=spaces(
            shm=Space("/dev/shm", "tmpfs", 8 * GIB, 8 * GIB, True),
            cache=Space("~/.cache/tdstack", "ext4", 200 * GIB, 6 * GIB, True),
            engine=Space(None),
        ),
        memory=Memory(16 * GIB, 12 * GIB, 0, 0, 2097152, "always", 1, False),
        container=Container(False, cgroup=2, engines=(silent,), toolkit=False, cdi=()),
        network=wired("wlp2s0", ("AF_INET", "AF_INET6")),
        clock=Clock(True, 0.0003, 0.05, "systemd-timesyncd"),
        xids=None,
        why={"xids": "reading the kernel's log needs root"},
    )


def manager_down() -> Facts:
    """Return an H100 node whose Fabric Manager does not run."""
    bad = replace(
        h100_sxm(), label="synthetic: Fabric Manager down", pairs=pairs(8, "not-supported")
    )
    bad = replace(bad, fabric=replace(bad.fabric, manager_running=False, unit="disabled"))
    return _all(bad, fabric_state="in-progress", fabric_status=None, multicast=False)


def manager_missing() -> Facts:
    """Return an H100 node without Fabric Manager, on which a switch is missing, too."""
    bad = replace(manager_down(), label="synthetic: Fabric Manager not installed, a switch missing")
    switches = (bad.fabric.switches or ())[:3]
    return replace(bad, fabric=Fabric(switches, False, False, None, "absent"))


def manager_old() -> Facts:
    """Return an H100 node whose driver was updated without Fabric Manager."""
    bad = replace(h20(), label="synthetic: Fabric Manager of another version")
    return replace(bad, fabric=replace(bad.fabric, manager_version="570.124.06"))


def old_driver() -> Facts:
    """Return two cards with a driver older than every CUDA line."""
    bad = replace(cards(), label="synthetic: a driver older than CUDA 12")
    held = driver("470.256.02", "11.4", "proprietary")
    return replace(bad, driver=held, container=engines(DOCKER, cdi=(spec(held.version or ""),)))


def acs_on() -> Facts:
    """Return two cards below bridges that redirect, with an IOMMU that translates."""
    bad = replace(cards(), label="synthetic: ACS on, IOMMU on")
    bad = replace(bad, pcie=Pcie(bridges(2, 0x1D), "translated", 61, 2))
    return replace(bad, rdma=())


def acs_nvlink() -> Facts:
    """Return a node with NVLink and InfiniBand below bridges that redirect; a lane is missing."""
    bad = replace(h100_sxm(), label="synthetic: ACS on beside NVLink, a slot with eight lanes")
    return _one(replace(bad, pcie=replace(bad.pcie, bridges=bridges(8, 0x1D))), 6, pcie_width=8)


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
    return _one(facts, 2, pcie_generation_max=3)


def small_container() -> Facts:
    """Return a container as plain `docker run --gpus all` starts it, on a host with a limit."""
    bad = replace(container(), label="synthetic: a container with 64 MiB of /dev/shm")
    shm = Space("/dev/shm", "tmpfs", 64 * 2**20, 64 * 2**20, True)
    return replace(
        bad,
        spaces=spaces(shm=shm, tmp=Space("/tmp", "overlay", 400 * GIB, 300 * 2**20, True)),
        limits=replace(bad.limits, memlock_soft=65536, memlock_hard=65536, nofile_soft=1024),
    )


def broken_container() -> Facts:
    """Return a container that got a part of the driver, and that somebody changed."""
    bad = replace(container(), label="synthetic: a changed container with a part of the driver")
    readonly = Space("/tmp", "overlay", 400 * GIB, 300 * GIB, False)
    return replace(
        bad,
        environment={"NVIDIA_DRIVER_CAPABILITIES": "compute", "NVSHMEM_DISABLE_NVLS": "1"},
        spaces=spaces(tmp=readonly),
        tdstack=replace(
            bad.tdstack, state="broken", problems=("triton: changed",), verify="failed"
        ),
    )


def hidden_container() -> Facts:
    """Return a container without device nodes, whose image is for other GPUs and drivers."""
    bad = replace(container(), label="synthetic: a container without nvidia-uvm, of another line")
    archs = ("sm_100",)
    return replace(
        bad,
        driver=replace(bad.driver, devices=("nvidia0", "nvidiactl")),
        tdstack=replace(bad.tdstack, cuda="13.0", driver_floor="580.65.06", archs=archs),
        environment={},
    )


def blind_container() -> Facts:
    """Return a container that was started without GPUs."""
    return replace(
        container(),
        label="synthetic: a container without GPUs",
        driver=Driver(False, devices=(), nvml="no-library"),
        gpus=(),
        pairs=(),
        modules=modules(),
    )


def link_down() -> Facts:
    """Return an H100 node with one NVLink down, one full of errors, and one slow."""
    bad = replace(h100_sxm(), label="synthetic: NVLink 7 of GPU 3 down")
    links = list(nvlinks(18, 4))
    links[7] = NvLink(7, False, 4, "switch", errors=0)
    bad = _one(bad, 3, nvlinks=tuple(links), fabric_health=("degraded-bandwidth",))
    links[7] = NvLink(7, True, 3, "switch", errors=48211)
    return _one(bad, 5, nvlinks=tuple(links))


def bad_memory() -> Facts:
    """Return two cards, one with new memory errors, one with old ones and without ECC."""
    bad = replace(cards(), label="synthetic: uncorrected ECC errors, a row to be remapped")
    errors = {"ecc_uncorrected_volatile": 2, "ecc_uncorrected_aggregate": 2}
    bad = _one(bad, 0, remap_pending=True, **errors)
    bad = _one(bad, 1, ecc=False, ecc_pending=False, ecc_uncorrected_aggregate=1)
    grave = Xid("gpu", "0000:1b:00.0", 48, 1, 4000.0, "DBE (double bit error)")
    return replace(bad, xids=(grave, Xid("gpu", "0000:1b:00.0", 63, 1, 4000.0)))


def worn_memory() -> Facts:
    """Return two cards, one without a spare row left; both with errors in their past."""
    bad = replace(cards(), label="synthetic: no spare row left; errors long ago")
    bad = _one(_all(bad, ecc_uncorrected_aggregate=3), 1, remap_failed=True)
    return replace(bad, xids=(Xid("gpu", "0000:2b:00.0", 64, 1, 900000.0),))


def fallen_off() -> Facts:
    """Return an H100 node on which one GPU has fallen off the bus, and a switch had a fault."""
    bad = h100_sxm()
    fault = Xid("switch", "0000:07:00.0", 20034, 3, 500.0, "Fatal, Link 30 LTSSM Fault Up")
    return replace(
        bad,
        label="synthetic: a GPU has fallen off the bus",
        gpus=(*(bad.gpus or ())[:6], Gpu(6, error="gpu-is-lost")),
        pairs=pairs(6),
        xids=(Xid("gpu", "0000:8b:00.0", 79, 1, 610.0), fault),
    )


def hot() -> Facts:
    """Return an H20 node with heat, low power limits, other programs, and persistence off."""
    bad = _all(
        replace(h20(), label="synthetic: hot, limited, busy, persistence off"), persistence=False
    )
    slow = ("hw-slowdown", "hw-thermal-slowdown")
    bad = _one(bad, 2, throttle=slow, temperature=86.0, clock_sm=810, processes=1)
    bad = _one(bad, 4, throttle=("sw-thermal-slowdown",), temperature=80.0, power_limit=350.0)
    program = Xid("gpu", "0000:3b:00.0", 31, 12, 3600.0, "MMU Fault")
    return replace(bad, driver=replace(bad.driver, persistenced=False), xids=(program,))


def slowed() -> Facts:
    """Return two cards held down by a setting, on which one process alone may run."""
    bad = replace(cards(), label="synthetic: clocks set low, exclusive processes")
    bad = _all(bad, throttle=("applications-clocks-setting",), clock_sm=1095)
    unheard = Xid("gpu", "0000:1b:00.0", 999, 1, 60.0)
    return replace(_one(bad, 0, compute_mode="exclusive-process"), xids=(unheard,))


def mixed() -> Facts:
    """Return a node with cards of three types, one of them prohibited."""
    bad = cards()
    other = gpus(4, "NVIDIA L40S", "8.9", 48 * GIB, nvlinks=(), pcie_generation=4)
    old = gpus(5, "Tesla V100-PCIE-32GB", "7.0", 32 * GIB, nvlinks=(), compute_mode="prohibited")
    return replace(
        bad,
        label="synthetic: cards of three types, one too old",
        gpus=(*(bad.gpus or ()), *other[2:], old[4]),
        pairs=pairs(5),
        pcie=Pcie(bridges(5), "off", 0, 5),
    )


def mig() -> Facts:
    """Return two cards, one split."""
    bad = replace(cards(), label="synthetic: MIG on")
    return _one(bad, 1, mig=True, mig_devices=7)


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


def low_limits() -> Facts:
    """Return two cards with InfiniBand and the limits of a plain login, badly kept otherwise."""
    bad = replace(cards(), label="synthetic: 64 KiB of pinned memory beside InfiniBand")
    return replace(
        bad,
        driver=replace(bad.driver, kind="proprietary"),
        limits=replace(bad.limits, memlock_soft=65536, memlock_hard=65536, nofile_soft=1024),
        memory=replace(bad.memory, transparent_hugepages="never", numa_balancing=True),
        modules=modules("nvidia_peermem"),
        spaces=spaces(
            shm=Space("/dev/shm", "tmpfs", 512 * GIB, 10 * 2**20, True),
            engine=Space("/var/lib/docker", "ext4", 100 * GIB, 3 * GIB, False),
            cache=Space("~/.cache/tdstack", "nfs", 400 * GIB, 300 * GIB, False),
        ),
    )


def wrong_time() -> Facts:
    """Return an H20 node whose clock nobody sets, in a network that it does not know."""
    bad = replace(h20(), label="synthetic: the clock is not synchronised; IPv6 alone")
    return replace(
        bad,
        clock=Clock(False, None, 16.0, ""),
        network=replace(wired("bond0", ("AF_INET6",)), host_resolves=False),
    )


def off_time() -> Facts:
    """Return an H20 node whose clock is 40 s off, with variables that do not fit it."""
    bad = replace(h20(), label="synthetic: the clock is off; variables of another host")
    return replace(
        bad,
        clock=Clock(True, -40.2, 41.0, "ntpd"),
        environment={
            "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME": "ib0",
            "NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY": "AF_INET6",
            "NVSHMEM_DISABLE_CUDA_VMM": "1",
        },
    )


def windows() -> Facts:
    """Return Linux under Windows with one GeForce."""
    held = gpus(1, "NVIDIA GeForce RTX 4090", "8.9", 24 * GIB, ecc=None, pcie_generation_max=4)
    return host(
        "Linux under Windows, one GeForce",
        replace(driver("560.94", "12.6", "proprietary"), devices=(), kind=None),
        os=Os("ubuntu", "24.04", "5.15.153.1-microsoft-standard-WSL2", "x86_64", "2.39", "3.12.3"),
        gpus=held,
        modules=(),
        pcie=Pcie((), "off", 0, 0),
        container=engines(DOCKER),
    )


def mismatch() -> Facts:
    """Return an H100 node after an update of the driver without a reboot."""
    held = Driver(True, "550.90.07", "550.127.08", kind="open", nvml="mismatch")
    return replace(
        h100_sxm(),
        label="synthetic: the driver was updated, not rebooted",
        driver=held,
        gpus=None,
        pairs=None,
        why={"gpus": "NVML: Driver/library version mismatch", "pairs": "NVML: mismatch"},
    )


def not_loaded() -> Facts:
    """Return two cards after an update of the kernel without a module for it."""
    return replace(
        cards(),
        label="synthetic: no kernel module for this kernel",
        driver=Driver(False, None, None, nvml="not-loaded", devices=()),
        libraries={"libnvidia-ml.so.1": True, "libcuda.so.1": True},
        gpus=None,
        pairs=None,
        modules=(Module("nouveau", ""),),
    )


def b200() -> Facts:
    """Return a node with a B200 board and the wrong kind of kernel modules."""
    good = h100_sxm()
    version = "570.133.20"
    links = {"nvlinks": nvlinks(18, 5), "power_limit": 1000.0, "power_default": 1000.0}
    return replace(
        _all(good, name="NVIDIA B200", capability="10.0", memory=180 * GIB, **links),
        label="synthetic: B200 with proprietary kernel modules",
        driver=driver(version, "12.8", "proprietary"),
        fabric=Fabric(good.fabric.switches, True, True, version, "enabled"),
        container=engines(DOCKER, cdi=(spec(version),)),
        modules=modules("nvidia_uvm"),
    )


def b200_open() -> Facts:
    """Return a node with a B200 board and RoCE, as it should be."""
    bad, version = b200(), "580.82.07"
    port = RdmaPort(1, "ACTIVE", "LinkUp", "Ethernet", 400.0, "ens1f0np0", 3, 2)
    return replace(
        bad,
        label="synthetic: B200, eight GPUs, RoCE",
        driver=driver(version, "13.0"),
        fabric=replace(bad.fabric, manager_version=version),
        container=engines(DOCKER, cdi=(spec(version),)),
        modules=modules(),
        rdma=(Rdma("mlx5_0", ports=(port,)), Rdma("mlx5_1", ports=(port,))),
    )


def ill_driver() -> Facts:
    """Return two cards whose driver answers with an error, beside a read-only /dev/shm."""
    bad = replace(cards(), label="synthetic: the driver answers with an error")
    return replace(
        bad,
        driver=replace(bad.driver, nvml="error"),
        spaces=spaces(shm=Space("/dev/shm", "tmpfs", 512 * GIB, 511 * GIB, False)),
        gpus=None,
        pairs=None,
        why={"driver": "NVML: Unknown Error", "gpus": "NVML: Unknown Error"},
    )


def half_driver() -> Facts:
    """Return two cards with the kernel module, but without the driver's library."""
    return replace(
        cards(),
        label="synthetic: the driver's library is missing",
        driver=Driver(True, "550.90.07", None, None, "open", "no-library"),
        gpus=None,
        pairs=None,
        why={"gpus": "there is no libnvidia-ml.so.1"},
    )


def grace() -> Facts:
    """Return a GH200, which is no x86_64 machine."""
    system = Os("ubuntu", "24.04", "6.8.0-1013-nvidia-64k", "aarch64", "2.39", "3.12.3", root=True)
    held = gpus(1, "NVIDIA GH200 480GB", "9.0", 96 * GIB)
    return host(
        "GH200", driver("580.65.06", "13.0"), os=system, gpus=held, pcie=Pcie((), "off", 0, 1)
    )


def old_engine() -> Facts:
    """Return two cards on a system of old, whose docker does not know GPUs."""
    bad = replace(cards(), label="synthetic: CentOS 7 with an old docker")
    docker = Engine("docker", True, True, "18.09.9", "devicemapper", runtimes=("runc",))
    system = Os("centos", "7", "3.10.0-1160.el7.x86_64", "x86_64", "2.17", "3.11.9", root=True)
    return replace(bad, os=system, container=replace(engines(docker), cgroup=1))


def no_toolkit() -> Facts:
    """Return two cards whose engines were not told of GPUs."""
    bad = replace(cards(), label="synthetic: podman without CDI, no container toolkit")
    podman = Engine("podman", True, True, "4.9.3", "vfs", cdi=True, cgroup_driver="systemd")
    return replace(bad, container=engines(DOCKER, podman, toolkit=False))


def stale_cdi() -> Facts:
    """Return two cards whose CDI file is of the driver before; a prefix that somebody changed."""
    bad = replace(cards(), label="synthetic: CDI of another driver; a broken prefix")
    prefix = Installed("prefix", "/opt/tdstack", "broken", ("cuda/core: missing",), cuda="12.4")
    return replace(bad, container=engines(DOCKER, cdi=(spec("535.54.03"),)), tdstack=prefix)


def prefix_only() -> Facts:
    """Return a Slurm node: a prefix and no engine, on a driver too old for what is installed."""
    good = replace(cards(), label="synthetic: a prefix of CUDA 13, no engine")
    return replace(
        good,
        container=engines(toolkit=False),
        tdstack=Installed(
            *("prefix", "/opt/tdstack", "whole", (), "0.9.0", "13.0", "stock", "cuda", "3.11"),
            *("0" * 64, ("sm_80", "sm_90"), "580.65.06", "passed"),
        ),
        rdma=infiniband(1, 200.0),
    )


def lost_prefix() -> Facts:
    """Return a machine that the lock does not serve, with an empty prefix and no way to ask."""
    return host(
        "POWER, an empty prefix, nvidia-ml-py missing",
        Driver(True, "550.90.07", kind="proprietary", nvml="no-package"),
        os=Os("rhel", "9.4", "5.14.0-427.el9.ppc64le", "ppc64le", "2.34", "3.11.7", root=True),
        gpus=None,
        pairs=None,
        tdstack=Installed("prefix", "/opt/tdstack", "absent"),
        network=Network((), (), bootstrap_interface="", bootstrap_family=""),
        container=engines(replace(DOCKER, runtimes=("runc",))),
        why={"gpus": "nvidia-ml-py is not installed"},
    )


def untold_docker() -> Facts:
    """Return cards that the driver does not show: all are given to virtual machines."""
    bad = replace(cards(), label="synthetic: no GPU shown; docker was not told of the toolkit")
    return replace(bad, gpus=(), pairs=(), driver=replace(bad.driver, devices=()))


def untold_runtime() -> Facts:
    """Return two cards behind a docker that the toolkit was not registered with; no rights."""
    bad = replace(cards(), label="synthetic: docker without NVIDIA's runtime")
    return replace(
        bad,
        container=engines(replace(DOCKER, runtimes=("runc",))),
        driver=replace(bad.driver, nvml="no-permission"),
    )


def unreadable() -> Facts:
    """Return an H100 node as a user without rights sees it."""
    bad = _all(h100_sxm(), nvlinks=None, multicast=None, fabric_state=None, capability=None)
    return replace(
        bad,
        label="synthetic: an H100 node, much of it not to be read",
        os=replace(bad.os, root=False),
        pairs=None,
        xids=None,
        modules=None,
        pcie=Pcie(None, None, None, 8),
        fabric=replace(bad.fabric, manager_running=None),
        container=Container(False, engines=(DOCKER,)),
        why={"xids": "reading the kernel's log needs root", "pcie": "config space needs root"},
    )


def unknown() -> Facts:
    """Return a host of which nothing is known."""
    return Facts(label="synthetic: nothing is known")


def foreign() -> Facts:
    """Return two cards on a host that speaks other languages."""
    bad = replace(cards(), label="synthetic: Größe, 机器, حاسوب")
    engine = replace(DOCKER, works=False, why="permission refusée ; проверьте права")
    return replace(
        bad,
        os=replace(bad.os, distro="глагол", kernel="٥.١٥.٠-généric"),
        driver=replace(bad.driver, version="五五〇.九〇", library="550,90,07"),
        container=engines(engine),
        xids=(Xid("gpu", "0000:1b:00.0", 13, 1, 5.0, "Ошибка графического процессора"),),
    )


HOSTS: Mapping[str, Callable[[], Facts]] = {
    "a100-pcie-2": cards,
    "acs-nvlink": acs_nvlink,
    "acs-on": acs_on,
    "b200-8": b200_open,
    "b200-closed-modules": b200,
    "container-blind": blind_container,
    "container-broken": broken_container,
    "container-good": container,
    "container-hidden": hidden_container,
    "container-small-shm": small_container,
    "driver-error": ill_driver,
    "driver-mismatch": mismatch,
    "driver-no-library": half_driver,
    "driver-not-loaded": not_loaded,
    "driver-old": old_driver,
    "ecc-errors": bad_memory,
    "engine-cdi-stale": stale_cdi,
    "engine-no-toolkit": no_toolkit,
    "engine-old": old_engine,
    "engine-untold": untold_runtime,
    "fabric-manager-down": manager_down,
    "fabric-manager-missing": manager_missing,
    "fabric-manager-old": manager_old,
    "foreign": foreign,
    "gh200": grace,
    "gpu-fallen-off": fallen_off,
    "gpu-none-shown": untold_docker,
    "h100-sxm-8": h100_sxm,
    "h20-8": h20,
    "hot": hot,
    "l40s-no-p2p": no_p2p,
    "laptop": laptop,
    "limits-low": low_limits,
    "mig": mig,
    "mixed": mixed,
    "nvlink-down": link_down,
    "power-empty-prefix": lost_prefix,
    "prefix-only": prefix_only,
    "rdma-port-down": port_down,
    "rdma-roce": roce,
    "row-remap-failed": worn_memory,
    "slowed": slowed,
    "time-off": off_time,
    "time-unset": wrong_time,
    "unknown": unknown,
    "unreadable": unreadable,
    "wsl": windows,
}
