"""The environment of processes that import SGLang on this host's CPU."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from locked_tritons import installed

MODELS = {"qwen2", "qwen3", "llama"}
_HERE = Path(__file__).resolve().parent
_KERNELS = _HERE.parent.parent


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a process; `folder` gets what installing our wheel would leave.

    Raises: as `locked_tritons.installed`.
    """
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    sglang = installed(f"sglang/sglang-0.5.23-{python}", _HERE / "requirements.lock")
    _write_metadata(folder)
    path = [_HERE / "site", _HERE, folder, _KERNELS / "src", sglang]
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRITON_", "SGL", "GEMM_AR_", "PYTHONPATH"))
    }
    cpus = sorted(os.sched_getaffinity(0))
    # SGLang imports every model that it has, which takes longer than all the cases.
    others = {path.stem for path in (sglang / "sglang/srt/models").iterdir()} - MODELS
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_DISABLED_MODEL_ARCHS": ",".join(sorted(others)),
        "SGLANG_CPU_OMP_THREADS_BIND": f"{cpus[0]}|{cpus[-1]}",
        "SGL_USE_TP_OVERLAP": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "TRITON_INTERPRET": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _write_metadata(folder: Path) -> None:
    """Write the entry points that pyproject.toml gives the wheel, as an installer would."""
    project = tomllib.loads((_KERNELS / "pyproject.toml").read_text())["project"]
    info = folder / "gemm_allreduce-0.dist-info"
    info.mkdir(parents=True)
    name = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: 0\n"
    (info / "METADATA").write_text(name)
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
