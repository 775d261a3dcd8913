"""The workflows that test and publish: what they run is pinned, and they cover every CUDA line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdstack.lock.model import Lock
from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
each_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f.name)


@each_workflow
def test_every_action_is_named_by_its_commit(file: Path) -> None:
    actions = re.findall(r"uses:\s*(\S+)", file.read_text())
    assert actions
    assert [a for a in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", a)] == []


@each_workflow
def test_no_runner_floats_and_no_right_is_given_to_a_whole_workflow(file: Path) -> None:
    text = file.read_text()
    assert "-latest" not in text
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)


@each_workflow
def test_no_expression_is_pasted_into_a_script(file: Path) -> None:
    # What a stranger wrote into a branch's name would be run; the environment only holds it.
    steps = re.findall(
        r"^( +)run: (?:\|\n((?:\1 +.*\n|\n)*)|(.+)\n)", file.read_text(), re.MULTILINE
    )
    scripts = [block or line for _, block, line in steps]
    assert scripts
    assert [s for s in scripts if "${{" in s] == []


def test_every_line_is_published_in_each_flavour_that_it_has(lock: Lock) -> None:
    text = (ROOT / ".github/workflows/publish.yml").read_text()
    fork, stock = (re.findall(r'"([\d.]+)"', row) for row in re.findall(r"'(\[.*\])'", text))
    assert stock == [*lock.lines]
    assert fork == [name for name, line in lock.lines.items() if not line.experimental]


def test_secrets_are_only_handed_over_in_the_environment() -> None:
    text = (ROOT / ".github/workflows/publish.yml").read_text()
    uses = re.findall(r".*\$\{\{\s*secrets\..*", text)
    assert len(uses) == 3
    assert [u for u in uses if not re.fullmatch(r" +([A-Z_]+): \$\{\{ secrets\.\1 \}\}", u)] == []
