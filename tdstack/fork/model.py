"""Triton-distributed as data: where it is to come from, and what it is once it is there."""

from __future__ import annotations

from dataclasses import dataclass

from tdstack.lock.model import LockedFile, LockedForkWheel


@dataclass(frozen=True)
class ForkSource:
    """Where Triton-distributed is to come from.

    `wheel` is a path or URL#sha256=HEX, empty to look around; `incomplete` takes a wheel that
    lacks packages of its own.
    """

    wheel: str = ""
    incomplete: bool = False


ANYWHERE = ForkSource()


@dataclass(frozen=True)
class ForkWheel:
    """Triton-distributed as it is installed: `file` is named `triton`, with a local version.

    `alias` is metadata under the name `triton-dist`; `source` is the wheel as it was built, and
    `complete` says whether it has every package that its own code imports, and `requires` what it
    requires of others.
    """

    file: LockedFile
    version: str
    alias: LockedFile
    source: LockedForkWheel
    machine: str = ""
    complete: bool = True
    requires: tuple[str, ...] = ()
