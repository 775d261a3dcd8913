"""`invoke bench --tune`: a dispatch table for the GPUs of this host."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tdstack.bench import gpus, new_file, ranks_command
from tdstack.errors import CheckFailed, HostError


def tune(root: Path, *, out: str) -> dict[str, Any]:
    """Time candidates for the dispatch table on this host's GPUs; return what was written.

    Raises: UsageError as `new_file`; HostError without torch, Triton or a GPU; CheckFailed
    when no table was written.
    """
    file = new_file(out, "the table needs")
    missing = [name for name in ("torch", "triton") if not importlib.util.find_spec(name)]
    if missing:
        remedy = "run inside an image of tdstack, on a host with a GPU"
        got = f"not installed: {', '.join(missing)}"
        raise HostError("nothing can be tuned here", got=got, remedy=remedy)
    words = tune_command(gpus("tuning needs a GPU"), file)
    status = subprocess.run(words, cwd=root, stdout=sys.stderr, check=False).returncode
    if status or not file.exists():
        raise CheckFailed(
            "no table was written; what was said is above",
            where=str(file),
            got=f"exit code {status}",
        )
    table = tomllib.loads(file.read_text("utf-8"))
    return {"table": str(file), "rules": len(table["rule"]), "variable": "GEMM_AR_DISPATCH"}


def tune_command(count: int, file: Path) -> list[str]:
    """Return what tunes: a process per GPU, or on one GPU virtual ranks. Pure."""
    words, several = ranks_command(count)
    words += ["tune", "--ranks", "processes"] if several else ["tune", "--ranks", "virtual"]
    return [*words, *([] if several else ["--w", "1,2,4,8"]), "--out", str(file)]
