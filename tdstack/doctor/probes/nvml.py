"""What the driver says of its GPUs through NVML, asked by nvidia-ml-py; nothing is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tdstack.doctor.facts import Driver
from tdstack.doctor.hardware import Gpu, Pair
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


@dataclass
class Asker:
    """Calls functions of pynvml by name; one that fails answers None and leaves its reason."""

    nvml: Any
    part: Part
    codes: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in dir(self.nvml):
            if name.startswith("NVML_ERROR_"):
                word = name.removeprefix("NVML_ERROR_").lower().replace("_", "-")
                self.codes.setdefault(getattr(self.nvml, name), word)

    def __call__(self, path: str, name: str, *arguments: object) -> Any:
        """Return what the function `name` answers; `path` is the fact that it is for."""
        answer, reason = self.try_(name, *arguments)
        if reason:
            self.part.unknown(path, reason)
        return answer

    def try_(self, name: str, *arguments: object) -> tuple[Any, str]:
        """Return the answer, or None and the reason, such as `not-supported`."""
        try:
            answer = getattr(self.nvml, name)(*arguments)
            return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer, ""
        except self.nvml.NVMLError as error:
            return None, self.word(error)
        except Exception as error:  # an older pynvml lacks a function; a newer takes other words
            return None, f"{type(error).__name__}: {error}"

    def word(self, error: Any) -> str:
        """Return the name of an NVML error, such as `gpu-is-lost`."""
        return self.codes.get(getattr(error, "value", -1), str(error))


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
