"""Prolog, epilog and health check on a real Slurm: which nodes are drained, and which are not.

How they behave around a doctor is tested with a program that answers in its place; what the doctor
itself says of a bad node is tested at the end, with a node whose /dev/shm is too small.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster_files import cluster_file
from tests.slurm_cluster import NODES, Slurm, needs_slurm, running

pytestmark = needs_slurm
BAD = {"check": "shm-size", "severity": "failure", "what": "/dev/shm has 1 MiB"}
REASON = "tdstack doctor: shm-size: /dev/shm has 1 MiB"
# In place of Python: `-m tdstack.doctor` is answered from a file, all else is Python's.
DOCTOR = """\
#!/bin/bash
if [[ $2 != tdstack.doctor ]]; then exec {python} "$@"; fi
echo "$*" >>{folder}/asked
if [[ -e {folder}/doctor.sh ]]; then exec bash {folder}/doctor.sh; fi
cat {folder}/report.json
exit "$(cat {folder}/code)"
"""


@dataclass
class Health:
    """The health check of a cluster: its settings, and the doctor's answers for each node."""

    slurm: Slurm
    folder: Path
    root: Path

    def of(self, node: str) -> Path:
        return self.folder / node

    def settings(self, node: str, **settings: str) -> None:
        folder = self.of(node)
        values = {
            "TDSTACK_HEALTH_STATE": str(folder / "state"),
            "TDSTACK_HEALTH_LOG": str(folder / "log"),
            "TDSTACK_HEALTH_SLURM_CONF": str(self.slurm.folder / "slurm.conf"),
            "TDSTACK_HEALTH_PYTHON": str(folder / "python"),
            **settings,
        }
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        folder.joinpath("health.env").write_text(text)

    def says(self, node: str, *findings: dict[str, str], code: int = 0, **more: Any) -> None:
        document = {"schema": 1, "findings": list(findings), "exit_code": code, **more}
        self.answers(node, json.dumps(document), code)

    def answers(self, node: str, text: str, code: int) -> None:
        self.of(node).joinpath("report.json").write_text(text)
        self.of(node).joinpath("code").write_text(str(code))

    def runs(self, node: str, script: str) -> None:
        self.of(node).joinpath("doctor.sh").write_text(script)

    def log(self, node: str) -> str:
        file = self.of(node) / "log"
        return file.read_text() if file.exists() else ""

    def asked(self, node: str) -> list[str]:
        file = self.of(node) / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def check(self, node: str, name: str = "healthcheck", **environment: str) -> int:
        """Run a script as the node's daemon would; return its exit code."""
        return self.begin(node, name, **environment).wait(60)

    def begin(self, node: str, name: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self.folder / f"{name}.sh")],
            env={"SLURMD_NODENAME": node, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run_job(self, *options: str, nodes: int = 2, limit_s: float = 40) -> dict[str, str]:
        job = self.slurm.submit(
            f"--nodes={nodes}", "--output=job.log", *options, "--wrap", "srun hostname",
            cwd=self.folder,
        )  # fmt: skip
        return self.slurm.ended(job, limit_s)

    def reset(self) -> None:
        for node in NODES:
            for path in sorted(self.of(node).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            python = self.of(node) / "python"
            python.write_text(DOCTOR.format(python=sys.executable, folder=self.of(node)))
            python.chmod(0o755)
            self.settings(node)
            self.says(node, {**BAD, "severity": "ok"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Health]:
    folder = tmp_path_factory.mktemp("health")
    for name in ("prolog", "epilog", "healthcheck"):
        script = folder / f"{name}.sh"
        # A node's settings, as each has a host of its own elsewhere.
        script.write_text(
            f"#!/bin/bash\nexport TDSTACK_HEALTH_CONF={folder}/$SLURMD_NODENAME/health.env\n"
            f"exec {root}/scripts/slurm/{name}.sh\n"
        )
        script.chmod(0o755)
    for node in NODES:
        folder.joinpath(node).mkdir()
    extra = [f"Prolog={folder}/prolog.sh", f"Epilog={folder}/epilog.sh"]
    for slurm in running(tmp_path_factory, extra):
        yield Health(slurm, folder, root)


@pytest.fixture
def health(cluster: Health) -> Health:
    cluster.reset()
    cluster.slurm.resume()
    return cluster


def test_healthy_nodes_run_the_job_and_stay(health: Health) -> None:
    ended = health.run_job()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    for node in NODES:
        # Once by the prolog, once by the epilog.
        health.slurm.until(lambda node=node: len(health.asked(node)) == 2, 20, "the epilog")
        assert health.slurm.node(node) == ("idle", "none")
        assert health.log(node) == ""


def test_a_bad_node_is_drained_with_the_reason_and_the_job_runs_elsewhere(health: Health) -> None:
    health.says("node2", BAD, code=1)
    # Waiting for its chance on any one node: node2 must not keep it.
    health.slurm.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=busy")
    job = health.slurm.submit("--nodes=1", "--output=job.log", "--wrap=hostname", cwd=health.folder)
    health.slurm.until(lambda: health.slurm.node("node2")[0] == "drained", 30, "drained")
    assert health.slurm.node("node2")[1] == REASON
    assert REASON in health.slurm.run("sinfo", "-R", "-o", "%120E %N")
    assert f"drained: {REASON}" in health.log("node2")
    health.slurm.resume("node1")
    health.slurm.until(
        lambda: health.slurm.job(job)["JobState"] in ("PENDING", "COMPLETED"), 30, "requeued"
    )
    assert int(health.slurm.job(job)["Restarts"]) == 1
    health.slurm.run("scancel", job)


def test_the_epilog_drains_before_the_next_job(health: Health) -> None:
    health.runs(
        "node2",
        f"""
if [[ $(wc -l <{health.of("node2")}/asked) == 1 ]]; then
  echo '{{"schema": 1, "findings": [], "exit_code": 0}}'
else
  echo '{{"schema": 1, "findings": [{json.dumps(BAD)}], "exit_code": 1}}'
  exit 1
fi
""",
    )
    assert health.run_job()["JobState"] == "COMPLETED"
    health.slurm.until(lambda: health.slurm.node("node2")[0] == "drained", 30, "drained")
    assert health.slurm.node("node2")[1] == REASON
    assert health.slurm.node("node1")[0] == "idle"


def test_a_node_that_is_well_again_is_given_back(health: Health) -> None:
    health.says("node1", BAD, code=1)
    assert health.check("node1") == 0
    assert health.slurm.node("node1") == ("drained", REASON)
    health.says("node1", {**BAD, "severity": "ok"})
    assert health.check("node1") == 0
    assert health.slurm.node("node1") == ("idle", "none")
    assert f"undrained, as this is no more: {REASON}" in health.log("node1")
    assert not list((health.of("node1") / "state").glob("*.drained"))


def test_another_fault_renews_the_reason(health: Health) -> None:
    health.says("node1", BAD, code=1)
    health.check("node1")
    health.says("node1", {**BAD, "what": "/dev/shm has 2 MiB"}, code=1)
    health.check("node1")
    assert health.slurm.node("node1") == ("drained", "tdstack doctor: shm-size: /dev/shm has 2 MiB")
    lines = health.log("node1").count("\n")
    health.check("node1")
    assert health.log("node1").count("\n") == lines


@pytest.mark.parametrize("theirs", ["disk swap", "tdstack: change to 1a2b", "tdstack doctor: no"])
def test_what_others_drained_is_left_alone(health: Health, theirs: str) -> None:
    health.slurm.run("scontrol", "update", "NodeName=node1", "State=DRAIN", f"Reason={theirs}")
    health.says("node1", BAD, code=1)
    health.check("node1")
    assert health.slurm.node("node1") == ("drained", theirs)
    health.says("node1")
    health.check("node1")
    assert health.slurm.node("node1") == ("drained", theirs)
    assert f"drained by others ({theirs}): {REASON}" in health.log("node1")


def test_an_administrator_who_words_the_reason_anew_keeps_the_node(health: Health) -> None:
    health.says("node1", BAD, code=1)
    health.check("node1")
    taken = f"{REASON}, taken by ops"
    health.slurm.run("scontrol", "update", "NodeName=node1", "State=DRAIN", f"Reason={taken}")
    health.says("node1")
    health.check("node1")
    assert health.slurm.node("node1") == ("drained", taken)
    health.slurm.resume("node1")
    health.check("node1")
    assert health.slurm.node("node1")[0] == "idle"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 1, "left no report"),
        ("Traceback", 1, "left no report"),
        ('{"error": "UsageError", "exit_code": 2, "what": "unknown CUDA line"}', 2, "unknown CUDA"),
        ('{"schema": 1, "findings": [], "exit_code": 1}', 139, "ended with 139"),
    ],
)
def test_a_doctor_that_broke_drains_nothing(
    health: Health, text: str, code: int, said: str
) -> None:
    health.answers("node1", text, code)
    assert health.check("node1", "prolog") == 0
    assert health.slurm.node("node1") == ("idle", "none")
    assert "not checked" in health.log("node1")
    assert said in health.log("node1")


