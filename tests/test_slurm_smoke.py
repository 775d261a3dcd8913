"""smoke.sbatch on a real Slurm of two nodes: reports of both, and the exit code of the job."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smoke_tests.records import read
from tests.cluster_files import HEX, StandIns, cluster_file
from tests.slurm_cluster import NODES, PATH, Slurm, needs_slurm, running

pytestmark = needs_slurm
needs_torch = pytest.mark.skipif(
    not all(importlib.util.find_spec(n) for n in ("torch", "triton", "numpy")),
    reason="not installed: torch, Triton or numpy",
)
VERSIONS = "every_rank_has_the_same_versions"
SUMS = "integers_add_up_over_gloo"
QUICK = ("--kind", "cpu", "--ranks-per-node", "1", "--check", VERSIONS, "--check", SUMS)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    yield from running(tmp_path_factory)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Return a prefix whose environment is this one, with a verify that finds nothing."""
    folder = tmp_path / "prefix"
    folder.mkdir()
    folder.joinpath("current").symlink_to(Path(sys.prefix))
    return folder


def submit(slurm: Slurm, root: Path, out: Path, *arguments: str, nodes: int = 2) -> str:
    log = out.with_suffix(".log")
    options = [f"--nodes={nodes}", f"--output={log}", str(root / "scripts/slurm/smoke.sbatch")]
    # This environment has no wheel of the kernels: they are the checkout's.
    environment = {"PYTHONPATH": str(root / "kernels/src")}
    return slurm.submit(*options, "--out", str(out), *arguments, cwd=root, environment=environment)


@needs_torch
def test_both_nodes_report_by_themselves_and_together(
    slurm: Slurm, root: Path, tmp_path: Path, prefix: Path
) -> None:
    out = tmp_path / "out"
    form = ("--form", "bare", "--prefix", str(prefix), "--no-verify")
    job = submit(slurm, root, out, *form, "--", *QUICK)
    ended = slurm.ended(job, 150)
    log = out.with_suffix(".log").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log
    for node in NODES:
        report = read(out / "nodes" / node / "run.jsonl")
        assert report.run.host == node
        assert [(c.name, c.outcome) for c in report.checks] == [
            (f"n1-w1-{VERSIONS}", "passed"),
            (f"n1-w1-{SUMS}", "passed"),
        ]
    together = read(out / "together" / "run.jsonl")
    assert [(c.name, c.outcome) for c in together.checks] == [
        (f"n2-w2-{VERSIONS}", "passed"),
        (f"n2-w2-{SUMS}", "passed"),
    ]
    assert not out.joinpath(".checks").exists()
    if root.joinpath(".venv/bin/invoke").exists():
        page = (out / "merged" / "index.html").read_text()
        assert all(node in page for node in NODES)


@needs_torch
def test_a_rank_that_dies_fails_the_job_and_is_named(
    slurm: Slurm, root: Path, tmp_path: Path, prefix: Path
) -> None:
    out = tmp_path / "out"
    form = ("--form", "bare", "--prefix", str(prefix), "--no-verify")
    # By itself no node has a rank 1. No rank of its own node is left to see it go.
    job = submit(slurm, root, out, *form, "--", *QUICK, "--plant", "die:1")
    ended = slurm.ended(job, 150)
    log = out.with_suffix(".log").read_text()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "6:0"), log
    assert "each node by itself: exit code 0" in log
    assert "2 nodes together: exit code 6" in log
    last = read(out / "together" / "run.jsonl").checks[-1]
    assert (last.name, last.outcome) == (f"n2-w2-{SUMS}", "hung")
    assert [rank.rank for rank in last.ranks if rank.state == "hung"] == [1]


@needs_torch
def test_the_signal_before_the_time_limit_leaves_what_was_found(
    slurm: Slurm, root: Path, tmp_path: Path, prefix: Path
) -> None:
    out = tmp_path / "out"
    form = ("--form", "bare", "--prefix", str(prefix), "--no-verify")
    job = submit(slurm, root, out, *form, "--", *QUICK, "--plant", "stall:0", nodes=1)
    report = out / "nodes" / "node1" / "run.jsonl"
    slurm.until(lambda: report.exists() and "n1-w1" in report.read_text(), 60, "the first check")
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    ended = slurm.ended(job, 60)
    log = out.with_suffix(".log").read_text()
    assert ended["JobState"] == "FAILED", log
    assert int(ended["ExitCode"].split(":")[0]) >= 6, log
    assert "asked to stop" in log
    assert read(report).checks[0].name == f"n1-w1-{VERSIONS}"
    assert not out.joinpath(".checks").exists()


