"""A Python environment on disk: its interpreter and the folders that packages lie in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 180
# Asked of the environment's own interpreter: only it knows where a distribution's patches, a
# venv or a user site put packages.
QUESTION = """
import json, os, site, sys, sysconfig
sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
if site.ENABLE_USER_SITE:
    sites.insert(0, site.getusersitepackages())
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "sites": [s for s in dict.fromkeys(sites) if os.path.isdir(s)],
    "scripts": sysconfig.get_path("scripts"),
    "include": sysconfig.get_path("include"),
    "glibc": os.confstr("CS_GNU_LIBC_VERSION").split()[-1],
    "managed": sys.prefix == sys.base_prefix and os.path.exists(
        os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    ),
}))
"""


class NoEnvironmentError(Exception):
    """The folder is no Python environment, or its interpreter does not run."""


@dataclass(frozen=True)
class Answer:
    """What a program printed; `status` 6 stands for no answer within LIMIT_S seconds."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """Return the last line of stderr: for a traceback, the error itself."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else f"exit status {self.status}"


@dataclass(frozen=True)
class Environment:
    """One environment. `sites` are its package folders, in the order of sys.path.

    `managed` says that its packages belong to the system's package manager (PEP 668); `include` is
    where Python.h of its Python belongs.
    """

    prefix: Path
    python: Path
    version: str
    sites: tuple[Path, ...]
    scripts: Path
    glibc: str
    managed: bool = False
    include: Path = Path()

    @property
    def site(self) -> Path:
        """Return the folder that installers write to."""
        return self.sites[0]

    def run(self, code: str, variables: Mapping[str, str] | None = None) -> Answer:
        """Run `code` in the environment's interpreter, away from the caller's own settings."""
        return ask([str(self.python), "-c", code], variables)


def find_environment(prefix: Path) -> Environment:
    """Describe the environment whose bin/python is under `prefix`.

    Raises: NoEnvironmentError saying what is missing.
    """
    # Through a link, what its files link to would seem to lie outside.
    prefix = Path(os.path.realpath(prefix))
    python = prefix / "bin" / "python"
    if not python.exists() and not (python := prefix / "bin" / "python3").exists():
        raise NoEnvironmentError(f"{prefix} has no bin/python")
    answer = ask([str(python), "-c", QUESTION])
    try:
        told = json.loads(answer.out)
    except ValueError:
        raise NoEnvironmentError(f"{python} does not run: {answer.last_line}") from None
    return Environment(
        prefix=prefix,
        python=python,
        version=told["version"],
        sites=tuple(Path(s) for s in told["sites"]),
        scripts=Path(told["scripts"]),
        glibc=told["glibc"],
        include=Path(told["include"]),
        managed=told["managed"],
    )


def ask(command: list[str], variables: Mapping[str, str] | None = None) -> Answer:
    """Run a program of the environment and return its answer, whatever it is.

    The caller's PYTHON* variables are left out: they would describe another environment.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            command,
            env={**kept, **(variables or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(6, "", f"no answer in {LIMIT_S} s")
    except OSError as error:
        return Answer(126, "", str(error))
    return Answer(done.returncode, done.stdout, done.stderr)
