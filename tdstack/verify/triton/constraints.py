"""The constraints that an environment carries, so that no install replaces its Triton.

pip reads `pip.conf` of the environment that it installs into; uv reads the variable
UV_CONSTRAINT. Both then refuse another Triton with a message that names the constraint.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path

from ..environment import Environment
from ..finding import Finding, failed, passed


def constraints_path(prefix: Path) -> Path:
    """Return where the constraints of an environment lie."""
    return prefix / "share" / "tdstack" / "constraints.txt"


def constraints_text(version: str) -> str:
    """Return the constraints that hold a relabelled Triton-distributed of `version`."""
    return (
        "# Triton-distributed is installed as triton. Another Triton would overwrite its files;\n"
        "# to change it on purpose, install it with the toolkit, which changes this file too.\n"
        f"triton=={version}\ntriton-dist=={version}\n"
    )


def pip_conf_text(present: str, constraints: Path, inherited: tuple[str, ...] = ()) -> str:
    """Return a pip.conf that names the constraints beside what was there.

    `inherited` are constraint files of pip's outer configuration: pip takes this setting from
    the nearest file alone, so they would be lost. Pure.
    """
    parser = _parser()
    parser.read_string(present)
    if not parser.has_section("install"):
        parser.add_section("install")
    own = parser.get("install", "constraint", fallback="").split()
    files = dict.fromkeys([*(own or inherited), str(constraints)])
    parser.set("install", "constraint", "\n" + "\n".join(files))
    lines = [
        line
        for section in parser.sections()
        for line in [f"[{section}]", *(f"{k} = {_folded(v)}" for k, v in parser.items(section)), ""]
    ]
    return "\n".join(lines)


def check_constraints(environment: Environment, version: str) -> Iterator[Finding]:
    """The environment's constraints hold its Triton, and its pip reads them."""
    path = constraints_path(environment.prefix)
    remedy = "tdstack-verify --fix writes them"
    try:
        lines = path.read_text().split()
    except OSError:
        yield failed("constraints", f"{path} is not there", remedy)
        return
    if f"triton=={version}" not in lines:
        yield failed("constraints", f"{path} does not hold triton {version}", remedy)
        return
    parser = _parser()
    try:
        parser.read_string((environment.prefix / "pip.conf").read_text())
        named = parser.get("install", "constraint", fallback="").split()
    except (OSError, configparser.Error):
        named = []
    if str(path) not in named:
        yield failed("constraints", f"{environment.prefix}/pip.conf does not name {path}", remedy)
    else:
        yield passed("constraints", f"pip holds triton=={version}; uv with UV_CONSTRAINT={path}")


def _parser() -> configparser.RawConfigParser:
    return configparser.RawConfigParser(strict=False)


def _folded(value: str) -> str:
    return value.replace("\n", "\n    ")