def test_a_doctor_that_hangs_is_left_within_the_limit(health: Health) -> None:
    health.settings("node1", TDSTACK_HEALTH_LIMIT_S="15")
    # It ignores SIGTERM, and so does what it starts.
    health.runs("node1", "trap '' TERM; sleep 100 & wait; sleep 100")
    begin = time.monotonic()
    assert health.check("node1", "prolog") == 0
    assert time.monotonic() - begin < 15
    assert "the doctor took longer than 5 s" in health.log("node1")
    assert health.slurm.node("node1") == ("idle", "none")


def test_many_jobs_that_begin_at_once_ask_the_doctor_twice_at_most(health: Health) -> None:
    report = health.of("node1") / "report.json"
    health.says("node1", BAD, code=1)
    health.runs("node1", f"sleep 1; cat {report}; exit 1")
    begun = [health.begin("node1", "prolog") for _ in range(5)]
    assert [process.wait(60) for process in begun] == [1] * 5
    # The second is for those that came while the first was being answered.
    assert 1 <= len(health.asked("node1")) <= 2
    assert health.log("node1").count("drained: ") == 1


def test_a_health_check_does_not_wait_for_another_check(health: Health) -> None:
    report = health.of("node1") / "report.json"
    health.runs("node1", f"sleep 3; cat {report}")
    begun = health.begin("node1", "prolog")
    health.slurm.until(lambda: health.asked("node1"), 20, "the doctor is asked")
    assert health.check("node1") == 0
    assert begun.poll() is None
    assert len(health.asked("node1")) == 1
    assert begun.wait(30) == 0


