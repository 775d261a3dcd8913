"""NVIDIA's driver: is it there, in order, and new enough?"""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.host import Host, names_of, older, release
from tdstack.doctor.verdicts import floors_met, oldest_floor


def present(host: Host) -> Answer | None:
    """Judge whether the driver answers."""
    driver = host.facts.driver
    said = driver.nvml
    evidence = f"kernel module {driver.version or 'none'}, library {driver.library or 'none'}"
    floor = oldest_floor(host)
    if said == "not-loaded" or (driver.present is False and _library(host) and not host.inside):
        what = "the driver is installed, but its kernel module is not loaded"
        return trouble("missing", "driver-not-loaded", what, evidence, alone=True)
    if driver.present is False and host.inside:
        what = "this container sees no NVIDIA driver"
        return trouble("missing", "driver-inside", what, evidence, alone=True)
    if driver.present is False:
        what = "no NVIDIA driver on this host"
        return trouble("missing", "driver-missing", what, evidence, alone=True, floor=floor)
    if said == "ok":
        return ok(f"driver {driver.version or driver.library or 'of unknown version'}", evidence)
    if said == "mismatch":
        what = "the driver's library is not of the loaded kernel module's version"
        return trouble("failure", "driver-mismatch", what, evidence)
    if said == "no-library":
        what = "the kernel module is there without the driver's library libnvidia-ml.so.1"
        return trouble("missing", "driver-no-library", what, evidence)
    if said == "no-permission":
        what = "this user may not open the driver's devices"
        return trouble("failure", "driver-permission", what, f"{evidence}; /dev/nvidia*")
    if said == "no-package":
        what = "the driver could not be asked: nvidia-ml-py is not installed"
        return trouble("unknown", "driver-not-asked", what, evidence)
    if said in ("error", "timeout"):
        what = f"the driver {'answers with an error' if said == 'error' else 'does not answer'}"
        return trouble("failure", "driver-error", what, host.facts.reason("gpus") or evidence)
    return unknown(host, "driver.present", "whether there is a driver is not known")


def _library(host: Host) -> bool:
    return bool((host.facts.libraries or {}).get("libnvidia-ml.so.1"))


def floor(host: Host) -> Answer | None:
    """Judge the driver's version against the floor of the asked line, or of any."""
    version = host.facts.driver.version or host.facts.driver.library
    if host.facts.driver.present is False:
        return None
    if not version or not release(version):
        return unknown(host, "driver.version", "the driver's version is not known")
    floors = ", ".join(f"{name} from {line.driver_floor}" for name, line in host.lines.items())
    evidence = f"driver {version}; CUDA {floors}"
    if host.cuda:
        needed = host.lines[host.cuda].driver_floor
        if not older(version, needed):
            return ok(f"driver {version} runs CUDA {host.cuda}", evidence)
        what = f"driver {version} is too old for CUDA {host.cuda}"
        return trouble("missing", "driver-old", what, evidence, floor=needed)
    met = floors_met(host, version)
    if met:
        return ok(f"driver {version} is new enough for CUDA {', '.join(met)}", evidence)
    what = f"driver {version} is too old for every CUDA line"
    return trouble("missing", "driver-old", what, evidence, floor=oldest_floor(host))


def modules(host: Host) -> Answer | None:
    """Judge whether the module for unified memory, which CUDA needs, is loaded."""
    if not host.facts.driver.present or host.wsl:
        return None
    loaded = host.facts.module("nvidia_uvm")
    if loaded is None:
        return unknown(host, "modules", "loaded kernel modules are not known")
    if not loaded:
        what = "the kernel module nvidia_uvm, which CUDA needs, is not loaded"
        return trouble("failure", "driver-uvm", what, "nvidia_uvm is not in /proc/modules")
    return ok("nvidia and nvidia_uvm are loaded")


def open_modules(host: Host) -> Answer | None:
    """Judge whether the kernel modules are of the kind that these GPUs need."""
    needing = [gpu for gpu in host.gpus if host.kind(gpu).open_modules]
    kind = host.facts.driver.kind
    if not needing or host.wsl:
        return None
    if kind is None:
        return unknown(host, "driver.kind", "whether the kernel modules are the open ones")
    evidence = f"{kind} modules; GPUs {names_of(needing)} are {needing[0].name}"
    if kind != "open":
        what = "these GPUs need the driver's open kernel modules"
        return trouble("failure", "driver-closed", what, evidence)
    return ok("the kernel modules are the open ones", evidence)


def persistence(host: Host) -> Answer | None:
    """Judge whether the driver stays loaded between two programs."""
    known = [gpu for gpu in host.gpus if gpu.persistence is not None]
    if not known or host.wsl:
        return None
    off = [gpu for gpu in known if not gpu.persistence]
    if not off:
        return ok("persistence mode is on")
    what = "persistence mode is off: GPUs are set up anew for every program"
    return trouble("warning", "persistence", what, f"off on GPUs {names_of(off)}")


CHECKS = (
    Check("driver", "NVIDIA's driver is installed, loaded and answers", present),
    Check("driver-floor", "it is as new as the CUDA line asks (`versions.lock`)", floor),
    Check("driver-modules", "the kernel module `nvidia_uvm` is loaded", modules),
    Check("driver-open", "GPUs that need the open kernel modules have them", open_modules),
    Check("persistence", "persistence mode is on", persistence),
)
