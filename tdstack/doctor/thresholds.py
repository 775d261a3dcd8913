"""thresholds.toml: what is expected of a host and of its GPUs, by their type."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Strict):
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


class Engines(_Strict):
    """The oldest version of an engine that passes GPUs through; storage that is slow."""

    docker: str
    podman: str
    slow_storage: tuple[str, ...]


class Clocks(_Strict):
    """NVML's reasons for a lower clock, by what they mean for the host."""

    failure: tuple[str, ...]
    warning: tuple[str, ...]


class Xids(_Strict):
    """Codes of faults: of the GPU or its node, and of programs."""

    failure: tuple[int, ...]
    application: tuple[int, ...]


class GpuType(_Strict):
    """What a type of GPU has. None where nothing is expected."""

    type: str
    match: str
    form: Literal["sxm", "pcie"]
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
    source: str = Field(min_length=1)

    @property
    def sxm(self) -> bool:
        """Return whether its NVLinks are soldered: always there."""
        return self.form == "sxm"


class Thresholds(_Strict):
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
    return Thresholds.model_validate(tomllib.loads(text))
