"""Asking this host: every probe in a process of its own, each with a time limit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdstack import __version__
from tdstack.doctor.facts import SCHEMA, Facts
from tdstack.doctor.load import load
from tdstack.doctor.merge import merge
from tdstack.doctor.probes.spaces import cache_folder
from tdstack.doctor.probes.tree import Tree

CHECKOUT = Path(__file__).resolve().parents[2]
LIMIT_S = 20.0
# NVML takes seconds a GPU to start where persistence is off.
LIMITS_S = {"nvml": 90.0, "libcuda": 90.0, "engines": 15.0, "kernel-log": 30.0}
FIRST = (
    *("nvml", "libcuda", "engines", "pci", "kernel-log", "libraries", "driver", "system"),
    *("memory", "limits", "clock", "fabric", "rdma", "container", "network"),
)
AT_ONCE = 4
# What hides GPUs or multiplies CUDA's start must not decide what this host has.
HIDING = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")


@dataclass(frozen=True)
class Question:
    """A probe, its argument, and how many seconds it may take."""

    probe: str
    argument: str = ""
    limit_s: float = LIMIT_S


@dataclass
class Answer:
    """What a probe printed, or why it did not."""

    question: Question
    state: str
    seconds: float
    why: str = ""
    sections: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def collect(prefix: str = "", limit_s: float = math.inf, root: str = "/") -> Facts:
    """Return what this host says of itself, now; nothing is changed, and nothing is raised.

    `prefix` is a folder of tdstack to look at; `limit_s` bounds each question where its usual
    limit is longer.
    """

    def within(questions: Iterable[Question]) -> list[Question]:
        return [replace(q, limit_s=min(q.limit_s, limit_s)) for q in questions]

    first = [Question(name, "", LIMITS_S.get(name, LIMIT_S)) for name in FIRST]
    answers = ask_all(within([*first, Question("installed", prefix)]), root)
    answers += ask_all(within(_places(answers, prefix, root)), root)
    return load(record_of(answers))


def record_of(answers: Iterable[Answer]) -> dict[str, Any]:
    """Return the answers as one record. Pure but for the date."""
    record: dict[str, Any] = {
        "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
        "tool": __version__,
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    answers = list(answers)
    record |= merge([(answer.sections, answer.reasons) for answer in answers])
    record["probes"] = [
        {"name": a.question.probe, "state": a.state, "seconds": round(a.seconds, 2), "why": a.why}
        for a in answers
    ]
    return record


def ask_all(questions: Iterable[Question], root: str = "/") -> list[Answer]:
    """Ask some probes at a time; their answers come in the order of the questions."""
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(lambda question: ask(question, root, running), questions))
        except BaseException:
            # An interrupt reaches this process alone, and the pool waits for its threads.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                _end(process)
            raise


def ask(question: Question, root: str, running: set[subprocess.Popen[bytes]]) -> Answer:
    """Run one probe in a process of its own, and end it at its time limit.

    `running` holds its process for as long as it runs.
    """
    begin = time.monotonic()
    # -P: a prolog runs as root, and what lies in the current folder must not be imported.
    command = [sys.executable, "-P", "-m", "tdstack.doctor.probes", root, question.probe]
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment = dict(os.environ) | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    if question.probe in ("nvml", "libcuda"):
        environment = {name: v for name, v in environment.items() if name not in HIDING}
    process = subprocess.Popen(
        [*command, question.argument],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    running.add(process)
    try:
        out, err = process.communicate(timeout=question.limit_s)
    except subprocess.TimeoutExpired:
        _abandon(process)
        why = f"no answer within {question.limit_s:g} s"
        return _failed(question, "timeout", time.monotonic() - begin, why)
    finally:
        running.discard(process)
    seconds = time.monotonic() - begin
    try:
        found = json.loads(out)
        state = "partial" if found["why"] else "ok"
        return Answer(question, state, seconds, "", found["sections"], found["why"])
    except (ValueError, KeyError, TypeError):
        last = (err.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        why = f"the probe ended with status {process.returncode}: {last[:200]}"
        return _failed(question, "failed", seconds, why)


def _failed(question: Question, state: str, seconds: float, why: str) -> Answer:
    reasons = dict.fromkeys(SECTIONS.get(question.probe, ()), f"{question.probe}: {why}")
    if not reasons:
        reasons = {question.probe: why}
    # A driver that hangs is a fault, not a fact that happens to be unknown.
    hung = question.probe == "nvml" and state == "timeout"
    sections = {"driver": {"nvml": "timeout"}} if hung else {}
    return Answer(question, state, seconds, why, sections, reasons)


# What is not known when a probe does not answer, where its name does not say it.
SECTIONS = {
    "system": ("os", "environment"),
    "nvml": ("gpus", "pairs", "driver.nvml"),
    "libcuda": ("gpus.multicast", "gpus.dma_buf"),
    "kernel-log": ("xids",),
    "pci": ("pcie", "fabric.switches"),
    "driver": ("driver", "modules"),
    "engines": ("container.engines",),
    "installed": ("tdstack",),
}


def _abandon(process: subprocess.Popen[bytes]) -> None:
    """End a process that may hang in the kernel, where it cannot be ended: do not wait long."""
    _end(process)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # the whole session: a library may have started a helper
        os.killpg(process.pid, signal.SIGKILL)


def _places(answers: Iterable[Answer], prefix: str, root: str) -> list[Question]:
    places = {"shm": "/dev/shm", "tmp": os.environ.get("TMPDIR") or "/tmp"}
    places["cache"] = cache_folder(Tree(Path(root), dict(os.environ)))
    for answer in answers:
        listed = answer.sections.get("container.engines") or ()
        roots = [engine["root"] for engine in listed if engine.get("root")]
        if roots:
            places["engine"] = roots[0]
    if prefix:
        places["prefix"] = prefix
    return [Question(f"spaces.{name}", place) for name, place in places.items()]
