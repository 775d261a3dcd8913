"""The options of the node's agent. Standard library only."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack.kubernetes.api import CREDENTIALS
from tdstack.kubernetes.patch import Checked


@dataclass(frozen=True)
class Given:
    """What the options say; times in seconds."""

    server: str
    credentials: Path
    node: str
    checked: Checked
    checks: tuple[tuple[str, tuple[str, ...]], ...]
    tolerated: frozenset[str]
    state: Path
    interval_s: float
    limit_s: float


def given_of(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> Given:
    """Return what the command line says, with the API server that the kubelet's variables name.

    Raises: SystemExit with code 2 for what does not fit.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    server = given.server or server_of(environment)
    if not server.startswith("https://"):
        parser.error("no API server: this runs in a pod, or with --server https://HOST:PORT")
    return Given(
        server,
        given.credentials,
        given.node,
        Checked(given.line, given.image, given.taint == "on"),
        tuple(given.check),
        frozenset(name for names in given.tolerate for name in names.split(",") if name),
        given.state,
        given.interval_s,
        given.limit_s,
    )


def server_of(environment: Mapping[str, str]) -> str:
    """Return the API server's address as a pod gets it, of IPv4 or IPv6; empty without. Pure."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    return f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tdstack.kubernetes.agent", allow_abbrev=False)
    parser.add_argument("--node", required=True, help="name of the node that this pod runs on")
    parser.add_argument("--image", required=True, help="the image, by digest")
    parser.add_argument("--line", required=True, help="the CUDA line, such as cu124")
    check = "NAME=COMMAND, which prints findings as JSON; repeatable"
    parser.add_argument("--check", type=_check, action="append", required=True, help=check)
    tolerate = "findings that make no node unfit, with commas between them; repeatable"
    parser.add_argument("--tolerate", action="append", default=[], help=tolerate)
    parser.add_argument("--taint", choices=("on", "off"), default="on", help="off: label only")
    parser.add_argument("--interval-s", type=_seconds, default=3600.0, help="between checks")
    parser.add_argument("--limit-s", type=_seconds, default=600.0, help="for each check")
    parser.add_argument("--state", type=Path, required=True, help="folder for the probes' files")
    parser.add_argument("--server", default="", help="default: as the kubelet says")
    parser.add_argument("--credentials", type=Path, default=CREDENTIALS, help="ca.crt, token")
    return parser


def _check(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not (name.isidentifier() and equals and words):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return name, words


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e8:
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return value
