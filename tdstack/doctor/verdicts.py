"""Which CUDA lines of the lock a host can run, and why not the others. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tdstack.doctor.hardware import Gpu
from tdstack.doctor.host import Host, name_of, older, release, some


@dataclass(frozen=True)
class Verdict:
    """Whether a host runs a CUDA line; None where facts for that are missing."""

    runs: bool | None
    why: str

    def as_dict(self) -> dict[str, object]:
        """Return the verdict as JSON-ready data."""
        return {"runs": self.runs, "why": self.why}


def verdict(host: Host, cuda: str) -> Verdict:
    """Judge one line: the driver's version, and cubins for the GPUs, or some of them.

    Raises: KeyError for a line that the lock does not have.
    """
    line = host.lines[cuda]
    driver = host.facts.driver
    version = driver.version or driver.library or ""
    note = f"; experimental: {line.experimental}" if line.experimental else ""
    if driver.present is False:
        return Verdict(False, f"no driver; CUDA {cuda} needs {line.driver_floor} or newer{note}")
    if release(version) and older(version, line.driver_floor):
        return Verdict(False, f"driver {version} is older than {line.driver_floor}{note}")
    if host.facts.gpus == ():
        return Verdict(False, f"no GPU{note}")
    without = [gpu for gpu in host.gpus if arch(gpu) and arch(gpu) not in line.archs]
    shown = f"no cubins for {some(f'GPU {name_of(gpu)} ({arch(gpu)})' for gpu in without)}"
    if without and len(without) == len(host.gpus):
        return Verdict(False, f"{shown}{note}")
    if not release(version) or not host.gpus or any(not arch(gpu) for gpu in host.gpus):
        return Verdict(None, f"driver or GPUs are not known{note}")
    archs = ", ".join(sorted({arch(gpu) for gpu in host.gpus} & set(line.archs)))
    but = f"; {shown}" if without else ""
    return Verdict(True, f"driver {version} >= {line.driver_floor}, cubins for {archs}{but}{note}")


def verdicts(host: Host) -> dict[str, Verdict]:
    """Judge every line of the lock, oldest first."""
    return {cuda: verdict(host, cuda) for cuda in sorted(host.lines, key=release)}


def arch(gpu: Gpu) -> str:
    """Return a GPU's architecture as the lock names it, such as sm_90; empty if not known."""
    numbers = release(gpu.capability or "")
    return f"sm_{numbers[0]}{numbers[1]}" if len(numbers) > 1 else ""


def oldest_floor(host: Host) -> str:
    """Return the floor of the asked line, or the lowest of all."""
    if host.cuda:
        return host.lines[host.cuda].driver_floor
    return min((line.driver_floor for line in host.lines.values()), key=release)


def floors_met(host: Host, version: str) -> list[str]:
    """Return the lines whose floor a driver's version meets."""
    ordered = sorted(host.lines, key=release)
    return [cuda for cuda in ordered if not older(version, host.lines[cuda].driver_floor)]
