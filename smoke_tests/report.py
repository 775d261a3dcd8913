"""The verdict as data: device, versions, and what every check said."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1


class Report:
    """Collects outcomes; written as one JSON file."""

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._checks: list[dict[str, Any]] = []

    def add(self, name: str, outcome: str, seconds: float, detail: str) -> None:
        """Add what became of one check."""
        row = {"name": name, "outcome": outcome, "seconds": round(seconds, 2), "detail": detail}
        self._checks.append(row)

    def write(self, path: Path) -> None:
        """Write the file in one step."""
        report = {
            "schema": SCHEMA,
            "tier": self._tier,
            "ok": bool(self._checks) and all(c["outcome"] == "passed" for c in self._checks),
            "machine": machine(),
            "checks": self._checks,
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(path)


def machine() -> dict[str, Any]:
    """Return devices and versions of this host."""
    import torch

    import gemm_allreduce

    cuda = torch.cuda.is_available()
    return {
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "triton": _triton(),
        "kernels": _kernels() if cuda else None,
        "nvshmem": _nvshmem() if cuda else None,
        "gemm_allreduce": gemm_allreduce.__version__,
    }


def _triton() -> str | None:
    """Not by an import: Triton-distributed's needs a GPU's driver."""
    for name in ("triton", "triton-dist"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _kernels() -> str:
    import torch

    from gemm_allreduce.bundle import CubinError
    from gemm_allreduce.kernels import choose_kernels

    major, minor = torch.cuda.get_device_capability(0)
    try:
        return choose_kernels("auto", f"sm_{major}{minor}", 0).describe()
    except CubinError as error:
        return f"none: {error}"


def _nvshmem() -> str | None:
    try:
        import nvshmem.core

        found = nvshmem.core.get_version()
    except Exception:  # not installed, or without its library
        return None
    return f"{found.libnvshmem_version}, nvshmem4py {found.nvshmem4py_version}"
