"""Choosing an engine by trying what each can do, and saying why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tdstack.engines.base import Engine, Probe
from tdstack.engines.buildah import Buildah
from tdstack.errors import HostError, UsageError


def _probe_docker() -> Probe:
    from tdstack.engines.docker import Docker  # its client library takes 0.2 s to import

    return Docker.probe()


def _make_docker() -> Engine:
    from tdstack.engines.docker import Docker

    return Docker()


# In the order of preference: without a daemon there is one thing less to be missing.
PROBES: Mapping[str, Callable[[], Probe]] = {"buildah": Buildah.probe, "docker": _probe_docker}
MAKERS: Mapping[str, Callable[[], Engine]] = {"buildah": Buildah, "docker": _make_docker}


@dataclass(frozen=True)
class Choice:
    """The chosen engine and the reason in words."""

    engine: Engine
    reason: str


def choose_engine(wanted: str) -> Choice:
    """Return the engine called `wanted`, or for `auto` the first that works here.

    Raises: UsageError for an unknown name; HostError with every probe's answer when none
    works.
    """
    if wanted != "auto" and wanted not in PROBES:
        raise UsageError(
            f"unknown engine {wanted!r}", where="--engine", expected=", ".join(["auto", *PROBES])
        )
    answers: list[Probe] = []
    for name in PROBES if wanted == "auto" else [wanted]:
        answer = PROBES[name]()
        answers.append(answer)
        if answer.usable:
            skipped = "".join(f"; {a.name}: {a.reason}" for a in answers[:-1])
            how = "asked for" if wanted != "auto" else "first that works"
            return Choice(MAKERS[name](), f"{name} ({answer.reason}; {how}{skipped})")
    raise HostError(
        "no container engine works on this host",
        got="; ".join(f"{a.name}: {a.reason}" for a in answers),
        remedy="as root, scripts/bootstrap.sh installs buildah; or start a Docker daemon",
    )
