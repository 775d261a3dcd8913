"""Gives the groups of tests/halves.py to the processes of pytest-xdist."""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

from tests.halves import group_of


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc] # untyped
    """A group goes to one process, as a whole, and in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(PurePath(nodeid.partition("::")[0]))
