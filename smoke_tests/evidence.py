"""What is around a rank: its environment without secrets, and how the GPUs are connected."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

PREFIXES: Final = (
    "CUDA_",
    "GEMM_AR_",
    "GLOO_",
    "NCCL_",
    "NVIDIA_",
    "NVSHMEM_",
    "OMP_",
    "PYTORCH_",
    "TORCH_",
    "TRITON_",
    "UCX_",
)
NAMES: Final = ("LD_LIBRARY_PATH", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
_SECRET: Final = ("AUTH", "CREDENTIAL", "KEY", "PASS", "SECRET", "TOKEN")
_TOPOLOGY_S: Final = 3.0


def shown(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that evidence may show: of the stack, and none that sounds secret."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(PREFIXES) or name in NAMES
        if not any(word in name for word in _SECRET)
    }


def topology(gpus: bool) -> str:
    """Return how the GPUs are connected; without one, the cores and the shared memory."""
    if gpus and (program := shutil.which("nvidia-smi")):
        try:
            done = subprocess.run(
                [program, "topo", "-m"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TOPOLOGY_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{_host()}; nvidia-smi topo -m: {error}"
        if done.returncode == 0 and done.stdout.strip():
            return f"{_host()}\n{done.stdout}"
        return f"{_host()}; nvidia-smi topo -m: exit code {done.returncode} {done.stderr.strip()}"
    return f"{_host()}; no nvidia-smi" if gpus else _host()


def _host() -> str:
    cores = len(os.sched_getaffinity(0))
    try:
        found = os.statvfs("/dev/shm")
    except OSError as error:
        return f"{cores} cores, no /dev/shm: {error}"
    size, free = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    return f"{cores} cores, /dev/shm {size / 1e6:.0f} MB, {free / 1e6:.0f} MB of it free"
