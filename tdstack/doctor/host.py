"""What a check looks at: the facts, the thresholds of the host's GPUs, and the lock's lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tdstack.doctor.facts import Facts
from tdstack.doctor.hardware import Gpu, Pair, RdmaPort
from tdstack.doctor.thresholds import GpuType, Thresholds

SHOWN = 8


class Line(Protocol):
    """What the doctor needs to know of a CUDA line of the lock."""

    @property
    def driver_floor(self) -> str:
        """Return the oldest driver that runs it."""
        ...

    @property
    def archs(self) -> Sequence[str]:
        """Return the architectures that it has cubins for."""
        ...

    @property
    def experimental(self) -> str:
        """Return why it is experimental, or nothing."""
        ...


@dataclass(frozen=True)
class Host:
    """One host to judge. `cuda` is the CUDA line that was asked for, or None."""

    facts: Facts
    thresholds: Thresholds
    lines: Mapping[str, Line]
    cuda: str | None = None

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs that answer; none where they are not known."""
        return tuple(gpu for gpu in self.facts.gpus or () if not gpu.error)

    @property
    def several(self) -> bool:
        """Return whether GPUs have to reach each other here."""
        return len(self.gpus) > 1

    @property
    def inside(self) -> bool:
        """Return whether the facts are a container's: it may see a part of the host only."""
        return bool(self.facts.container.inside)

    @property
    def wsl(self) -> bool:
        """Return whether this is Linux under Windows, whose driver has no kernel module here."""
        return "microsoft" in (self.facts.os.kernel or "").lower()

    @property
    def ports(self) -> list[tuple[str, RdmaPort]]:
        """Return every port of every RDMA device that may be used, by a name as `mlx5_0/1`."""
        return [
            (f"{device.name or '?'}/{'?' if port.number is None else port.number}", port)
            for device in self.facts.rdma or ()
            if device.usable is not False
            for port in device.ports or ()
        ]

    @property
    def wired(self) -> bool:
        """Return whether GPUs of this host reach each other through NVSwitches or NVLink."""
        return any(link.active for gpu in self.gpus for link in gpu.nvlinks or ())

    @property
    def installed(self) -> bool:
        """Return whether the stack is here already, in a whole prefix: images are not needed."""
        return (self.facts.tdstack.where, self.facts.tdstack.state) == ("prefix", "whole")

    @property
    def switched(self) -> bool:
        """Return whether NVSwitches join the GPUs; some are seen by their GPUs alone."""
        joined = (gpu.fabric_state not in (None, "not-supported") for gpu in self.gpus)
        return bool(self.facts.fabric.switches) or any(joined)

    def kind(self, gpu: Gpu) -> GpuType:
        """Return what is expected of a GPU by its name."""
        return self.thresholds.of(gpu.name or "")

    def pair_names(self, pairs: Iterable[Pair]) -> str:
        """Return pairs of GPUs in short, such as `0-1, 0-2`."""
        return some(f"{_number(pair.a)}-{_number(pair.b)}" for pair in pairs)


def name_of(gpu: Gpu) -> str:
    """Return a GPU's number, or its place where it has none."""
    return _number(gpu.index) if gpu.index is not None else gpu.pci or "?"


def names_of(gpus: Iterable[Gpu]) -> str:
    """Return the numbers of GPUs, as nvidia-smi's option -i takes them."""
    return ",".join(name_of(gpu) for gpu in gpus)


def some(words: Iterable[str]) -> str:
    """Return words as a list in a sentence; of many, the first few and how many more."""
    held = list(words)
    more = f" and {len(held) - SHOWN} more" if len(held) > SHOWN else ""
    return ", ".join(held[:SHOWN]) + more


def older(version: str, floor: str) -> bool:
    """Return whether a version such as 535.104.05 is older than another."""
    return release(version) < release(floor)


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version for comparison. Any text will do; () for none."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version)[:4])


def gigabytes(size: float | None) -> str:
    """Render bytes as 10^9, 10^6 or 10^3 bytes."""
    if size is None:
        return "an unknown size"
    if size < 1e6:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
