"""Installs into prefixes, run by a user without rights, from checkouts with few kernels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tdstack.compiler.host import HOST_BASE
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.stack import BaseFacts, Request, make_stack
from tdstack.workspace import Workspace
from tests.checkouts import TABLE, copy_checkout
from tests.conftest import ROOT

USER = 12345
SMALL = ("--triton=stock", "--torch=none", "--arch=sm_90")
# One kernel for each type of operand and form of call, compiled once for all of these tests.
ONE_RULE = """
[[rule]]
algorithm = "one_shot"
world_sizes = [8]
max_tokens = 16
tile = [16, 128, 128, 3, 8]
"""
PROBE = """
import subprocess, sys
code = "import invoke, sys; open(sys.argv[1])"
sys.exit(subprocess.run([sys.executable, "-c", code, sys.argv[1]]).returncode)
"""


@cache
def as_user() -> tuple[str, ...]:
    """Return the words that run a command as a user without rights.

    Where that user cannot reach this Python (root's own folder), the user may read all, and write
    no more than before.
    """
    if os.geteuid():
        return ()
    plain = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    reading = [*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for words in (plain, reading):
        # In a child of a child: only that one has no more rights than all that follow.
        probe = [*words, sys.executable, "-c", PROBE]
        done = subprocess.run([*probe, str(ROOT / "tasks.py")], capture_output=True, check=False)
        if done.returncode == 0:
            return tuple(words)
    pytest.skip("a user without rights cannot reach this checkout or its Python")


def owned(folder: Path) -> Path:
    """Give a folder to that user."""
    if not os.geteuid():
        os.chown(folder, USER, USER)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        told = json.loads(self.out)
        assert isinstance(told, dict)
        return told


@dataclass(frozen=True)
class Site:
    """A user with a home and a store, and two checkouts that differ by the files of one layer.

    `folder` is the user's.
    """

    folder: Path
    first: Path
    second: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("TRITON", "XDG", "PYTHON"))
        }
        home = {"HOME": str(self.folder), "TDSTACK_CACHE": str(self.folder / "cache")}
        # Nothing listens there: what would have to be fetched ends the verb with 5.
        offline = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": ""}
        return {**kept, **home, **offline, "TMPDIR": str(self.folder)}

    def command(self, *words: str) -> list[str]:
        return [*as_user(), *words]

    def run(self, *words: str, cwd: Path | None = None, **variables: str) -> Ended:
        done = subprocess.run(
            self.command(*words),
            cwd=cwd or self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def invoke(self, *words: str, checkout: Path | None = None, **variables: str) -> Ended:
        at = checkout or self.first
        return self.run(sys.executable, "-m", "invoke", *words, cwd=at, **variables)

    def start(self, *words: str, checkout: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(sys.executable, "-m", "invoke", *words),
            cwd=checkout,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def install(self, prefix: Path, *words: str, checkout: Path | None = None) -> dict[str, Any]:
        named = f"--prefix={prefix}"
        ended = self.invoke("install", *(words or SMALL), named, "--json", checkout=checkout)
        assert ended.code == 0, ended.err
        return ended.report


@contextmanager
def a_site() -> Iterator[Site]:
    """Make one; its store has what the small install needs, and nothing can be fetched."""
    # pytest's own folders are closed to other users.
    root = Path(tempfile.mkdtemp(prefix="tdstack-prefix-"))
    try:
        root.chmod(0o755)
        first = copy_checkout(ROOT, root / "first")
        (first / TABLE).write_text(ONE_RULE)
        second = root / "second"
        shutil.copytree(first, second)
        with (second / "tdstack" / "verify" / "finding.py").open("a") as file:
            file.write("# a newer release\n")
        site = Site(owned_folder(root / "home"), first, second)
        fill(site, "none")
        yield site
    finally:
        shutil.rmtree(root)


def needed(torch: str) -> list[LockedFile]:
    """Return the files of an install with this torch."""
    lock = load_lock(ROOT)[0]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    facts = BaseFacts(sys.executable, "2.36")
    request = Request("12.4", "stock", torch, python=python, base=HOST_BASE, base_facts=facts)
    return [p.file for p in make_stack(lock, request).all_packages() if p.file]


def fill(site: Site, torch: str) -> None:
    """Give the user's store what an install with this torch needs."""
    files = needed(torch)
    here = Workspace.here()
    here.fetch(files)
    blobs = owned_folder(owned_folder(site.folder / "cache") / "blobs")
    for file in files:
        _link_or_copy(here.store.path(file), blobs / file.sha256)


def owned_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return owned(folder)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def tree(folder: Path, *, content: bool = False) -> dict[str, object]:
    """Return what lies below a folder: kind, mode, size and time; with `content` also bytes."""
    found: dict[str, object] = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.lstat()
        kind = os.readlink(path) if path.is_symlink() else state.st_mode
        size = state.st_size if path.is_file() else 0
        data = path.read_bytes() if content and path.is_file() else b""
        found[str(path.relative_to(folder))] = (kind, size, state.st_mtime_ns, data)
    return found


def in_use(prefix: Path) -> str:
    """Return the key that `current` names; it must lead to a version."""
    assert (prefix / "current" / "share" / "tdstack" / "install.json").is_file()
    return Path(os.readlink(prefix / "current")).name
