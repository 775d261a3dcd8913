"""Starts torchrun for this node's ranks, and gives their verdict as the exit code.

srun --ntasks-per-node=1 python -m smoke_tests.launch --out DIR

Which node this is of how many comes from Slurm, from an indexed Job of Kubernetes, or from the
options (rendezvous.py). Exit codes are those of `invoke smoke`: torchrun itself knows but 0 and 1.
What is not listed here goes to the ranks: see `python -m smoke_tests.node --help`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from smoke_tests.leftovers import present, sweep
from smoke_tests.records import RecordError, Verdict, read
from smoke_tests.rendezvous import Given, Rendezvous, RendezvousError, resolve
from smoke_tests.watch import BEATS, SILENT_S, Sibling

ROOT: Final = Path(__file__).resolve().parent.parent
CPU_RANKS: Final = 2
FILE: Final = "run.jsonl"
LEAVE_S: Final = 15.0
"""For ranks whose torchrun is gone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this node's ranks; return the exit code."""
    given, for_ranks = _parser().parse_known_args(arguments)
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    try:
        wanted = Given(
            given.nodes,
            given.node_rank,
            given.ranks_per_node,
            given.master_addr,
            given.master_port,
            given.service,
        )
        found = resolve(os.environ, wanted, gpus or CPU_RANKS)
    except RendezvousError as error:
        print(f"error: {error.what}\n  where: {error.where}", file=sys.stderr)
        if error.remedy:
            print(f"  remedy: {error.remedy}", file=sys.stderr)
        return 2
    command = [*torchrun(found, given.start_limit_s), "--out", str(given.out), *for_ranks]
    said = f"node {found.node} of {found.nodes}, {found.ranks_per_node} ranks ({found.source})"
    print(said, file=sys.stderr)
    if given.dry:
        print(" ".join(command))
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    with tempfile.TemporaryDirectory(prefix="smoke-beats-") as beats:
        before = present()
        code = _run(command, Path(beats))
        sweep(before)
    return _verdict(given.out / FILE, begin, code)


def torchrun(found: Rendezvous, start_limit_s: int) -> list[str]:
    """Return the command line of torchrun, up to the options of the ranks. Pure."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *found.torchrun(),
        f"--rdzv-conf=timeout={start_limit_s}",
        "-m",
        "smoke_tests.node",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smoke_tests.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {FILE}")
    parser.add_argument("--nodes", type=int, help="how many nodes")
    parser.add_argument("--node-rank", type=int, help="which one this is, from 0")
    ranks = f"ranks on each node (default: its GPUs; without any, {CPU_RANKS}); may be more"
    parser.add_argument("--ranks-per-node", type=int, help=ranks)
    parser.add_argument("--master-addr", help="name or address of node 0")
    parser.add_argument("--master-port", type=int, help="a free port of node 0")
    parser.add_argument("--service", help="Kubernetes: the headless service of the Job's pods")
    start = "seconds for all nodes to come (default: 600)"
    parser.add_argument("--start-limit-s", type=int, default=600, help=start)
    parser.add_argument("--dry", action="store_true", help="print torchrun's command line, no more")
    return parser


def _run(command: list[str], beats: Path) -> int:
    environment = dict(os.environ)
    path = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
    environment[BEATS] = str(beats)
    # torchrun says at length that it chooses one thread; so do we, in silence.
    environment.setdefault("OMP_NUM_THREADS", "1")
    with subprocess.Popen(command, env=environment) as agent:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda got, _: agent.send_signal(got))
        while agent.poll() is None:
            end_stopped(beats)
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(1.0)
    # Where torchrun itself was ended, its ranks are writing their report.
    deadline = time.monotonic() + LEAVE_S
    while (left := [r for r in running(beats) if not r.gone]) and time.monotonic() < deadline:
        time.sleep(0.2)
    for rank in left:
        rank.kill()
    return agent.returncode


def running(beats: Path, silent_s: float = 0.0) -> list[Sibling]:
    """Return the ranks of this host that have come to work, if silent for so long."""
    found = []
    for beat in beats.iterdir():
        with contextlib.suppress(OSError, ValueError):
            if time.time() - beat.stat().st_mtime >= silent_s:
                pid, started = beat.read_text().split()
                found.append(Sibling(int(pid), started))
    return found


def end_stopped(beats: Path, silent_s: float = SILENT_S + 5) -> None:
    """End ranks whose watch stands still: only from outside can a stopped process be ended.

    The other ranks miss it first, after SILENT_S, and name it.
    """
    for rank in running(beats, silent_s):
        rank.kill()


def _verdict(file: Path, begin: float, code: int) -> int:
    """Return the exit code of the report, where this run left one here; else torchrun's."""
    try:
        result = read(file) if file.stat().st_mtime >= begin - 1 else None
    except (OSError, RecordError):
        result = None
    if result is not None and isinstance(result.verdict, Verdict):
        return result.verdict.exit_code
    if code == 0:
        return 0
    what = "was cut off" if result is not None else "did not begin here, or reports on node 0"
    print(f"error: the run {what}; torchrun ended with {code}", file=sys.stderr)
    return 1 if result is not None else 3


if __name__ == "__main__":
    sys.exit(main())
