"""The variables that the image sets, for a version in a prefix. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tdstack.plan import PREFIX, Plan
from tdstack.verify.triton.constraints import constraints_path, for_installers

# The layers' recipes set these for a container; a host, its user or its driver has its own.
OF_A_CONTAINER = frozenset(
    {
        "PATH",  # prepended to instead
        *("HOME", "LANG", "PYTHONUNBUFFERED"),
        # Only the NVIDIA container runtime reads them.
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_REQUIRE_CUDA"),
    }
)
CACHE = "/var/cache/tdstack/"


@dataclass(frozen=True)
class RunTime:
    """Variables with their values, and those that name a folder below the user's cache folder."""

    fixed: Mapping[str, str]
    cached: Mapping[str, str]


def run_time(plan: Plan, version: Path) -> RunTime:
    """Return what the image of `plan` sets, for an environment at `version`."""
    fixed: dict[str, str] = {}
    cached: dict[str, str] = {}
    for name, value in plan.final.env.items():
        if name in OF_A_CONTAINER:
            continue
        if value.startswith(CACHE):
            cached[name] = value.removeprefix(CACHE)
        elif name == "UV_CONSTRAINT":
            fixed[name] = for_installers(constraints_path(version))
        else:
            fixed[name] = value.replace(f"/{PREFIX}", str(version))
    return RunTime(fixed, cached)
