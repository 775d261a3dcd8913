"""The constraints that an environment carries: what is written, and what is read back."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tdstack.verify.environment import Environment
from tdstack.verify.triton.constraints import (
    check_constraints,
    constraints_path,
    constraints_text,
    for_installers,
    pip_conf_text,
)

OURS = Path("/env/share/tdstack/constraints.txt")
VERSION = "3.4.0+dist.0123abcd"


@pytest.mark.parametrize(
    ("present", "inherited", "files"),
    [
        ("", (), [str(OURS)]),
        ("", ("/etc/c.txt",), ["/etc/c.txt", str(OURS)]),
        ("[global]\nindex-url = x\n", (), [str(OURS)]),
        ("[install]\nno-deps = 1\n", ("/etc/c.txt",), ["/etc/c.txt", str(OURS)]),
        # One of its own hides the outer ones already.
        ("[install]\nconstraint = mine.txt\n", ("/etc/c.txt",), ["mine.txt", str(OURS)]),
        ("[install]\nconstraint=a\n  b\n[x]\ny = 1\n", (), ["a", "b", str(OURS)]),
        (f"[install]\nconstraint =\n    {OURS}\n", (), [str(OURS)]),
    ],
)
def test_the_constraints_are_named_beside_what_was_there(
    present: str, inherited: tuple[str, ...], files: list[str]
) -> None:
    text = pip_conf_text(present, OURS, inherited)
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    assert parser.get("install", "constraint").split() == files
    assert pip_conf_text(text, OURS, inherited) == text
    before = configparser.RawConfigParser()
    before.read_string(present)
    for section in before.sections():
        for key, value in before.items(section):
            if (section, key) != ("install", "constraint"):
                assert parser.get(section, key) == value


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_constraints_below_a_path_with_a_space_are_read(tmp_path: Path, tool: str) -> None:
    constraints = tmp_path / "my env" / "constraints.txt"
    constraints.parent.mkdir()
    constraints.write_text(constraints_text(VERSION))
    conf = tmp_path / "pip.conf"
    conf.write_text(pip_conf_text("", constraints))
    python = [sys.executable, "-m", tool, *(["pip"] if tool == "uv" else [])]
    done = subprocess.run(
        [*python, "install", "--no-deps", "--no-index", "--dry-run", "triton==3.5.0"],
        env={
            **os.environ,
            "PIP_CONFIG_FILE": str(conf),
            "UV_CONSTRAINT": for_installers(constraints),
            "VIRTUAL_ENV": sys.prefix,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert f"triton=={VERSION}" in done.stdout + done.stderr


def test_comments_and_order_of_a_pip_conf_stay() -> None:
    present = (
        "# the mirror\n[global]\nindex-url = x  # here\n\n[install]\n; as asked\nno-deps = 1\n"
    )
    text = pip_conf_text(present, OURS)
    added = ["constraint =", f"    {OURS}"]
    assert [line for line in text.splitlines() if line not in added] == present.splitlines()


def environment(prefix: Path) -> Environment:
    return Environment(prefix, prefix / "bin/python", "3.11", (prefix,), prefix / "bin", "2.36")


def test_each_thing_that_is_missing_is_told(tmp_path: Path) -> None:
    path, conf = constraints_path(tmp_path), tmp_path / "pip.conf"

    def detail() -> str:
        (found,) = check_constraints(environment(tmp_path), VERSION)
        assert found.ok or found.remedy
        return found.detail

    assert detail() == f"{path} is not there"
    path.parent.mkdir(parents=True)
    path.write_text(constraints_text("3.4.0+dist.ffffffff"))
    assert detail() == f"{path} does not hold triton {VERSION}"
    path.write_text(constraints_text(VERSION))
    assert detail() == f"{conf} does not name {path}"
    conf.write_text("[install\n")
    assert detail() == f"{conf} does not name {path}"
    conf.write_text(pip_conf_text("", path))
    assert detail().startswith(f"pip holds triton=={VERSION}")


def test_pip_itself_reads_what_is_written(tmp_path: Path) -> None:
    conf = tmp_path / "pip.conf"
    conf.write_text(pip_conf_text("[global]\ntimeout = 7\n", OURS, ("/etc/other.txt",)))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={"PIP_CONFIG_FILE": str(conf), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"install.constraint='\\n/etc/other.txt\\n{OURS}'" in done.stdout
    assert "global.timeout='7'" in done.stdout
