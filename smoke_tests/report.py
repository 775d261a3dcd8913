"""What this host is: devices and versions, as the first line of a report has them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def machine() -> dict[str, Any]:
    """Return devices and versions of this host; null for what is not there, or cannot be had."""
    import importlib.util

    found: dict[str, Any] = {
        "devices": [],
        "driver": _driver(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "cuda": None,
        "triton": installed_version("triton", "triton-dist"),
        "kernels": None,
        "nvshmem": None,
        "gemm_allreduce": _or_none(_own_version),
    }
    if found["driver"] is None or not importlib.util.find_spec("torch"):
        return found
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(count)]
        found["cuda"] = torch.version.cuda
        found["kernels"] = _or_none(_kernels)
        found["nvshmem"] = _or_none(_nvshmem)
    return found


def _or_none(ask: Callable[[], str]) -> str | None:
    try:
        return ask()
    except Exception:  # not installed, or broken: the checks say more
        return None


def installed_version(*names: str) -> str | None:
    """Return the version of the first of these distributions that is installed.

    Not by an import: Triton-distributed's needs a GPU's driver.
    """
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _own_version() -> str:
    import gemm_allreduce

    return str(gemm_allreduce.__version__)


def _driver() -> str | None:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return "unknown" if os.path.exists("/dev/dxg") else None
    return next((w for w in words if w[:1].isdigit() and "." in w), "unknown")


def _kernels() -> str:
    import torch

    from gemm_allreduce.bundle import CubinError
    from gemm_allreduce.kernels import choose_kernels

    major, minor = torch.cuda.get_device_capability(0)
    try:
        return choose_kernels("auto", f"sm_{major}{minor}", 0).describe()
    except CubinError as error:
        return f"none: {error}"


def _nvshmem() -> str:
    import nvshmem.core

    found = nvshmem.core.get_version()
    return f"{found.libnvshmem_version}, nvshmem4py {found.nvshmem4py_version}"
