"""What the driver says of its GPUs through NVML, asked by nvidia-ml-py; nothing is set."""

from __future__ import annotations

from typing import Any

from tdstack.doctor.facts import Driver
from tdstack.doctor.hardware import Gpu, Pair
from tdstack.doctor.probes.nvml_asker import Asker
from tdstack.doctor.probes.nvml_gpu import gpu_of
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

# NVML's own codes (nvmlReturn_t) that say what state the driver is in.
STATES = {
    4: "no-permission",
    9: "not-loaded",
    12: "no-library",
    18: "mismatch",
}
LEVELS = {0: "internal", 10: "single", 20: "multiple", 30: "hostbridge", 40: "node", 50: "system"}
P2P = (
    *("ok", "chipset-not-supported", "gpu-not-supported", "ioh-topology-not-supported"),
    *("disabled-by-regkey", "not-supported", "unknown"),
)
PACKAGE = "the Python package nvidia-ml-py is not installed: pip install nvidia-ml-py"


def nvml(_: Tree) -> Part:
    """Ask through pynvml, or say why it cannot be asked."""
    try:
        import pynvml
    except ImportError:
        return Part(
            {"driver": Driver(nvml="no-package")}, {"gpus": PACKAGE, "driver.nvml": PACKAGE}
        )
    return look(pynvml)


def look(module: Any) -> Part:
    """Ask `module`, which is pynvml or stands for it, of the driver and every GPU."""
    part = Part()
    ask = Asker(module, part)
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        state = STATES.get(getattr(error, "value", -1), "error")
        part.sections["driver"] = Driver(nvml=state)
        part.unknown("gpus", f"NVML does not start: {error}")
        return part
    try:
        part.sections["driver"] = _driver(ask)
        count = ask("gpus", "nvmlDeviceGetCount")
        if count is not None:
            _devices(ask, part, count)
    finally:
        ask.try_("nvmlShutdown")
    return part


def _driver(ask: Asker) -> Driver:
    cuda = ask("driver.cuda", "nvmlSystemGetCudaDriverVersion_v2")
    return Driver(
        present=True,
        library=ask("driver.library", "nvmlSystemGetDriverVersion"),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        nvml="ok",
    )


def _devices(ask: Asker, part: Part, count: int) -> None:
    handles: dict[int, Any] = {}
    gpus = []
    for index in range(count):
        handle, reason = ask.try_("nvmlDeviceGetHandleByIndex", index)
        if reason:
            part.unknown(f"gpus.{index}", reason)
            gpus.append(Gpu(index=index, error=reason))
            continue
        handles[index] = handle
        gpus.append(gpu_of(ask, index, handle))
    part.sections["gpus@nvml"] = tuple(gpus)
    part.sections["pairs"] = tuple(
        _pair(ask, (a, handles[a]), (b, handles[b])) for a in handles for b in handles if a != b
    )


def _pair(ask: Asker, first: tuple[int, Any], second: tuple[int, Any]) -> Pair:
    def status(name: str, index: int) -> str | None:
        value = ask(f"pairs.{name}", "nvmlDeviceGetP2PStatus", first[1], second[1], index)
        return P2P[value] if value is not None and 0 <= value < len(P2P) else None

    level = ask("pairs.topology", "nvmlDeviceGetTopologyCommonAncestor", first[1], second[1])
    # The order of nvmlGpuP2PCapsIndex_t: read, write, NVLink, atomics.
    return Pair(
        a=first[0],
        b=second[0],
        read=status("read", 0),
        write=status("write", 1),
        nvlink=status("nvlink", 2),
        atomics=status("atomics", 3),
        topology=LEVELS.get(level),
    )
