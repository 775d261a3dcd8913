"""What this host can run a compiler with, and which files of the lock that takes."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tdstack.errors import HostError
from tdstack.fork.fit import runs_on
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import Lock, Platform
from tdstack.stack import BaseFacts, Request, Stack, make_stack
from tdstack.tags import MACHINE

FindFork = Callable[[], ForkWheel | None]
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

    @property
    def platform(self) -> Platform | None:
        """Return the platform as the lock names it, or None for one that it does not know."""
        return next((p for p, machine in MACHINE.items() if machine == self.machine), None)


def compiler_stack(lock: Lock, host: Host, request: Request, find_fork: FindFork) -> Stack:
    """Return the stack of a compiler that runs on `host`. Pure but for `find_fork`.

    Of `request` the CUDA line, the flavour and the architectures count: platform and Python are
    the host's. The fork is looked for when all else is known to fit.
    Raises: UsageError as make_stack does; HostError when the lock has no Triton for this host,
    or Triton-distributed was asked for and there is none that runs here.
    """
    _require_triton(lock, host, request)
    platform = host.platform
    assert platform is not None
    own = replace(
        request,
        torch="none",
        platform=platform,
        python=host.python,
        base="host",
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
            f"no Triton-distributed for Python {host.python} to compile with",
            where="--wheel",
            expected="FILE, or URL#sha256=HEX",
            got=f"the lock records {recorded}" if recorded else "",
            remedy="name its wheel with --wheel FILE; or compile with the stock release, "
            "--triton stock",
        )
    if not runs_on(fork, host.python, platform, host.glibc):
        raise HostError(
            f"{fork.source.name} does not run on this host",
            where="--wheel",
            expected=f"a wheel for Python {host.python}, {platform}, glibc {host.glibc} or older",
            got=f"one for Python {fork.source.python or 'as tagged'}, "
            f"{fork.machine or 'any machine'}, glibc {fork.source.glibc or 'any'} or newer",
            remedy=f"{IN_THE_IMAGE}; or run the verb with Python {fork.source.python}",
        )
    return make_stack(lock, replace(own, fork=fork))


def _require_triton(lock: Lock, host: Host, request: Request) -> None:
    line = lock.lines.get(request.cuda)
    held = [c for c in lock.closures if c.torch == "none" and line and c.set == line.set]
    stock = request.triton == "stock"
    fitting = {
        (c.python, c.platform)
        for c in held
        if not (stock and any(m.startswith("triton==") for m in c.missing))
    }
    if line is None or (host.python, host.platform) in fitting:
        return  # of an unknown line make_stack tells
    raise HostError(
        f"the lock holds no Triton for Python {host.python} on {host.machine}",
        where="versions.lock: closures",
        expected=", ".join(sorted(f"Python {p} on {platform}" for p, platform in fitting)),
        remedy=f"compile on a host that has one of these; or {IN_THE_IMAGE}",
    )
