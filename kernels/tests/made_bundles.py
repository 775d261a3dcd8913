"""Makes bundles without a compiler, for what reads and loads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from made_cubins import maker_for

import gemm_allreduce
from gemm_allreduce.arguments import ARGUMENTS, POINTERS
from gemm_allreduce.bundle import Record
from gemm_allreduce.signature import sources_digest
from gemm_allreduce.variants import Tile, Variant

SMALL = Variant("one_shot", "fp16", "fp16", 1, Tile(16, 64, 128, 4, 4))
BULK = Variant("direct", "fp16", "fp16", 1, Tile(128, 256, 64, 4, 8, True))
LARGE = Variant("two_shot", "fp16", "fp16", 2, Tile(128, 128, 64, 3, 8))


def record_of(variant: Variant, arch: str, data: bytes) -> Record:
    return Record(
        name=variant.name,
        arch=arch,
        file=f"{arch}/{variant.name}.cubin",
        entry=f"gemm_allreduce_{variant.algorithm}",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        shared=65536,
        num_warps=variant.tile.num_warps,
        cooperative=True,
        scratch=1,
        registers=128,
        local_bytes=0,
        ptxas="12.4.131",
        key="0" * 64,
    )


def write_bundle(
    folder: Path,
    variants: Sequence[Variant] = (SMALL, LARGE),
    archs: Sequence[str] = ("sm_80", "sm_90"),
    cuda: str = "12.4",
    scratch: int = 1,
    **changes: Any,
) -> Path:
    """Write a bundle; ``changes`` are to the manifest."""
    records = []
    for arch in archs:
        for variant in variants:
            data = maker_for(variant, arch).cubin()
            record = replace(record_of(variant, arch, data), scratch=scratch)
            records.append(record)
            path = folder / record.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    manifest = {
        "schema": 2,
        "package": "gemm_allreduce",
        "version": gemm_allreduce.__version__,
        "sources": sources_digest(),
        "cuda": cuda,
        "triton": {"version": "3.4.0", "distribution": "3.4.0+dist.0a1b", "distributed": True},
        "arguments": list(ARGUMENTS),
        "divisible_by_16": list(POINTERS),
        "cubins": [asdict(record) for record in records],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder
