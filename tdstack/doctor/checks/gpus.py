"""The GPUs themselves: number, kind, modes, clocks."""

from __future__ import annotations

from collections.abc import Iterable

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.hardware import Gpu
from tdstack.doctor.host import Host, name_of, names_of, some
from tdstack.doctor.verdicts import arch


def there(host: Host) -> Answer | None:
    """Judge whether the driver shows every GPU of the PCIe bus."""
    seen, on_bus = host.facts.gpus, host.facts.pcie.nvidia_devices
    if on_bus == 0 and not seen and not host.wsl:
        return trouble("missing", "gpu-absent", "no NVIDIA GPU on the PCIe bus", "0 devices")
    if host.facts.driver.present is False:
        return None
    if seen is None:
        return unknown(host, "gpus", "the GPUs are not known")
    names = sorted({gpu.name or "of unknown type" for gpu in seen})
    evidence = f"{len(seen)} by the driver, {'?' if on_bus is None else on_bus} on the PCIe bus"
    lost = [gpu for gpu in seen if gpu.error]
    if lost:
        shown = some(f"GPU {name_of(gpu)}: {gpu.error}" for gpu in lost)
        return trouble("failure", "gpu-lost", "the driver gives no access to a GPU", shown)
    if not seen:
        return trouble("missing", "gpu-none", "the driver shows no GPU", evidence)
    if on_bus is not None and on_bus > len(seen) and not host.inside:
        what = f"{on_bus - len(seen)} of {on_bus} GPUs on the PCIe bus are not shown by the driver"
        return trouble("failure", "gpu-lost", what, evidence)
    return ok(f"{len(seen)} x {some(names)}", evidence)


def count(host: Host) -> Answer | None:
    """Judge whether a node has as many GPUs as its board."""
    if not host.gpus or host.inside:
        return None
    kind = host.kind(host.gpus[0])
    if not kind.counts:
        return None
    evidence = f"{len(host.gpus)} x {kind.type}; boards have {some(map(str, kind.counts))}"
    if len(host.gpus) not in kind.counts:
        return trouble("warning", "gpu-count", "GPUs of this node's board are missing", evidence)
    return ok("as many GPUs as a board has", evidence)


def alike(host: Host) -> Answer | None:
    """Judge whether all GPUs are of one type: the slowest sets the pace of all."""
    if not host.several:
        return None
    types: dict[str, list[Gpu]] = {}
    for gpu in host.gpus:
        types.setdefault(gpu.name or "of unknown type", []).append(gpu)
    if len(types) > 1:
        evidence = "; ".join(f"{names_of(group)}: {name}" for name, group in types.items())
        most = max(types.values(), key=len)
        what = "GPUs of several types"
        return trouble("warning", "gpu-mixed", what, evidence, gpus=names_of(most))
    return ok("all GPUs are of one type", next(iter(types)))


def architecture(host: Host) -> Answer | None:
    """Judge whether the line, or any line, has cubins for every GPU."""
    if not host.gpus:
        return None
    if not all(arch(gpu) for gpu in host.gpus):
        return unknown(host, "gpus.capability", "a GPU's compute capability is not known")
    lines = {host.cuda: host.lines[host.cuda]} if host.cuda else host.lines
    lacking = [
        gpu for gpu in host.gpus if not any(arch(gpu) in one.archs for one in lines.values())
    ]
    found = ", ".join(sorted({arch(gpu) for gpu in host.gpus}))
    evidence = f"GPUs: {found}; " + "; ".join(
        f"CUDA {c}: {' '.join(x.archs)}" for c, x in lines.items()
    )
    if lacking:
        what = f"no cubins for {some(sorted({arch(gpu) for gpu in lacking}))}"
        what += f" in CUDA {host.cuda}" if host.cuda else " in any CUDA line"
        served = [gpu for gpu in host.gpus if gpu not in lacking]
        if served:
            gpus = names_of(served)
            return trouble("warning", "no-cubin-some", what, evidence, gpus=gpus)
        return trouble("missing", "no-cubin", what, evidence)
    return ok(f"cubins for {found}", evidence if host.cuda else "")


def mig(host: Host) -> Answer | None:
    """Judge whether a GPU is split: its parts cannot reach other GPUs."""
    split = [gpu for gpu in host.gpus if gpu.mig]
    if not any(gpu.mig is not None for gpu in host.gpus):
        return None
    if not split:
        return ok("MIG is off")
    parts = ", ".join(f"GPU {name_of(g)}: {g.mig_devices or 0} instances" for g in split[:8])
    what = "MIG is on: its instances cannot reach each other's memory"
    return trouble("failure", "mig", what, parts, gpus=names_of(split))


def compute_mode(host: Host) -> Answer | None:
    """Judge whether several processes may use a GPU."""
    odd = [gpu for gpu in host.gpus if gpu.compute_mode not in (None, "default")]
    if not any(gpu.compute_mode for gpu in host.gpus):
        return None
    if not odd:
        return ok("compute mode is default")
    prohibited = any(gpu.compute_mode == "prohibited" for gpu in odd)
    evidence = some(f"GPU {name_of(gpu)}: {gpu.compute_mode}" for gpu in odd)
    what = "no program may use a GPU" if prohibited else "one process alone may use a GPU"
    severity: Severity = "failure" if prohibited else "warning"
    return trouble(severity, "compute-mode", what, evidence, gpus=names_of(odd))


def idle(host: Host) -> Answer | None:
    """Judge whether other programs use the GPUs."""
    known = [gpu for gpu in host.gpus if gpu.processes is not None]
    if not known:
        return None
    busy = [gpu for gpu in known if gpu.processes]
    if not busy:
        return ok("no program uses the GPUs")
    evidence = some(f"GPU {name_of(gpu)}: {gpu.processes}" for gpu in busy)
    what = "programs use GPUs: checks and measurements are slower now"
    return trouble("note", "gpu-busy", what, evidence)


def clocks(host: Host) -> Answer | None:
    """Judge the reasons why GPUs run below their clock right now."""
    known = [gpu for gpu in host.gpus if gpu.throttle is not None]
    if not known:
        return None
    kinds: tuple[tuple[Severity, tuple[str, ...], str], ...] = (
        ("failure", host.thresholds.clocks.failure, "throttled"),
        ("warning", host.thresholds.clocks.warning, "slowed"),
    )
    for severity, reasons, name in kinds:
        slow = [gpu for gpu in known if set(gpu.throttle or ()) & set(reasons)]
        if slow:
            evidence = some(_slowed(slow, reasons))
            what = f"{len(slow)} of {len(known)} GPUs are slowed down"
            return trouble(severity, name, what, evidence, gpus=names_of(slow))
    return ok("no GPU is slowed down")


def _slowed(gpus: Iterable[Gpu], reasons: Iterable[str]) -> Iterable[str]:
    for gpu in gpus:
        why = " ".join(sorted(set(gpu.throttle or ()) & set(reasons)))
        clock = f" at {gpu.clock_sm} of {gpu.clock_sm_max} MHz" if gpu.clock_sm else ""
        yield f"GPU {name_of(gpu)}: {why}{clock}"


def temperature(host: Host) -> Answer | None:
    """Judge whether a GPU is about to slow down for its heat."""
    margin = host.thresholds.limits.temperature_margin
    known = [
        (gpu, gpu.temperature, gpu.temperature_slowdown)
        for gpu in host.gpus
        if gpu.temperature is not None and gpu.temperature_slowdown is not None
    ]
    if not known:
        return None
    hot = [(gpu, now, slow) for gpu, now, slow in known if now > slow - margin]
    if hot:
        shown = some(
            f"GPU {name_of(g)}: {now:g} of {slow:g} degrees Celsius" for g, now, slow in hot
        )
        return trouble("warning", "gpu-hot", "GPUs are near the heat that slows them down", shown)
    return ok(
        "GPUs are cool enough", f"{max(now for _, now, _ in known):g} degrees Celsius at most"
    )


def power(host: Host) -> Answer | None:
    """Judge whether a GPU's power is limited below its default."""
    known = [
        (gpu, gpu.power_limit, gpu.power_default)
        for gpu in host.gpus
        if gpu.power_limit is not None and gpu.power_default is not None
    ]
    if not known:
        return None
    low = [(gpu, limit, default) for gpu, limit, default in known if limit < default - 0.5]
    if low:
        shown = some(f"GPU {name_of(g)}: {limit:g} of {default:g} W" for g, limit, default in low)
        names = names_of(gpu for gpu, _, _ in low)
        what = "power is limited below the default"
        return trouble("warning", "power-limit", what, shown, gpus=names, watts=f"{low[0][2]:g}")
    return ok("power limits are the default or more", f"{known[0][1]:g} W")


CHECKS = (
    Check("gpus", "there are GPUs, and the driver shows all of the PCIe bus", there),
    Check("gpu-count", "a node has as many GPUs as its board", count),
    Check("gpu-types", "all GPUs are of one type", alike),
    Check("gpu-architecture", "the CUDA line has cubins for every GPU", architecture),
    Check("mig", "MIG is off", mig),
    Check("compute-mode", "several processes may use a GPU", compute_mode),
    Check("gpu-processes", "no other program uses the GPUs", idle),
    Check("clocks", "no GPU is slowed down by heat, power or a setting", clocks),
    Check("temperature", "no GPU is near the heat that slows it down", temperature),
    Check("power-limit", "power is not limited below the GPU's default", power),
)
