"""Writes bundles; bundle.py reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__
from .arguments import ARGUMENTS, POINTERS
from .bundle import MANIFEST, SCHEMA
from .cache import replace_file
from .compiler import Cubin
from .signature import sources_digest
from .toolchain import Triton


def manifest_of(cuda: str, triton: Triton, cubins: Sequence[Cubin]) -> dict[str, Any]:
    """Return the manifest of some cubins, in their order. `cuda`: the CUDA line, or empty."""
    return {
        "schema": SCHEMA,
        "package": "gemm_allreduce",
        "version": __version__,
        "sources": sources_digest(),
        "cuda": cuda,
        "triton": {
            "version": triton.version,
            "distribution": triton.distribution,
            "distributed": triton.distributed,
        },
        "arguments": list(ARGUMENTS),
        "divisible_by_16": list(POINTERS),
        "cubins": [asdict(cubin.record) for cubin in cubins],
    }


def write_bundle(out: Path, cuda: str, triton: Triton, cubins: Sequence[Cubin]) -> None:
    """Write the cubins, then the manifest that names them, each file in one step.

    Files that an earlier run left in ``out`` under other names stay; the manifest decides. Its own
    manifest goes first: whoever stops half-way leaves no bundle, not a wrong one.

    Raises:
        OSError: ``out`` can't be written.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for cubin in cubins:
        replace_file(out / cubin.record.file, cubin.data)
    text = json.dumps(manifest_of(cuda, triton, cubins), indent=1) + "\n"
    replace_file(out / MANIFEST, text.encode())
