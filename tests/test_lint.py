"""Which files `invoke lint` looks at, and that the linters of YAML and Ansible find faults."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdstack.lint import commands, run, shell_scripts, yaml_files
from tests.conftest import ROOT


def test_shell_scripts_are_known_by_name_or_by_their_first_line(tmp_path: Path) -> None:
    (scripts := tmp_path / "scripts/slurm").mkdir(parents=True)
    for name, first in {
        "a.sh": "true",
        "b.sbatch": "#!/bin/bash -l",
        "c": "#!/usr/bin/env bash",
        "d": "#!/bin/sh",
        "e": "#!/usr/bin/env python3",
        "f": "# bash",
        "g": "",
    }.items():
        (scripts / name).write_text(first + "\n")
    (scripts / "h").write_bytes(b"\x7fELF\0")
    (left := tmp_path / "scripts/.venv").mkdir()
    (left / "activate").write_text("#!/bin/sh\n")
    found = [path.name for path in shell_scripts(tmp_path)]
    assert found == ["a.sh", "b.sbatch", "c", "d", "run"]
    assert ROOT / "scripts/bootstrap.sh" in shell_scripts(ROOT)


def test_every_yaml_file_of_the_checkout_is_read() -> None:
    found = yaml_files(ROOT)
    assert {".github/workflows/ci.yml", ".yamllint", "scripts/ansible/site.yml"} <= {*found}
    assert not [name for name in found if ".venv" in name]


@pytest.fixture
def stdin_that_does_not_block() -> Iterator[None]:
    """Read from a pipe as a CI job may; Ansible would not start with it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    before = os.dup(0)
    os.dup2(reading, 0)
    yield
    os.dup2(before, 0)
    for each in (before, reading, writing):
        os.close(each)


@pytest.mark.parametrize(
    ("linter", "text", "told"),
    [
        ("yamllint", "a: 1\na: 2\n", "key-duplicates"),
        ("ansible-lint", "- hosts: all\n  tasks:\n    - shell: ls\n", "fqcn"),
    ],
)
@pytest.mark.usefixtures("stdin_that_does_not_block")
def test_a_fault_is_found(linter: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "scripts/ansible").mkdir(parents=True)
    (tmp_path / "scripts/ansible/play.yml").write_text(text)
    (tmp_path / ".yamllint").write_text((ROOT / ".yamllint").read_text())
    config = "scripts/ansible/.ansible-lint"
    (tmp_path / config).write_text((ROOT / config).read_text())
    done = run(commands(tmp_path, fix=False)[linter], tmp_path, subprocess.PIPE)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
