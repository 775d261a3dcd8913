"""A real Slurm on this host: munge, a controller, two node daemons, no accounting database.

All daemons are in a PID and mount namespace of their own: what a job leaves behind ends with it,
and the names of the nodes resolve there and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

NODES: Final = ("node1", "node2")
PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "mount")
PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
START_LIMIT_S: Final = 30.0
CONFIGURATION: Final = """\
ClusterName=tdstack-test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=nohold_on_prolog_fail,sched_min_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=10
SlurmdTimeout=600
PrologFlags=Alloc
PrologEpilogTimeout=60
{extra}
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""
# The first process of the namespace; when it ends the kernel ends all others. Shared memory of a
# node is a mount of its own, so that a test can make it too small.
INIT: Final = """\
set -e
cd {folder}
mount --bind hosts /etc/hosts
munged --foreground --force --key-file=munge.key --socket={folder}/munge.socket \\
  --pid-file={folder}/munge.pid --log-file={folder}/munge.log --seed-file={folder}/munge.seed &
while [ ! -S munge.socket ]; do sleep 0.05; done
slurmctld -D &
for node in node1 node2; do
  unshare --mount sh -c "mount -t tmpfs -o size=2g tmpfs /dev/shm; exec slurmd -D -N $node" &
done
wait
"""


def missing() -> str:
    """Return why no cluster can run here; empty when one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "node daemons and namespaces need root"


# In CI bootstrap.sh has installed all of it: there a cluster that cannot start is a failure.
needs_slurm = pytest.mark.skipif(bool(missing()) and "CI" not in os.environ, reason=missing())


@dataclass
class Slurm:
    """A running cluster, and its commands."""

    folder: Path
    init: subprocess.Popen[bytes]
    jobs: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of its commands, without what a job around us may have set."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TDSTACK"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm, and return what it said on stdout."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(
        self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> str:
        """Submit a job, and return its number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env={**self.environment, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()
        self.jobs.append(job)
        return job

    def job(self, job: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job."""
        said = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(part.split("=", 1) for part in said.split() if "=" in part)

    def node(self, node: str) -> tuple[str, str]:
        """Return a node's state and its reason, as `sinfo` tells them.

        Without the `*` of one that the controller has not heard of since it was changed.
        """
        said = self.run("sinfo", "--noheader", "--nodes", node, "-o", "%T|%E").strip()
        state, _, why = said.partition("|")
        return state.rstrip("*"), why

    def resume(self, *nodes: str) -> None:
        """Take back whatever was done to nodes."""
        for node in nodes or NODES:
            if self.node(node)[0] not in ("idle", "allocated", "mixed"):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.until(lambda: all(self.node(n)[0] == "idle" for n in nodes or NODES), 30, "nodes idle")

    def ended(self, job: str, limit_s: float) -> dict[str, str]:
        """Wait for a job's end, and return what Slurm says of it."""
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
        self.until(lambda: self.job(job)["JobState"] not in running, limit_s, f"end of job {job}")
        return self.job(job)

    def until(self, what: Callable[[], object], limit_s: float, name: str) -> None:
        """Wait until something is true."""
        deadline = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {name}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{f.name}:\n{f.read_text(errors='replace')[-1500:]}" for f in files)

    def daemon(self, node: str) -> int:
        """Return the process of a node's daemon, as this host numbers it."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                arguments = path.read_bytes().split(b"\0")
                if arguments[0].endswith(b"slurmd") and arguments[-2] == node.encode():
                    environment = (path.parent / "environ").read_bytes()
                    if str(self.folder).encode() in environment:
                        return int(path.parent.name)
        raise AssertionError(f"no slurmd of {node}")

    def on_node(self, node: str, *command: str) -> None:
        """Run a command where a node's daemon sees its files."""
        entered = ["nsenter", "--mount", f"--target={self.daemon(node)}", *command]
        subprocess.run(entered, check=True, capture_output=True, timeout=30)

    def stop(self) -> None:
        """End everything."""
        for job in self.jobs:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.run("scancel", "--quiet", job, check=False)
        self.init.send_signal(signal.SIGKILL)
        self.init.wait(10)


def start(folder: Path, extra: Sequence[str] = ()) -> Slurm:
    """Start a cluster; `extra` are lines of slurm.conf."""
    folder.chmod(0o755)
    ports = [_free_port() for _ in range(3)]
    for name in ("controller", *NODES):
        folder.joinpath(name).mkdir()
    text = CONFIGURATION.format(folder=folder, ports=ports, extra="\n".join(extra))
    folder.joinpath("slurm.conf").write_text(text)
    folder.joinpath("hosts").write_text(
        f"127.0.0.1 localhost node1 node2 {socket.gethostname()}\n::1 localhost\n"
    )
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with folder.joinpath("init.log").open("wb") as log:
        init = subprocess.Popen(
            [*space, "bash", "-c", INIT.format(folder=folder)],
            env={"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    slurm = Slurm(folder, init)

    def is_up() -> bool:
        assert init.poll() is None, slurm.logs()
        said = slurm.run("sinfo", "--noheader", "-N", "-o", "%T", check=False).split()
        return said == ["idle", "idle"]

    try:
        slurm.until(is_up, START_LIMIT_S, "both nodes are up")
    except BaseException:
        slurm.stop()
        raise
    return slurm


def running(factory: pytest.TempPathFactory, extra: Sequence[str] = ()) -> Iterator[Slurm]:
    """Yield a cluster for a fixture."""
    folder = factory.mktemp("slurm", numbered=True)
    slurm = start(folder, extra)
    try:
        yield slurm
    finally:
        slurm.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
