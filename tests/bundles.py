"""Bundles of cubins for tests: real in all but the bytes of the cubins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_bundle(
    folder: Path,
    cuda: str = "12.4",
    version: str = "0.3.0",
    archs: Sequence[str] = ("sm_80", "sm_90"),
    **changes: Any,
) -> Path:
    """Write a bundle of two files an arch; `changes` replaces entries of the manifest."""
    cubins = []
    for arch in archs:
        for name in ("one_shot_bf16_w8", "two_shot_bf16_w8"):
            data = f"{arch} {name} {cuda}".encode() * 50
            path = folder / arch / f"{name}.cubin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            cubins.append(
                {
                    "name": name,
                    "arch": arch,
                    "file": f"{arch}/{name}.cubin",
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "registers": 128,
                }
            )
    manifest = {
        "schema": 2,
        "package": "gemm_allreduce",
        "version": version,
        "sources": "0" * 64,
        "cuda": cuda,
        "cubins": cubins,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder
