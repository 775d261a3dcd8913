"""The folder that an install works in: a killed one's goes, a live one's stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tdstack.prefix.scratch import scratch
from tdstack.wheelhouse.store import Store

ROOT = Path("/opt/tdstack/prefix")  # of two hosts that share a store


def an_install(store: Store, root: Path) -> tuple[int, Path]:
    """Start a process that is at work, as on another host; return it and its folder."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        with scratch(store, root) as folder:
            (folder / "half").write_text("a wheel in the making")
            os.write(writes, os.fsencode(folder) + b"\n")
            signal.pause()
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        return child, Path(os.fsdecode(stream.readline().rstrip()))


def end(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_what_a_live_install_works_on_stays_and_what_a_killed_one_left_goes(store: Store) -> None:
    live, folder = an_install(store, ROOT)
    try:
        with scratch(store, ROOT) as own:
            assert own != folder
            assert (folder / "half").is_file()
        assert not own.parent.exists()
        assert (folder / "half").is_file()
    finally:
        end(live)
    assert (folder / "half").is_file()
    with scratch(store, ROOT):
        assert not folder.parent.exists()


def test_another_prefix_is_left_alone(store: Store) -> None:
    killed, folder = an_install(store, Path("/srv/other"))
    end(killed)
    with scratch(store, ROOT):
        assert (folder / "half").is_file()
