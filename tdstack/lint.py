"""`invoke lint`: every linter over every file that it understands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tdstack.console import say
from tdstack.errors import CheckFailed, HostError


def lint(root: Path, *, fix: bool) -> None:
    """Run all linters; all of them, even when one fails.

    Raises: CheckFailed naming the linters that found something; HostError for a missing one.
    """
    failed = []
    for name, command in commands(root, fix).items():
        say(f"{name}: {' '.join(command[1:4])} ...")
        try:
            done = subprocess.run(command, cwd=root, check=False)
        except FileNotFoundError as error:
            raise HostError(f"{name} is missing", remedy="run scripts/bootstrap.sh") from error
        if done.returncode:
            failed.append(name)
    if failed:
        raise CheckFailed("linters found something", where=", ".join(failed))


def commands(root: Path, fix: bool) -> dict[str, list[str]]:
    """Return the command of every linter."""
    programs = Path(sys.executable).parent
    checked = [] if fix else ["--check"]
    shell = sorted([*map(str, root.glob("scripts/**/*.sh")), str(root / ".ci/run")])
    docker = sorted(map(str, root.glob("**/*Dockerfile")))
    return {
        "ruff": [str(programs / "ruff"), "check", *(["--fix"] if fix else []), "."],
        "ruff format": [str(programs / "ruff"), "format", *checked, "."],
        "mypy": [str(programs / "mypy")],
        "shellcheck": [str(programs / "shellcheck"), *shell],
        "hadolint": [str(programs / "hadolint"), *docker],
        "pages": [sys.executable, "-m", "tdstack.troubleshooting.pages", *checked],
        # Offline: some of its audits would ask a service about every action.
        "zizmor": [str(programs / "zizmor"), "--offline", "--quiet", str(root / ".github")],
    }
