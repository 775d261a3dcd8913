"""A few kernels, really compiled: once per store, then they come from its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdstack.compile_verb import compile_verb
from tdstack.compiler.report import CompileReport
from tdstack.fork.model import ANYWHERE
from tdstack.stack import Request
from tdstack.workspace import Workspace

ARCHS = ("sm_89", "sm_90")
# What dispatch chooses for SHAPE, and the same of another type; both architectures have them.
VARIANTS = (
    "two_shot_bf16_w4_split_64x128x64_stages3_warps4",
    "two_shot_fp16_w4_split_64x128x64_stages3_warps4",
)
SHAPE = "64,8192,1024,4,sm_89"
STOCK = Request("12.4", "stock", archs=ARCHS)


def compile_few(out: Path, request: Request = STOCK, **changes: Any) -> CompileReport:
    """Compile VARIANTS for the architectures of `request` into `out`.

    By default in the user's store; `changes` replaces `workspace` or `source`.
    """
    options: dict[str, Any] = {"source": ANYWHERE, "workspace": Workspace.here(), **changes}
    report = compile_verb(
        options["workspace"],
        request,
        options["source"],
        out=out,
        jobs=0,
        as_json=False,
        dry=False,
        variants=VARIANTS,
    )
    assert report is not None
    assert not list(options["workspace"].store.work().glob("compile-*"))
    return report


def wheels_of(report: CompileReport) -> tuple[Path, Path]:
    """Return the wheels of the package and of its cubins."""
    kernels, cubins = (Path(str(wheel["path"])) for wheel in report.wheels)
    return kernels, cubins
