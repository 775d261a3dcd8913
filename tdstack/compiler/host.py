"""What this host can run a compiler with, and which files of the lock that takes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tdstack.errors import HostError, UsageError
from tdstack.fork.fit import runs_on
from tdstack.fork.model import ForkSource, ForkWheel
from tdstack.lock.model import Lock, Platform
from tdstack.process import json_report, last_words, run
from tdstack.stack import BaseFacts, Request, Stack, make_stack
from tdstack.tags import MACHINE

# Asked of another Python than the one that runs the toolkit.
QUESTION = """
import json, os, platform, sys
print(json.dumps({
    "machine": platform.machine(),
    "python": "%d.%d" % sys.version_info[:2],
    "glibc": os.confstr("CS_GNU_LIBC_VERSION").split()[-1],
    "base": getattr(sys, "_base_executable", "") or sys.executable,
}))
"""
FindFork = Callable[[], ForkWheel | None]
# The base of a stack that no image is made of.
HOST_BASE = "host"
IN_THE_IMAGE = "`invoke build` compiles inside the image, whatever this host's Python is"


@dataclass(frozen=True)
class Host:
    """A host: its machine as `x86_64`, its Python as `3.11`, its glibc, and that Python's path."""

    machine: str
    python: str
    glibc: str
    interpreter: Path

    @staticmethod
    def here() -> Host:
        """Return this host, with the Python that runs the toolkit.

        Raises: HostError where there is no glibc: the compiler's wheels need it.
        """
        try:
            glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
        except (ValueError, IndexError, OSError) as error:
            raise HostError(
                "the compiler does not run on this host",
                got=platform.platform(),
                expected="Linux with glibc",
                remedy="compile on such a host; the cubins are the same everywhere",
            ) from error
        # Not sys.executable, which is a virtual environment's.
        interpreter = getattr(sys, "_base_executable", None) or sys.executable
        return Host(
            machine=platform.machine(),
            python=f"{sys.version_info[0]}.{sys.version_info[1]}",
            glibc=glibc,
            interpreter=Path(os.path.realpath(interpreter)),
        )

    @staticmethod
    def of(interpreter: Path) -> Host:
        """Return this host with another Python; of a virtual environment, the one it is made with.

        Raises: HostError when it does not run, or its C library is not glibc.
        """
        done = run([str(interpreter), "-I", "-c", QUESTION])
        told = json_report(done.stdout)
        if not told:
            raise HostError(
                f"{interpreter} does not run, or not with glibc",
                where="--python",
                got=last_words(done, 1),
                remedy="name another Python with --python",
            )
        return Host(
            told["machine"], told["python"], told["glibc"], Path(os.path.realpath(told["base"]))
        )

    @property
    def platform(self) -> Platform | None:
        """Return the platform as the lock names it, or None for one that it does not know."""
        return next((p for p, machine in MACHINE.items() if machine == self.machine), None)


@dataclass(frozen=True)
class Purpose:
    """What a stack on this host is for, in the words of its errors.

    `verb` is what is done ("compile"), `with_it` what is done with Triton ("compile with"),
    `elsewhere` how to do it with another Python.
    """

    verb: str
    with_it: str
    elsewhere: str


COMPILE = Purpose("compile", "compile with", IN_THE_IMAGE)


def compiler_stack(lock: Lock, host: Host, request: Request, find_fork: FindFork) -> Stack:
    """Return the stack of a compiler that runs on `host`. Pure but for `find_fork`.

    Of `request` the CUDA line, the flavour and the architectures count: platform and Python are
    the host's. The fork is looked for when all else is known to fit.
    Raises: UsageError as make_stack does; HostError when the lock has no Triton for this host,
    or Triton-distributed was asked for and there is none that runs here.
    """
    return host_stack(lock, host, replace(request, torch="none"), find_fork, COMPILE)


def host_stack(
    lock: Lock, host: Host, request: Request, find_fork: FindFork, purpose: Purpose
) -> Stack:
    """Return the stack of `request` for the host itself, in place of an image's base.

    Raises: as compiler_stack.
    """
    _require_closure(lock, host, request, purpose)
    platform = host.platform
    assert platform is not None
    own = replace(
        request,
        platform=platform,
        python=host.python,
        base=HOST_BASE,
        base_facts=BaseFacts(str(host.interpreter), host.glibc),
        fork=None,
    )
    stack = make_stack(lock, own)
    if stack.flavour == "stock":
        return stack
    fork = find_fork()
    if fork is None:
        named = [
            f"{w.name} (Python {w.python or 'as tagged'})" for w in lock.triton_distributed.wheels
        ]
        recorded = ", ".join(named)
        raise HostError(
            f"no Triton-distributed for Python {host.python} to {purpose.with_it}",
            where="--wheel",
            expected="FILE, or URL#sha256=HEX",
            got=f"the lock records {recorded}" if recorded else "",
            remedy=f"name its wheel with --wheel FILE; or {purpose.with_it} the stock release, "
            "--triton stock",
        )
    if not runs_on(fork, host.python, platform, host.glibc):
        raise HostError(
            f"{fork.source.name} does not run on this host",
            where="--wheel",
            expected=f"a wheel for Python {host.python}, {platform}, glibc {host.glibc} or older",
            got=f"one for Python {fork.source.python or 'as tagged'}, "
            f"{fork.machine or 'any machine'}, glibc {fork.source.glibc or 'any'} or newer",
            remedy=f"{purpose.elsewhere}; or run the verb with Python {fork.source.python}",
        )
    return make_stack(lock, replace(own, fork=fork))


def fitting_pythons(lock: Lock, request: Request) -> set[tuple[str, str]] | None:
    """Return the Pythons and platforms that the lock holds `request` for. Pure.

    None for a CUDA line that it does not know.
    """
    line = lock.lines.get(request.cuda)
    if line is None:
        return None
    stock = request.triton == "stock"
    return {
        (c.python, c.platform)
        for c in lock.closures
        if c.torch == request.torch
        and c.set == line.set
        and not (stock and any(m.startswith("triton==") for m in c.missing))
    }


def _require_closure(lock: Lock, host: Host, request: Request, purpose: Purpose) -> None:
    fitting = fitting_pythons(lock, request)
    # Of what the lock does not know at all make_stack tells.
    if not fitting or (host.python, host.platform) in fitting:
        return
    torch = "" if request.torch == "none" else f" with torch {request.torch}"
    raise HostError(
        f"the lock holds no Triton{torch} for Python {host.python} on {host.machine}",
        where="versions.lock: closures",
        expected=", ".join(sorted(f"Python {p} on {platform}" for p, platform in fitting)),
        remedy=f"{purpose.verb} on a host that has one of these; or {purpose.elsewhere}",
    )


def refuse_wheel_of_stock(request: Request, source: ForkSource) -> None:
    """Refuse a Triton-distributed wheel for the stock flavour. Raises: UsageError."""
    if source.wheel and request.triton == "stock":
        raise UsageError(
            "the stock release is not what the wheel is",
            where="--triton stock --wheel",
            remedy="leave one of them out",
        )
