"""The constraints that an environment carries, so that no install replaces its Triton.

pip reads `pip.conf` of the environment that it installs into; uv reads the variable
UV_CONSTRAINT. Both then refuse another Triton with a message that names the constraint.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Sequence
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
    """Return a pip.conf that names the constraints beside what was there; other lines stay.

    `inherited` are constraint files of pip's outer configuration: pip takes this setting from
    the nearest file alone, so they would be lost. Pure.
    """
    lines = present.splitlines()
    head = next((n for n, line in enumerate(lines) if line.strip() == "[install]"), None)
    if head is None:
        lines += [*([""] if lines else []), "[install]"]
        head = len(lines) - 1
    first, last = _setting(lines, head)
    own = _files(lines[first:last])
    files = dict.fromkeys([*(own or inherited), for_installers(constraints)])
    lines[first:last] = ["constraint =", *(f"    {file}" for file in files)]
    return "\n".join(lines) + "\n"


def for_installers(constraints: Path) -> str:
    """Return a path as pip and uv take it: both split at spaces, which an address has none of."""
    return constraints.as_uri() if " " in str(constraints) else str(constraints)


def _setting(lines: Sequence[str], head: int) -> tuple[int, int]:
    """Return the lines of `constraint` in the section that begins at `head`, or where it may go."""
    for n in range(head + 1, len(lines)):
        if lines[n].startswith("["):
            break
        if re.match(r"constraint\s*[=:]", lines[n]):
            end = n + 1
            while end < len(lines) and re.match(r"[ \t]+\S", lines[end]):
                end += 1
            return n, end
    return head + 1, head + 1


def _files(lines: Sequence[str]) -> list[str]:
    return [word for line in lines for word in re.sub(r"^constraint\s*[=:]", "", line).split()]


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
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string((environment.prefix / "pip.conf").read_text())
        named = parser.get("install", "constraint", fallback="").split()
    except (OSError, configparser.Error):
        named = []
    if for_installers(path) not in named:
        yield failed("constraints", f"{environment.prefix}/pip.conf does not name {path}", remedy)
    else:
        yield passed("constraints", f"pip holds triton=={version}; uv with UV_CONSTRAINT={path}")
