"""Runs tasks in forked processes, one process a task.

Forked, so that what was imported, patched or set up before is there and costs nothing; one a task,
so that a task that is killed takes no other one with it, and none sees what another left behind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """How task number ``index`` ended: with a result, or with an error in words."""

    index: int
    result: Result | None
    error: str = ""


def run_forked(
    tasks: Sequence[Task], work: Callable[[Task], Result], jobs: int
) -> Generator[Done[Result], None, None]:
    """Run `work` for every task, up to `jobs` at a time; yield each as it ends, in any order.

    `work` ends a task with an exception; its words become the error. A process that ends without
    an answer is an error too, and the other tasks go on. Closing the generator kills the processes
    that still run, and what they started.
    """
    fork = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    following = iter(enumerate(tasks))
    try:
        while True:
            while len(running) < jobs and (item := next(following, None)) is not None:
                index, task = item
                receiver, sender = fork.Pipe(duplex=False)
                inherited = [receiver, *running]
                process: BaseProcess = fork.Process(
                    target=_child, args=(sender, inherited, work, task)
                )
                # Children would print once more what is still in the buffers.
                sys.stdout.flush()
                sys.stderr.flush()
                process.start()
                sender.close()
                running[receiver] = (index, process)
            if not running:
                return
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                done: Done[Result] = _answer(*running[ready], ready)
                del running[ready]
                ready.close()
                yield done
    finally:
        for connection, (_, process) in running.items():
            _kill(process)
            connection.close()


def _child(
    sender: Connection,
    inherited: Sequence[Connection],
    work: Callable[[Task], Result],
    task: Task,
) -> None:
    # A parent that is killed must be the only reader: else its children would wait for ever.
    for connection in inherited:
        connection.close()
    # A group of its own: a Ctrl-C is the parent's, which kills what the child has started too.
    os.setpgid(0, 0)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    try:
        answer = (work(task), "")
    except Exception as error:
        answer = (None, str(error))  # type: ignore[assignment]
    with contextlib.suppress(BrokenPipeError):
        sender.send(answer)


def _answer(index: int, process: BaseProcess, connection: Connection) -> Done[Result]:
    try:
        result, error = connection.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        memory = "; this host may have too little memory for as many jobs" if code == -9 else ""
        return Done(index, None, f"its process {how} and gave no result{memory}")
    process.join()
    return Done(index, result, error)


def _kill(process: BaseProcess) -> None:
    if process.pid is None:
        return
    for kill in (os.killpg, os.kill):  # it may not yet have a group
        try:
            kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.join()
