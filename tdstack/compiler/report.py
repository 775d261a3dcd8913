"""What `invoke compile` made, as data and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tdstack.console import megabytes, say, table
from tdstack.errors import CheckFailed

SHOWN = 12


@dataclass(frozen=True)
class CompileReport:
    """What was compiled, and the files that came of it.

    `compiled` and `reused` count cubins; `archs` and `findings` are those of the kernels' own
    checks; `bundle` is a folder; of `wheels` each has path, sha256 and size in bytes.
    """

    cuda: str
    triton: str
    version: str
    ptxas: str
    archs: tuple[Mapping[str, Any], ...]
    findings: tuple[Mapping[str, Any], ...]
    compiled: int
    reused: int
    seconds: float
    bundle: str
    wheels: tuple[Mapping[str, object], ...]

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data (docs/compile.md)."""
        return {"schema": 1, **asdict(self)}


def show(report: CompileReport) -> None:
    """Print what was compiled, for people."""
    say(
        f"CUDA {report.cuda}, Triton {report.triton}, ptxas {report.ptxas}, "
        f"gemm-allreduce {report.version}"
    )
    rows = [
        [
            arch["arch"],
            f"{arch['cubins']} of {arch['variants']}",
            megabytes(arch["bytes"]),
            megabytes(arch["budget"]),
            str(arch["registers"]),
            f"{arch['local_bytes']} B",
            f"{len(arch['findings'])} findings" if arch["findings"] else "ok",
        ]
        for arch in report.archs
    ]
    columns = ["arch", "cubins", "size", "budget", "most registers", "most spilled", "checks"]
    table("", columns, rows)
    say(f"{report.compiled} compiled, {report.reused} reused, {report.seconds:.1f} s")
    for place in (report.bundle, *(str(wheel["path"]) for wheel in report.wheels)):
        say(f"  {place}")


def require_checked(report: CompileReport) -> None:
    """Refuse a bundle whose checks failed.

    Raises: CheckFailed with the findings.
    """
    if not report.findings:
        return
    raise CheckFailed(
        f"the kernels were compiled, and {len(report.findings)} checks of them failed",
        where=report.bundle,
        got="\n".join(_told(finding) for finding in report.findings[:SHOWN]),
        remedy="the files are there; tdstack-verify will find the same in them",
        details=report.as_dict(),
    )


def _told(finding: Mapping[str, Any]) -> str:
    what = "{arch} {variant}: {what}: expected {expected}, got {got}"
    return what.format_map(finding).lstrip(" :")
