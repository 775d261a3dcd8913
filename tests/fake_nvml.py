"""A driver behind pynvml's own constants, errors and structures: GPUs of a made-up host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass(eq=False)
class FakeGpu:
    """One GPU. `errors` maps names of functions to the NVML code that they answer with."""

    name: str = "NVIDIA H100 80GB HBM3"
    bus: bytes = b"00000000:1B:00.0"
    capability: tuple[int, int] = (9, 0)
    links: int = 18
    remote: bytes = b"00000000:C3:00.0"
    fabric: tuple[int, int, int] = (3, 0, 0)  # state, status, health mask
    reasons: int = 1
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class FakeNvml:
    """Answers like pynvml; `start` is the code of nvmlInit, `lost` GPUs that give no handle."""

    gpus: list[FakeGpu]
    start: int = 0
    lost: dict[int, int] = field(default_factory=dict)
    p2p: dict[tuple[int, int, int], int] = field(default_factory=dict)
    lacking: frozenset[str] = frozenset()
    open: int = 0

    def __dir__(self) -> list[str]:
        return dir(pynvml)

    def __getattr__(self, name: str) -> Any:
        if name in self.lacking:
            raise AttributeError(name)
        if not name.startswith("nvmlDeviceGet"):
            return getattr(pynvml, name)
        answers: dict[str, Callable[..., Any]] = {**ANSWERS, **LINKS}
        short = name.removeprefix("nvmlDeviceGet")

        def call(handle: FakeGpu, *arguments: Any) -> Any:
            if code := handle.errors.get(short):
                raise pynvml.NVMLError(code)
            if short not in answers:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
            return answers[short](handle, *arguments)

        return call

    def nvmlInit(self) -> None:  # noqa: N802 (NVML's own names)
        if self.start:
            raise pynvml.NVMLError(self.start)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"550.54.14"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12040

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802
        if code := self.lost.get(index):
            raise pynvml.NVMLError(code)
        return self.gpus[index]

    def nvmlDeviceGetP2PStatus(self, a: FakeGpu, b: FakeGpu, kind: int) -> int:  # noqa: N802
        return self.p2p.get((self.gpus.index(a), self.gpus.index(b), kind), 0)

    def nvmlDeviceGetTopologyCommonAncestor(self, a: FakeGpu, b: FakeGpu) -> int:  # noqa: N802
        return 50


def _link_state(gpu: FakeGpu, link: int) -> int:
    if link >= gpu.links:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    return 1


def _fabric(gpu: FakeGpu, pointer: Any) -> int:
    info = pointer._obj
    info.state, info.status, mask = gpu.fabric
    if "healthMask" in dict(info._fields_):
        info.healthMask = mask
    return 0


ANSWERS: dict[str, Callable[..., Any]] = {
    "Name": lambda g: g.name,
    "UUID": lambda g: "GPU-0f0e0d0c-1111-2222-3333-444455556666",
    "CudaComputeCapability": lambda g: g.capability,
    "MemoryInfo": lambda g: SimpleNamespace(total=85520809984, used=1000),
    "BAR1MemoryInfo": lambda g: SimpleNamespace(bar1Total=137438953472),
    "PciInfo": lambda g: SimpleNamespace(busId=g.bus),
    "PersistenceMode": lambda g: 1,
    "ComputeMode": lambda g: 0,
    "MigMode": lambda g: [0, 0],
    "ComputeRunningProcesses": lambda g: [],
    "EccMode": lambda g: [1, 1],
    "TotalEccErrors": lambda g, kind, counter: 10 * kind + counter,
    "RemappedRows": lambda g: (1, 2, 0, 1),
    "ClockInfo": lambda g, kind: {1: 345, 2: 2619}[kind],
    "MaxClockInfo": lambda g, kind: {1: 1980, 2: 2619}[kind],
    "ApplicationsClock": lambda g, kind: 1980,
    "CurrentClocksEventReasons": lambda g: g.reasons,
    "CurrentClocksThrottleReasons": lambda g: g.reasons,
    "Temperature": lambda g, sensor: 31,
    "TemperatureThreshold": lambda g, kind: 87,
    "PowerUsage": lambda g: 69123,
    "EnforcedPowerLimit": lambda g: 700000,
    "PowerManagementDefaultLimit": lambda g: 700000,
    "PowerManagementLimitConstraints": lambda g: [200000, 700000],
    "CurrPcieLinkGeneration": lambda g: 5,
    "MaxPcieLinkGeneration": lambda g: 5,
    "CurrPcieLinkWidth": lambda g: 16,
    "MaxPcieLinkWidth": lambda g: 16,
    "PcieReplayCounter": lambda g: 0,
    "GpuFabricInfoV": _fabric,
    "GpuFabricInfo": _fabric,
}
LINKS: dict[str, Callable[..., Any]] = {
    "NvLinkState": _link_state,
    "NvLinkVersion": lambda g, link: 6,
    "NvLinkRemoteDeviceType": lambda g, link: 2,
    "NvLinkRemotePciInfo": lambda g, link: SimpleNamespace(busId=g.remote),
    "NvLinkErrorCounter": lambda g, link, counter: counter,
}
