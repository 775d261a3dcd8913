"""Tests that share something run in one process: what they import and are marked with says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.halves import ENGINES, RANKS, group_of, order_of

FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("tests", "kernels/tests", "smoke_tests")
    for path in (ROOT / folder).glob("test_*.py")
)
SHARED = re.compile(
    r"mark\.engine|from tests\.(?:registries|registry_faults|registry_logins|engine_stores|fleet"
    r"|slurm_cluster|ssh_hosts|compiled) import|plain_registry|running_registry"
)
STARTS_RANKS = re.compile(r"\bPool\(|smoke_tests\.(?:pool|launch)\b|_shm\(\)")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_shares_something_is_in_its_group(path: Path) -> None:
    text = (ROOT / path).read_text()
    group = group_of(path)
    if path.name == "test_halves.py":
        assert group == "halves"
    elif SHARED.search(text):
        assert group == ENGINES
    elif STARTS_RANKS.search(text) or path.parts[0] != "tests":
        assert group == RANKS


def test_the_long_groups_begin_first() -> None:
    groups = {group_of(path) for path in FILES}
    assert len(groups) > 50
    assert sorted(groups, key=lambda group: (order_of(group), group))[:2] == [ENGINES, RANKS]