def test_a_doctor_that_never_ends_is_waited_for_once(health: Health) -> None:
    state = health.of("node1") / "state"
    state.mkdir()
    began = int((time.time() - 100) * 1e6)
    state.joinpath("node1.lock").write_text(f"{began}\n")
    with state.joinpath("node1.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begin = time.monotonic()
        assert health.check("node1", "prolog") == 0
        assert time.monotonic() - begin < 8
    assert "has not ended" in health.log("node1")
    assert health.asked("node1") == []


def test_a_job_on_a_node_whose_doctor_broke_runs(health: Health) -> None:
    health.runs("node1", "exit 1")
    assert health.run_job(nodes=2)["ExitCode"] == "0:0"
    assert "not checked" in health.log("node1")


def test_only_the_partitions_that_are_named_count(health: Health) -> None:
    health.says("node1", BAD, code=1)
    health.settings("node1", TDSTACK_HEALTH_PARTITIONS="gpu,h100")
    assert health.check("node1", "prolog", SLURM_JOB_PARTITION="all") == 0
    assert health.asked("node1") == []
    assert health.check("node1", "prolog", SLURM_JOB_PARTITION="h100") == 1
    assert health.slurm.node("node1") == ("drained", REASON)


def test_a_first_look_drains_nothing(health: Health) -> None:
    health.says("node1", BAD, code=1)
    health.settings("node1", TDSTACK_HEALTH_DRAIN="no")
    assert health.check("node1", "prolog") == 0
    assert health.slurm.node("node1") == ("idle", "none")
    assert f"would drain: {REASON}" in health.log("node1")


def test_settings_reach_the_doctor(health: Health) -> None:
    prefix = str(health.folder)
    health.settings("node1", TDSTACK_HEALTH_CUDA="12.4", TDSTACK_HEALTH_PREFIX=prefix)
    health.check("node1")
    assert health.asked("node1") == [f"-m tdstack.doctor --json --cuda 12.4 --prefix {prefix}"]


def test_the_line_is_the_cluster_files(health: Health) -> None:
    file = cluster_file(health.of("node1") / "cluster.env", TDSTACK_CUDA="12.8")
    health.settings("node1", TDSTACK_HEALTH_CLUSTER=str(file))
    health.check("node1")
    assert health.asked("node1") == ["-m tdstack.doctor --json --cuda 12.8"]
    cluster_file(file, TDSTACK_CUDA="12.8;reboot")
    assert health.check("node1", "prolog") == 0
    assert "not KEY=VALUE" in health.log("node1")
    assert len(health.asked("node1")) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("TDSTACK_HEALTH_LIMIT_S=5", "from 15 on: 5"),
        ("TDSTACK_HEALTH_LIMITS=30", "no such setting"),
        ("TDSTACK_HEALTH_CUDA=$(reboot)", "not KEY=VALUE"),
    ],
)
def test_wrong_settings_drain_nothing(health: Health, line: str, said: str) -> None:
    health.says("node1", BAD, code=1)
    with (health.of("node1") / "health.env").open("a") as stream:
        stream.write(f"{line}\n")
    done = subprocess.run(
        [str(health.folder / "prolog.sh")],
        env={"SLURMD_NODENAME": "node1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (0, True), done.stderr
    assert health.slurm.node("node1") == ("idle", "none")


def test_a_check_that_breaks_drains_nothing(health: Health) -> None:
    health.says("node1", BAD, code=1)
    # A folder in place of the lock: the shell that would open it ends.
    health.of("node1").joinpath("state", "node1.lock").mkdir(parents=True)
    assert health.check("node1", "prolog") == 0
    assert "the check itself ended with" in health.log("node1")
    assert health.slurm.node("node1") == ("idle", "none")


def test_root_does_not_run_what_others_may_write(health: Health) -> None:
    health.says("node1", BAD, code=1)
    (health.of("node1") / "health.env").chmod(0o666)
    assert health.check("node1", "prolog") == 0
    assert health.asked("node1") == []


def test_a_controller_that_is_away_is_no_reason_to_hang(health: Health) -> None:
    health.says("node1", BAD, code=1)
    away = health.folder / "away.conf"
    text = (health.slurm.folder / "slurm.conf").read_text()
    away.write_text(text.replace("SlurmctldPort=", "SlurmctldPort=1\n#"))
    health.settings("node1", TDSTACK_HEALTH_SLURM_CONF=str(away), TDSTACK_HEALTH_LIMIT_S="15")
    begin = time.monotonic()
    assert health.check("node1", "prolog") == 1
    assert time.monotonic() - begin < 15
    assert "Slurm does not say" in health.log("node1")


def look(health: Health, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"TDSTACK_HEALTH_CONF": str(health.of("node1") / "health.env")}
    return subprocess.run(
        [str(health.root / "scripts/slurm/check.sh")],
        env={**health.slurm.environment, "SLURMD_NODENAME": "node1", **settings, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_missing_in_the_configuration_is_told_with_the_line_to_write(
    health: Health,
) -> None:
    done = look(health)
    assert done.returncode == 1, done.stderr
    assert "ok    Prolog runs prolog.sh" in done.stdout
    assert "ok    PrologEpilogTimeout is 60" in done.stdout
    assert "ok    the doctor would keep this node" in done.stdout
    program = f"{health.root}/scripts/slurm/healthcheck.sh"
    assert f"in slurm.conf: HealthCheckProgram={program}" in done.stdout
    assert done.stdout.count("FAIL") == 2
    health.settings("node1", TDSTACK_HEALTH_LIMIT_S="90")
    assert "FAIL  PrologEpilogTimeout is 60: a check may take 90 s" in look(health).stdout


def test_a_configuration_as_it_should_be_has_nothing_to_tell(
    health: Health, tmp_path: Path
) -> None:
    # scontrol asks the controller; what it would answer is put in its place.
    told = health.slurm.run("scontrol", "show", "config")
    ours = health.folder / "healthcheck.sh"
    told = "\n".join(
        f"HealthCheckProgram = {ours}" if line.startswith("HealthCheckProgram")
        else "HealthCheckInterval = 300 sec" if line.startswith("HealthCheckInterval")
        else line
        for line in told.splitlines()
    )  # fmt: skip
    tmp_path.joinpath("scontrol").write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\n")
    tmp_path.joinpath("scontrol").chmod(0o755)
    health.settings("node1", TDSTACK_HEALTH_PATH=str(tmp_path))
    done = look(health)
    assert (done.returncode, done.stdout.count("FAIL")) == (0, 0), done.stdout
