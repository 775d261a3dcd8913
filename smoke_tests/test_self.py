"""Faults of environments, of cubins and of the ranks themselves: each is made, and must be found.

Every test first sees that the same thing without its fault raises no alarm.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from smoke_tests import broken
from smoke_tests.leash import is_gone
from smoke_tests.outcome import Outcome, worst
from smoke_tests.pool import Pool
from smoke_tests.programs import compiler, report_of, run, verified
from smoke_tests.recording import Found
from smoke_tests.steps import Plant
from smoke_tests.tiers import Host, lacking

TIER = "import"
LIMIT_S = 1.0
END_S = 10.0
"""Within which all must be over, once a limit is."""


def _failing(prefix: Path) -> dict[str, str]:
    findings: list[Mapping[str, Any]] = verified(prefix)["findings"]
    return {str(f["check"]): str(f["detail"]) for f in findings if not f["ok"]}


def test_two_nvshmems_in_one_environment_are_found(tmp_path: Path, found: Found) -> None:
    """They own the same files: the last one installed wins, and the other's users break."""
    site = broken.environment(tmp_path / "env")
    broken.install(site, "nvidia-nvshmem-cu12", "3.6.5", broken.nvshmem("3.6.5"))
    assert "nvshmem-wheel" not in _failing(tmp_path / "env")
    broken.install(site, "nvidia-nvshmem-cu13", "3.4.5", broken.nvshmem("3.4.5"))
    said = _failing(tmp_path / "env")
    assert "nvidia-nvshmem-cu13 3.4.5" in said["nvshmem-wheel"], said
    found.detail = said["nvshmem-wheel"]


def test_an_nvshmem_of_two_versions_is_found(tmp_path: Path, found: Found) -> None:
    """The device bitcode of one release beside the host library of another."""
    site = broken.environment(tmp_path / "env")
    broken.install(site, "nvidia-nvshmem-cu12", "3.6.5", broken.nvshmem("3.6.5"))
    other = broken.nvshmem("3.4.5")[broken.NVSHMEM_DEVICE]
    (site / broken.NVSHMEM_DEVICE).write_bytes(other)
    said = _failing(tmp_path / "env")
    assert "libnvshmem_device.bc" in said["nvshmem-wheel"], said
    found.detail = said["nvshmem-wheel"]


def test_stock_triton_over_triton_distributed_is_found(tmp_path: Path, found: Found) -> None:
    """As any `pip install torch` does it."""
    site = broken.environment(tmp_path / "env")
    version = "3.4.0+dist.0123abcd"
    broken.install(site, "triton", version, broken.triton(fork=True))
    assert "triton" not in _failing(tmp_path / "env")
    for path, data in broken.triton(fork=False).items():
        (site / path).write_bytes(data)
    said = _failing(tmp_path / "env")
    assert any(name.startswith("triton") for name in said), said
    found.detail = "; ".join(f"{name}: {text}" for name, text in said.items())


def test_a_changed_cubin_is_found(host: Host, tmp_path: Path, found: Found) -> None:
    """One bit of one cubin."""
    bundle = _bundle(host, tmp_path)
    words = ["-m", "gemm_allreduce.check", "--json", "--dir", str(bundle)]
    assert report_of(run(words))["exit_code"] == 0
    cubin = min(bundle.glob("sm_*/*.cubin"))
    broken.flip_a_byte(cubin)
    report = report_of(run(words))
    assert report["exit_code"] == 4, report["findings"]
    (finding,) = report["findings"]
    assert finding["variant"] == cubin.stem
    found.detail = finding["what"]


def _bundle(host: Host, tmp_path: Path) -> Path:
    """Return a bundle that may be changed: one kernel, compiled, or a copy of the installed."""
    bundle = tmp_path / "bundle"
    if "triton" in host.packages:
        words = ["-m", "gemm_allreduce.compile", "--arch", "sm_90", "--quick", "--out", str(bundle)]
        done = run(compiler(words))
        assert done.returncode == 0, done.stderr.strip()[-2000:]
    elif host.cubins:
        from gemm_allreduce.bundle import installed_bundles, named_bundle

        shutil.copytree(named_bundle() or installed_bundles()[0], bundle)
    else:
        pytest.skip("no Triton, and no bundle of cubins")
    return bundle


def test_a_rank_that_hangs_is_found_by_the_watchdog(host: Host, found: Found) -> None:
    """Stopped where all ranks meet: named with its step, in time, with everybody's stacks."""
    outcomes, seconds = _with_a_fault(host, signal.SIGSTOP)
    assert worst(outcomes) == "hung", outcomes
    hung = [o for o in outcomes if o.state == "hung"]
    assert [(o.rank, o.step) for o in hung] == [(1, "create the workspace")], outcomes
    assert all(o.traces and o.traces.stacks for o in outcomes), "no stacks"
    assert seconds < LIMIT_S + END_S, f"it took {seconds:.1f} s"
    found.detail = f"limit {LIMIT_S:g} s, over after {seconds:.1f} s: {hung[0].detail}"


def test_a_rank_that_dies_is_found_by_the_watchdog(host: Host, found: Found) -> None:
    """Killed where all ranks meet: named with its step."""
    outcomes, seconds = _with_a_fault(host, signal.SIGKILL)
    died = [o for o in outcomes if o.state == "died"]
    assert [(o.rank, o.step) for o in died] == [(1, "create the workspace")], outcomes
    found.detail = f"after {seconds:.1f} s: {died[0].detail}"


def _with_a_fault(host: Host, number: int) -> tuple[list[Outcome], float]:
    if why := lacking("cpu", host):
        pytest.skip(why)
    plant = Plant(1, "create the workspace", number, LIMIT_S)
    pool = Pool("cpu", 2, plant=plant, time_limit_s=1.0, grace_s=1.0)
    pids = pool.pids
    try:
        assert pool.usable, pool.started
        begin = time.monotonic()
        outcomes = pool.run("a_result_outlives_later_calls", 60)
        seconds = time.monotonic() - begin
    finally:
        pool.close()
    assert all(is_gone(pid) for pid in pids), "a rank is left"
    return outcomes, seconds
