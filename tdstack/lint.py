"""`invoke lint`: every linter over every file that it understands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tdstack.console import say
from tdstack.errors import CheckFailed, HostError

SHELLS: Final = (b"sh", b"bash", b"dash")
_IN_ANSIBLE: Final = ("--project-dir", "scripts/ansible")
_YAML: Final = ("*.yml", "*.yaml", ".yamllint", ".ansible-lint")
# Not of the checkout: environments, caches, what a build or a run leaves.
_NOT_OURS: Final = frozenset({".venv", ".git", ".ansible", "dist", "smoke-reports", "__pycache__"})


def lint(root: Path, *, fix: bool) -> None:
    """Run all linters; all of them, even when one fails.

    Raises: CheckFailed naming the linters that found something; HostError for a missing one.
    """
    failed = []
    for name, command in commands(root, fix).items():
        say(f"{name}: {' '.join(command[1:4])} ...")
        try:
            done = run(command, root)
        except FileNotFoundError as error:
            raise HostError(f"{name} is missing", remedy="run scripts/bootstrap.sh") from error
        if done.returncode:
            failed.append(name)
    if failed:
        raise CheckFailed("linters found something", where=", ".join(failed))


def run(
    command: list[str], root: Path, output: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one linter; `output` is where both its streams go (default: where ours go)."""
    return subprocess.run(
        command,
        cwd=root,
        env=environment(root),
        # Ansible refuses to start with a stdin that does not block, as a job's may be.
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
        check=False,
    )


def commands(root: Path, fix: bool) -> dict[str, list[str]]:
    """Return the command of every linter."""
    programs = Path(sys.executable).parent
    checked = [] if fix else ["--check"]
    shell = [str(file) for file in shell_scripts(root)]
    docker = sorted(map(str, root.glob("**/*Dockerfile")))
    return {
        "ruff": [str(programs / "ruff"), "check", *(["--fix"] if fix else []), "."],
        "ruff format": [str(programs / "ruff"), "format", *checked, "."],
        "mypy": [str(programs / "mypy")],
        "shellcheck": [str(programs / "shellcheck"), *shell],
        "hadolint": [str(programs / "hadolint"), *docker],
        "yamllint": [str(programs / "yamllint"), "--strict", *yaml_files(root)],
        "ansible-lint": [str(programs / "ansible-lint"), "-q", "--nocolor", *_IN_ANSIBLE],
        "pages": [sys.executable, "-m", "tdstack.pages", *checked],
        # Offline: some of its audits would ask a service about every action.
        "zizmor": [str(programs / "zizmor"), "--offline", "--quiet", str(root / ".github")],
    }


def environment(root: Path) -> dict[str, str]:
    """Return the environment of the linters: their own programs first, one place for caches."""
    programs = Path(sys.executable).parent
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    # ansible-lint would make a folder in the checkout, and read what the user installed.
    return {**os.environ, "PATH": path, "ANSIBLE_HOME": str(root / ".ansible")}


def shell_scripts(root: Path) -> list[Path]:
    """Return the shell scripts below scripts/, by suffix or first line, and what CI runs."""
    found = [file for file in _files(root / "scripts") if file.suffix == ".sh" or _is_shell(file)]
    return [*sorted(found), root / ".ci/run"]


def yaml_files(root: Path) -> list[str]:
    """Return every YAML file of the checkout, relative to its root."""
    found = {file for pattern in _YAML for file in _files(root, pattern)}
    return sorted(str(file.relative_to(root)) for file in found)


def _files(folder: Path, pattern: str = "*") -> Iterator[Path]:
    for path in folder.rglob(pattern):
        if path.is_file() and not _NOT_OURS.intersection(path.parts):
            yield path


def _is_shell(file: Path) -> bool:
    with file.open("rb") as stream:
        first = stream.readline(200)
    # `#!/bin/sh -e` or `#!/usr/bin/env bash`.
    words = first[2:].split()[:2] if first.startswith(b"#!") else []
    return any(word.rpartition(b"/")[2] in SHELLS for word in words)
