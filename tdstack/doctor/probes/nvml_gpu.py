"""One GPU's facts through NVML."""

from __future__ import annotations

from ctypes import byref
from typing import Any

from tdstack.doctor.hardware import Gpu, NvLink
from tdstack.doctor.probes.nvml_asker import Asker

# nvmlClocksEventReasons of nvml.h.
REASONS = {
    0x001: "gpu-idle",
    0x002: "applications-clocks-setting",
    0x004: "sw-power-cap",
    0x008: "hw-slowdown",
    0x010: "sync-boost",
    0x020: "sw-thermal-slowdown",
    0x040: "hw-thermal-slowdown",
    0x080: "hw-power-brake-slowdown",
    0x100: "display-clock-setting",
}
COMPUTE = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}
STATES = {0: "not-supported", 1: "not-started", 2: "in-progress", 3: "completed"}
REMOTES = {0: "gpu", 1: "ibm-npu", 2: "switch"}
# NVML_GPU_FABRIC_HEALTH_MASK of nvml.h: first bit, width, and the words of values that are bad.
HEALTH: tuple[tuple[int, int, dict[int, str]], ...] = (
    (0, 2, {1: "degraded-bandwidth"}),
    (2, 2, {1: "route-recovery"}),
    (4, 2, {1: "route-unhealthy"}),
    (6, 2, {1: "access-timeout-recovery"}),
    (
        8,
        4,
        {
            2: "incorrect-sysguid",
            3: "incorrect-chassis-serial",
            4: "no-partition",
            5: "insufficient-nvlinks",
            6: "incompatible-gpu-firmware",
            7: "invalid-location",
            8: "gpu-state-invalid",
        },
    ),
)
MOST_LINKS = 36
# What NVML says of a switch that a virtual machine does not see.
NOWHERE = "ffff:ff:ff.0"
# nvmlNvlinkVersion_t to the generation: 2.2 is 3, 3.0 is 4, 3.1 is 5, 4.0 is 6 and 5.0 is 7.
GENERATIONS = {1: 1, 2: 2, 3: 2, 4: 3, 5: 3, 6: 4, 7: 5, 8: 6}


def gpu_of(ask: Asker, index: int, handle: Any) -> Gpu:
    """Return what NVML says of one GPU."""

    def get(fact: str, name: str, *arguments: object) -> Any:
        return ask(f"gpus.{fact}", f"nvmlDevice{name}", handle, *arguments)

    def scaled(fact: str, name: str) -> float | None:
        value = get(fact, name)
        return None if value is None else value / 1000  # NVML's milliwatts

    capability = get("capability", "GetCudaComputeCapability")
    memory = get("memory", "GetMemoryInfo")
    ecc = get("ecc", "GetEccMode")
    remapped = get("remap_corrected", "GetRemappedRows")
    mig = get("mig", "GetMigMode")
    bounds = get("power_max", "GetPowerManagementLimitConstraints")
    reasons = _reasons(ask, handle)
    processes = get("processes", "GetComputeRunningProcesses")
    state, status, health = fabric_of(ask, handle)
    return Gpu(
        index=index,
        error="",
        name=get("name", "GetName"),
        uuid=get("uuid", "GetUUID"),
        capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        memory=None if memory is None else memory.total,
        memory_used=None if memory is None else memory.used,
        bar1=getattr(get("bar1", "GetBAR1MemoryInfo"), "bar1Total", None),
        pci=bus_id(getattr(get("pci", "GetPciInfo"), "busId", None)),
        persistence=_flag(get("persistence", "GetPersistenceMode")),
        compute_mode=COMPUTE.get(get("compute_mode", "GetComputeMode")),
        mig=None if mig is None else mig[0] == 1,
        mig_devices=_mig_devices(ask, handle) if mig and mig[0] == 1 else 0 if mig else None,
        processes=None if processes is None else len(processes),
        ecc=None if ecc is None else ecc[0] == 1,
        ecc_pending=None if ecc is None else ecc[1] == 1,
        ecc_corrected_volatile=get("ecc_corrected_volatile", "GetTotalEccErrors", 0, 0),
        ecc_uncorrected_volatile=get("ecc_uncorrected_volatile", "GetTotalEccErrors", 1, 0),
        ecc_corrected_aggregate=get("ecc_corrected_aggregate", "GetTotalEccErrors", 0, 1),
        ecc_uncorrected_aggregate=get("ecc_uncorrected_aggregate", "GetTotalEccErrors", 1, 1),
        retired_single_bit=_length(get("retired_single_bit", "GetRetiredPages", 0)),
        retired_double_bit=_length(get("retired_double_bit", "GetRetiredPages", 1)),
        retired_pending=_flag(get("retired_pending", "GetRetiredPagesPendingStatus")),
        remap_corrected=None if remapped is None else remapped[0],
        remap_uncorrected=None if remapped is None else remapped[1],
        remap_pending=None if remapped is None else remapped[2] == 1,
        remap_failed=None if remapped is None else remapped[3] == 1,
        clock_sm=get("clock_sm", "GetClockInfo", 1),
        clock_sm_max=get("clock_sm_max", "GetMaxClockInfo", 1),
        clock_sm_application=get("clock_sm_application", "GetApplicationsClock", 1),
        clock_memory=get("clock_memory", "GetClockInfo", 2),
        clock_memory_max=get("clock_memory_max", "GetMaxClockInfo", 2),
        throttle=reasons,
        temperature=get("temperature", "GetTemperature", 0),
        temperature_slowdown=get("temperature_slowdown", "GetTemperatureThreshold", 1),
        power=scaled("power", "GetPowerUsage"),
        power_limit=scaled("power_limit", "GetEnforcedPowerLimit"),
        power_default=scaled("power_default", "GetPowerManagementDefaultLimit"),
        power_max=None if bounds is None else bounds[1] / 1000,
        pcie_generation=get("pcie_generation", "GetCurrPcieLinkGeneration"),
        pcie_generation_max=get("pcie_generation_max", "GetMaxPcieLinkGeneration"),
        pcie_width=get("pcie_width", "GetCurrPcieLinkWidth"),
        pcie_width_max=get("pcie_width_max", "GetMaxPcieLinkWidth"),
        pcie_replays=get("pcie_replays", "GetPcieReplayCounter"),
        nvlinks=links_of(ask, handle),
        fabric_state=state,
        fabric_status=status,
        fabric_health=health,
    )


