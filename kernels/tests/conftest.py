"""Tests run against the sources beside them, installed or not, and import each other's helpers."""

import contextlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src"
sys.path.insert(0, str(HERE))
if SOURCES.is_dir():
    sys.path.insert(0, str(SOURCES))

from bundles import Compiled, compile_selection  # noqa: E402


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A bundle of some variants, compiled once. Not to be written to."""
    return compile_selection(tmp_path_factory.mktemp("bundle"))


def pytest_addoption(parser: pytest.Parser) -> None:
    # In a checkout tests/ add it, too.
    with contextlib.suppress(ValueError):
        parser.addoption("--by-hand", action="store_true", help="also run what takes minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--by-hand", default=False):
        return
    for item in items:
        if item.get_closest_marker("by_hand"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: --by-hand runs it"))
