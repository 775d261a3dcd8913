"""Facts about GPUs and what joins them: NVLink, PCIe, RDMA.

Names of states are those of NVML's and the kernel's headers in lower case with dashes, without
their prefix: NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED is `chipset-not-supported`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tdstack.doctor.kinds import Bytes, Count, Flag, Lengths, Real, Signed, Text, Words


@dataclass(frozen=True)
class NvLink:
    """One NVLink of a GPU. `version` is its generation, 4 on H100; `remote` `gpu`, `switch` or
    `ibm-npu`.

    `errors` are the link's replay, recovery and CRC errors since the driver was loaded.
    """

    index: Count = None
    active: Flag = None
    version: Count = None
    remote: Text = None
    remote_pci: Text = None
    errors: Count = None


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML and /sys show it. Clocks in MHz, power in watts, temperatures in Celsius.

    `pci` is such as `0000:1b:00.0`. `throttle` are reasons that slow it now, such as
    `hw-thermal-slowdown`; `gpu-idle` is one too. `remap_*` are rows of HBM, `retired_*` pages of
    older GPUs. `ecc_uncorrected_volatile` counts since the driver was loaded, `_aggregate` over
    the GPU's life. `fabric_state` is `not-supported`, `not-started`, `in-progress` or `completed`;
    `fabric_status` NVML's return of the registration, `success` when good; `fabric_health` words
    of what is degraded. `multicast` is CUDA's MULTICAST_SUPPORTED attribute, which is only read.
    `dma_buf` is CUDA's DMA_BUF_SUPPORTED: RDMA without nvidia_peermem. `error` is empty, or why
    NVML gives no access to this GPU, such as `gpu-is-lost`. `compute_mode` is `default`,
    `exclusive-process` or `prohibited`. `*_max` of PCIe is the best that GPU and slot do together.
    """

    index: Count = None
    error: Text = None
    name: Text = None
    uuid: Text = None
    capability: Text = None
    memory: Bytes = None
    memory_used: Bytes = None
    bar1: Bytes = None
    pci: Text = None
    numa_node: Signed = None
    persistence: Flag = None
    compute_mode: Text = None
    mig: Flag = None
    mig_devices: Count = None
    processes: Count = None
    ecc: Flag = None
    ecc_pending: Flag = None
    ecc_corrected_volatile: Count = None
    ecc_uncorrected_volatile: Count = None
    ecc_corrected_aggregate: Count = None
    ecc_uncorrected_aggregate: Count = None
    retired_single_bit: Count = None
    retired_double_bit: Count = None
    retired_pending: Flag = None
    remap_corrected: Count = None
    remap_uncorrected: Count = None
    remap_pending: Flag = None
    remap_failed: Flag = None
    clock_sm: Count = None
    clock_sm_max: Count = None
    clock_sm_application: Count = None
    clock_memory: Count = None
    clock_memory_max: Count = None
    throttle: Words = None
    temperature: Real = None
    temperature_slowdown: Real = None
    power: Real = None
    power_limit: Real = None
    power_default: Real = None
    power_max: Real = None
    pcie_generation: Count = None
    pcie_generation_max: Count = None
    pcie_width: Count = None
    pcie_width_max: Count = None
    pcie_replays: Count = None
    nvlinks: Annotated[tuple[NvLink, ...] | None, Lengths(1024)] = None
    fabric_state: Text = None
    fabric_status: Text = None
    fabric_health: Words = None
    multicast: Flag = None
    dma_buf: Flag = None


@dataclass(frozen=True)
class Pair:
    """What GPU `a` can do with GPU `b` directly; `ok` where it can, else NVML's reason.

    `topology` is the nearest thing both hang on: `internal`, `single`, `multiple`, `hostbridge`,
    `node`, `system` (nvmlGpuTopologyLevel_t).
    """

    a: Count = None
    b: Count = None
    read: Text = None
    write: Text = None
    atomics: Text = None
    nvlink: Text = None
    topology: Text = None


@dataclass(frozen=True)
class Xid:
    """A fault that the kernel's driver logged, by code; `source` is `gpu` (Xid) or `switch` (SXid).

    `count` is how often the log that could be read has it; `age_s` how many seconds ago the last.
    """

    source: Text = None
    pci: Text = None
    code: Count = None
    count: Count = None
    age_s: Real = None
    text: Text = None


@dataclass(frozen=True)
class Switch:
    """An NVSwitch on this host's PCIe bus, by PCI device id such as `22a3`."""

    pci: Text = None
    device: Text = None


@dataclass(frozen=True)
class Fabric:
    """NVSwitches and the service that programs them.

    `manager_installed` and `manager_running` are Fabric Manager's; in a container the host's
    processes are not seen and `manager_running` is not known. `unit` is `enabled`, `disabled`,
    `masked` or `absent`. `imex` is the service of memory shared between hosts.
    """

    switches: Annotated[tuple[Switch, ...] | None, Lengths(1024)] = None
    manager_installed: Flag = None
    manager_running: Flag = None
    manager_version: Text = None
    unit: Text = None
    imex_running: Flag = None


@dataclass(frozen=True)
class Bridge:
    """A PCIe bridge or switch port. `acs` is the ACS control register; 0 where it has none.

    `above_gpu` says that a GPU or an RDMA device hangs below it. `redirects` says that a bit is
    set that sends traffic between peers up to the root complex (PCI Express Base Specification,
    6.12.1.1: P2P Request Redirect 0x04, P2P Completion Redirect 0x08).
    """

    pci: Text = None
    acs: Count = None
    redirects: Flag = None
    above_gpu: Flag = None


@dataclass(frozen=True)
class Pcie:
    """Bridges and the IOMMU. `iommu` is `off`, `passthrough` or `translated`.

    `nvidia_devices` are NVIDIA's GPUs on the bus (PCI class 03xx), whoever may use them.
    """

    bridges: Annotated[tuple[Bridge, ...] | None, Lengths(65536)] = None
    iommu: Text = None
    iommu_groups: Count = None
    nvidia_devices: Count = None


@dataclass(frozen=True)
class RdmaPort:
    """A port of an RDMA device. `state` and `physical` as in /sys: `ACTIVE`, `LinkUp`.

    `layer` is `InfiniBand` or `Ethernet`; `rate_gbps` in 10^9 bits per second; `gids` how many
    are set, `gids_v2` how many of those are RoCE v2.
    """

    number: Count = None
    state: Text = None
    physical: Text = None
    layer: Text = None
    rate_gbps: Real = None
    netdev: Text = None
    gids: Count = None
    gids_v2: Count = None
    link_downed: Count = None
    symbol_errors: Count = None


@dataclass(frozen=True)
class Rdma:
    """An RDMA device of /sys/class/infiniband; `board` such as `MT_0000000838`.

    `usable` says that its node in /dev/infiniband may be opened: /sys shows a container the
    devices of its host, whether they were passed or not.
    """

    name: Text = None
    guid: Text = None
    board: Text = None
    firmware: Text = None
    driver: Text = None
    pci: Text = None
    numa_node: Signed = None
    usable: Flag = None
    ports: Annotated[tuple[RdmaPort, ...] | None, Lengths(256)] = None