def bus_id(text: str | bytes | None) -> str | None:
    """Return NVML's address of a device as /sys writes it: 00000000:1B:00.0 is 0000:1b:00.0."""
    if text is None:
        return None
    words = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    domain, _, rest = words.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else words.lower()


def links_of(ask: Asker, handle: Any) -> tuple[NvLink, ...] | None:
    """Return a GPU's NVLinks; () where it has none."""
    links: list[NvLink] = []
    for index in range(MOST_LINKS):
        state, reason = ask.try_("nvmlDeviceGetNvLinkState", handle, index)
        if reason in ("not-supported", "invalid-argument"):
            break  # no such link
        if reason:
            ask.part.unknown("gpus.nvlinks", reason)
            return None if not links else tuple(links)
        links.append(_link(ask, handle, index, state == 1))
    return tuple(links)


def _link(ask: Asker, handle: Any, index: int, active: bool) -> NvLink:
    if not active:
        return NvLink(index=index, active=False)

    def get(fact: str, name: str, *arguments: object) -> Any:
        return ask(f"gpus.nvlinks.{fact}", f"nvmlDeviceGetNvLink{name}", handle, index, *arguments)

    # Replay, recovery and flit CRC errors of nvmlNvLinkErrorCounter_t.
    counted = [get("errors", "ErrorCounter", counter) for counter in (0, 1, 2)]
    known = [count for count in counted if count is not None]
    remote = get("remote", "RemoteDeviceType")
    place = bus_id(getattr(get("remote_pci", "RemotePciInfo"), "busId", None))
    return NvLink(
        index=index,
        active=True,
        version=GENERATIONS.get(get("version", "Version")),
        remote=REMOTES.get(remote),
        remote_pci=None if place == NOWHERE else place,
        errors=sum(known) if known else None,
    )


def fabric_of(ask: Asker, handle: Any) -> tuple[str | None, str | None, tuple[str, ...] | None]:
    """Return state, status and health of a GPU's place in the NVLink fabric.

    The newest form that both pynvml and the driver know is taken; the oldest has no health.
    """
    forms = (
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v3_t"),
        ("nvmlDeviceGetGpuFabricInfoV", "c_nvmlGpuFabricInfo_v2_t"),
        ("nvmlDeviceGetGpuFabricInfo", "c_nvmlGpuFabricInfo_t"),
    )
    reason = "pynvml is too old"
    for name, kind in forms:
        if not hasattr(ask.nvml, kind):
            continue
        info = getattr(ask.nvml, kind)()
        _, reason = ask.try_(name, handle, byref(info))
        if not reason:
            status = "success" if info.status == 0 else ask.codes.get(info.status, str(info.status))
            return STATES.get(info.state), status, health_of(getattr(info, "healthMask", None))
    ask.part.unknown("gpus.fabric_state", reason)
    return None, None, None


def health_of(mask: int | None) -> tuple[str, ...] | None:
    """Return the words of what a fabric's health mask says is bad. Pure."""
    if mask is None:
        return None
    read = ((mask >> at & (1 << width) - 1, words) for at, width, words in HEALTH)
    return tuple(words[value] for value, words in read if value in words)


def _reasons(ask: Asker, handle: Any) -> tuple[str, ...] | None:
    # Renamed in driver 535; older pynvml knows only the old name.
    mask, reason = ask.try_("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reason:
        mask = ask("gpus.throttle", "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    return None if mask is None else tuple(word for bit, word in REASONS.items() if mask & bit)


def _mig_devices(ask: Asker, handle: Any) -> int | None:
    most = ask("gpus.mig_devices", "nvmlDeviceGetMaxMigDeviceCount", handle)
    if most is None:
        return None
    tried = (ask.try_("nvmlDeviceGetMigDeviceHandleByIndex", handle, at) for at in range(most))
    return sum(not reason for _, reason in tried)


def _flag(value: int | None) -> bool | None:
    return None if value is None else value == 1


def _length(value: Any) -> int | None:
    return None if value is None else len(value)