def test_in_a_container_the_checks_are_those_of_the_checkout(
    slurm: Slurm, root: Path, tmp_path: Path
) -> None:
    programs = StandIns(tmp_path / "programs")
    out, store = tmp_path / "out", tmp_path / "store"
    cluster = cluster_file(tmp_path / "cluster.env")
    # In place of the image's Python: says what it would have run, and what it found there.
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ran $PYTHONPATH: $*"; ls "${PYTHONPATH%%:*}"\n')
    python.chmod(0o755)
    job = slurm.submit(
        "--nodes=2",
        f"--output={out.with_suffix('.log')}",
        str(root / "scripts/slurm/smoke.sbatch"),
        *("--form", "apptainer", "--cluster", str(cluster), "--store", str(store)),
        *("--out", str(out), "--python", str(python), "--no-verify", "--", "--kind", "cpu"),
        cwd=root,
        environment=programs.environment(PATH),
    )
    ended = slurm.ended(job, 60)
    log = out.with_suffix(".log").read_text()
    assert ended["ExitCode"] == "0:0", log
    started = [line for line in programs.said() if "apptainer exec" in line]
    assert len(started) == 4
    assert all(f"--bind {out}:{out} {store / HEX}.sif" in line for line in started)
    # Both nodes are this host: the first that has the lock makes it.
    assert sum("apptainer build" in line for line in programs.said()) == 1
    assert log.count(f"ran {out}/.checks: -m smoke_tests.launch") == 4
    assert log.count("smoke_tests\n") == 4
    for node in NODES:
        assert f"--label {node} --where Slurm job {job} --out {out}/nodes/{node} --kind cpu" in log
    assert f"--out {out}/together --kind cpu" in log


def test_a_stack_that_is_not_its_lock_fails_the_job(
    slurm: Slurm, root: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "prefix" / "current" / "bin"
    programs.mkdir(parents=True)
    for name, code in {"tdstack-verify": 4, "python": 0}.items():
        programs.joinpath(name).write_text(f"#!/bin/sh\nexit {code}\n")
        programs.joinpath(name).chmod(0o755)
    out = tmp_path / "out"
    job = submit(slurm, root, out, "--form", "bare", "--prefix", str(tmp_path / "prefix"), nodes=1)
    assert slurm.ended(job, 60)["ExitCode"] == "4:0"
    assert "tdstack-verify on each node: exit code 4" in out.with_suffix(".log").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), "2:0", "no such form: none"),
        (("--form", "bare"), "2:0", "give --prefix DIR or --python FILE"),
        (("--form", "pyxis", "--prefix", "/opt"), "2:0", "runs an image"),
        (("--form", "apptainer", "--cluster", "absent.env"), "2:0", "is not there"),
        (("--kind", "cpu"), "2:0", "what is for smoke_tests.launch stands after --"),
        (("--form", "bare", "--out", "/proc"), "3:0", "there is something already"),
    ],
)
def test_wrong_usage_is_the_jobs_exit_code(
    slurm: Slurm, root: Path, tmp_path: Path, arguments: tuple[str, ...], code: str, said: str
) -> None:
    out = tmp_path / "out"
    job = submit(slurm, root, out, *arguments)
    assert slurm.ended(job, 30)["ExitCode"] == code
    assert said in out.with_suffix(".log").read_text()


def test_a_folder_that_is_no_checkout_is_told(slurm: Slurm, root: Path, tmp_path: Path) -> None:
    script = str(root / "scripts/slurm/smoke.sbatch")
    job = slurm.submit(f"--output={tmp_path / 'log'}", "--nodes=1", script, cwd=tmp_path)
    assert slurm.ended(job, 30)["ExitCode"] == "2:0"
    assert "TDSTACK_ROOT" in (tmp_path / "log").read_text()
