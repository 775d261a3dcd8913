"""thresholds.toml: what is expected of a host and of its GPUs, by their type.

Standard library only: where an image or a login node is judged, there is nothing else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """The host's. Sizes in bytes, times in seconds, `temperature_margin` in degrees Celsius."""

    shm_bytes: int
    tmp_bytes: int
    memlock_bytes: int
    nofile: int
    glibc: str
    cache_bytes: int
    engine_bytes: int
    clock_offset_s: float
    temperature_margin: float
    nvlink_errors: int
    xid_age_s: float


@dataclass(frozen=True)
class Engines:
    """The oldest version of an engine that passes GPUs through; storage that is slow."""

    docker: str
    podman: str
    slow_storage: tuple[str, ...]


@dataclass(frozen=True)
class Clocks:
    """NVML's reasons for a lower clock, by what they mean for the host."""

    failure: tuple[str, ...]
    warning: tuple[str, ...]


@dataclass(frozen=True)
class Xids:
    """Codes of faults: of the GPU or its node, and of programs."""

    failure: tuple[int, ...]
    application: tuple[int, ...]


@dataclass(frozen=True)
class GpuType:
    """What a type of GPU has. None where nothing is expected."""

    type: str
    match: str
    form: Literal["sxm", "pcie"]
    source: str
    counts: tuple[int, ...] = ()
    nvlinks: int | None = None
    nvlink_version: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvswitches: int | None = None
    fabric: bool = False
    multicast: bool = False
    ecc: bool = False
    open_modules: bool = False

    @property
    def sxm(self) -> bool:
        """Return whether its NVLinks are soldered: always there."""
        return self.form == "sxm"


@dataclass(frozen=True)
class Thresholds:
    """The whole file."""

    limits: Limits
    engines: Engines
    clocks: Clocks
    xid: Xids
    gpu: tuple[GpuType, ...]

    def of(self, name: str) -> GpuType:
        """Return the entry of a GPU by NVML's name of it; the last one fits all."""
        return next((one for one in self.gpu if re.search(one.match, name)), self.gpu[-1])


@cache
def load_thresholds() -> Thresholds:
    """Read thresholds.toml, which is part of the package."""
    text = Path(__file__).with_name("thresholds.toml").read_text(encoding="utf-8")
    return thresholds_of(tomllib.loads(text))


def thresholds_of(data: Mapping[str, Any]) -> Thresholds:
    """Return the thresholds of a parsed file. Pure.

    Raises: TypeError naming a key that is missing or that nobody knows.
    """
    sections = {"limits": Limits, "engines": Engines, "clocks": Clocks, "xid": Xids}
    made: dict[str, Any] = {
        name: _made(sections[name], held) if name in sections else held
        for name, held in data.items()
    }
    if "gpu" in made:
        made["gpu"] = tuple(_made(GpuType, entry) for entry in made["gpu"])
    return Thresholds(**made)


def _made(kind: type[T], table: Mapping[str, Any]) -> T:
    held = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}
    return kind(**held)
