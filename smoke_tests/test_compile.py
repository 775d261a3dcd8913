"""The tier compile: the kernels are there as machine code, or can be compiled. Needs no GPU.

What is checked of each: hash, architecture, arguments, registers, shared and local memory (spilled
registers), the width of its accesses to a heap, and the size of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gemm_allreduce.dispatch import ARCHS, reachable_variants
from smoke_tests.programs import compiler, report_of, run
from smoke_tests.recording import Found
from smoke_tests.tiers import Host, host_archs

TIER = "compile"
NO_GPU_ARCH = "sm_90"


def test_every_cubin_is_whole_and_keeps_its_limits(host: Host, found: Found) -> None:
    """Those of the installed bundles, or of the named one."""
    if not host.cubins:
        pytest.skip("no bundle of cubins: kernels are compiled at their first call")
    found.detail = checked([])


def test_one_kernel_of_each_kind_compiles_and_keeps_its_limits(
    host: Host, found: Found, tmp_path: Path
) -> None:
    """Each algorithm with each type of operand, for this host's GPUs."""
    if host.cubins:
        pytest.skip("there is a bundle of cubins")
    archs = [arch for arch in host_archs() if arch in ARCHS] or [NO_GPU_ARCH]
    said = []
    for arch in archs:
        names = one_of_each_kind(arch)
        out = tmp_path / arch
        words = ["-m", "gemm_allreduce.compile", "--arch", arch, "--out", str(out), "--json"]
        words += [word for name in names for word in ("--variant", name)]
        done = run(compiler(words))
        assert done.returncode == 0, done.stderr.strip()[-2000:]
        assert report_of(done)["compiled"] == len(names)
        said.append(f"{checked(['--dir', str(out)])}: {', '.join(names)}")
    found.detail = "; ".join(said)


def one_of_each_kind(arch: str) -> list[str]:
    """Return names of kernels that dispatch chooses: each algorithm with each operand. Pure.

    bf16 stands for fp16 too, whose code differs in one conversion.
    """
    chosen: dict[tuple[str, str], str] = {}
    for variant in reachable_variants(arch):
        if variant.dtype == "bf16":
            chosen.setdefault((variant.algorithm, variant.operand), variant.name)
    return list(chosen.values())


def checked(words: list[str]) -> str:
    """Check bundles; return a line about them. Raises: AssertionError with what does not hold."""
    report = report_of(run(["-m", "gemm_allreduce.check", "--json", *words]))
    wrong = [_line(finding) for finding in report["findings"]]
    assert not wrong, "\n".join(wrong)
    assert report["exit_code"] == 0
    return "; ".join(
        f"{arch['arch']}: {arch['cubins']} cubins, at most {arch['registers']} registers and "
        f"{arch['local_bytes']} local bytes, ptxas {', '.join(arch['ptxas'])}"
        for bundle in report["bundles"]
        for arch in bundle["archs"]
    )


def _line(finding: Mapping[str, Any]) -> str:
    where = " ".join(filter(None, (finding["arch"], finding["variant"])))
    return f"{where}: {finding['what']}: expected {finding['expected']}, got {finding['got']}"
