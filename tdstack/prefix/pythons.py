"""Which Python of this host a prefix is made with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tdstack.compiler.host import Host, fitting_pythons
from tdstack.errors import HostError, UsageError
from tdstack.lock.model import Lock
from tdstack.stack import CPython, Request
from tdstack.tags import numbers

OTHERS = (
    "install one; or bring one along with --cpython ARCHIVE, a stand-alone CPython, "
    "which needs nothing of the host but glibc"
)


def find_host(lock: Lock, request: Request, wanted: str) -> Host:
    """Return this host with the Python that `wanted` names: `3.N`, a path, or empty for any.

    Empty: the Python that runs the toolkit if the lock has wheels for it, else one on PATH. A
    stand-alone CPython of the request goes before all of these.
    Raises: UsageError for what names no Python; HostError when there is none that fits.
    """
    if request.cpython:
        return _own(request.cpython)
    if "/" in wanted:
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise UsageError("no such interpreter", where=f"--python {wanted}")
        return Host.of(path.absolute())
    if wanted and not re.fullmatch(r"3\.\d+", wanted):
        raise UsageError(
            "that names no Python", where=f"--python {wanted}", expected="3.11, or a path"
        )
    here = Host.here()
    fitting = fitting_pythons(lock, request)
    held = {python for python, platform in fitting or () if platform == here.platform}
    if not held and not wanted:
        return here  # what is wrong with the request is told where the stack is made
    for host in _on_this_host(here, [wanted] if wanted else sorted(held, key=numbers)):
        if host.python == wanted or (not wanted and host.python in held):
            return host
    raise HostError(
        f"no Python {wanted} on this host" if wanted else "no Python on this host fits the lock",
        where="PATH",
        expected=" or ".join(f"python{p}" for p in ([wanted] if wanted else sorted(held))),
        got=f"Python {here.python}, {here.interpreter}",
        remedy=OTHERS,
    )


def _on_this_host(here: Host, minors: list[str]) -> Iterator[Host]:
    yield here
    for minor in minors:
        for place in (None, "/usr/bin:/usr/local/bin"):
            if found := shutil.which(f"python{minor}", path=place):
                try:
                    yield Host.of(Path(found))
                except HostError:  # a version manager's stand-in for one that is not there
                    continue


def _own(cpython: CPython) -> Host:
    """Return this host with the stand-alone CPython.

    Raises: HostError when it does not run here.
    """
    here = Host.here()
    old = numbers(cpython.glibc or "0") > numbers(here.glibc)
    if old or cpython.machine != here.machine:
        raise HostError(
            f"{cpython.file.name} does not run on this host",
            where="--cpython",
            expected=f"one for {here.machine}, glibc {here.glibc} or older",
            got=f"one for {cpython.machine}, glibc {cpython.glibc or 'any'} or newer",
        )
    return replace(here, python=cpython.python)
