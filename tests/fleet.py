"""Runs of the Ansible playbooks for tests: a source with two commits, an inventory, a recap."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdstack.compiler.host import HOST_BASE
from tdstack.lock.io import load_lock
from tdstack.stack import BaseFacts, Request, make_stack
from tdstack.workspace import Workspace
from tests.conftest import ROOT

PLAYBOOKS = ROOT / "scripts/ansible"
LIMIT_S = 600
_RECAP = re.compile(r"^(\S+)\s+: (ok=.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    """How a playbook ended."""

    code: int
    out: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Return the counts of each host."""
        rows = _RECAP.findall(self.out.partition("PLAY RECAP")[2])
        return {
            host: {k: int(v) for k, v in (p.split("=") for p in counts.split())}
            for host, counts in rows
        }

    def count(self, what: str) -> dict[str, int]:
        """Return one count of each host, such as `changed`."""
        return {host: counts[what] for host, counts in self.recap.items()}


@dataclass
class Fleet:
    """An inventory, and what all of its hosts have in common."""

    folder: Path
    hosts: dict[str, dict[str, Any]]
    variables: dict[str, Any] = field(default_factory=dict)

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Ran:
        """Run a playbook as an operator does, and return how it ended."""
        inventory = self.folder / "inventory.json"
        group = {"hosts": self.hosts, "vars": {**self.variables, **variables}}
        inventory.write_text(json.dumps({"tdstack": group}))
        program = Path(sys.executable).with_name("ansible-playbook")
        command = [str(program), "-i", str(inventory), playbook, *arguments]
        # In a folder of its own: neither the user's settings nor what others run decide.
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")},
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
        }
        log = self.folder / "playbook.log"
        with log.open("w") as stream:
            done = subprocess.run(
                command,
                cwd=PLAYBOOKS,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_S,
                check=False,
            )
        return Ran(done.returncode, log.read_text())


def source_of(folder: Path) -> Path:
    """Copy the files of the checkout's version control, as they are now, into a new repository."""
    names = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    _git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder, "first")
    return folder


def commit(source: Path, message: str) -> None:
    """Commit everything that is in the source."""
    _git(source, "add", "--all")
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    _git(source, *author, "commit", "--quiet", "--message", message)


def wheels_of(folder: Path) -> Path:
    """Bring the wheels of a node's tools, by hash, and pack them as an operator without network."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    command += ["--requirement", str(ROOT / "requirements-node.lock")]
    subprocess.run(command, check=True, capture_output=True)
    archive = folder / "wheels.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(wheels, ".")
    return archive


def fill_stores(folder: Path, names: Sequence[str]) -> None:
    """Fill a store for each host, `folder`/NAME, with the wheels of a prefix without torch."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    facts = BaseFacts(sys.executable, "2.36")
    request = Request(
        "12.4", "stock", "none", python=python, base=HOST_BASE, base_facts=facts, archs=("sm_80",)
    )
    stack = make_stack(load_lock(ROOT)[0], request)
    files = [package.file for package in stack.all_packages() if package.file]
    here = Workspace.here()
    here.fetch(files)
    first, *others = (folder / name / "blobs" for name in names)
    first.mkdir(parents=True)
    for file in files:
        shutil.copyfile(here.store.path(file), first / file.sha256)
    for other in others:
        shutil.copytree(first, other, copy_function=os.link)


def cluster_file(path: Path, **changes: str) -> Path:
    """Write a cluster file of the stock flavour without torch."""
    values = {
        "IMAGE": f"reg.example/team/tdstack@sha256:{'0' * 64}",
        "TAG": "cu124-py311-stock-no-torch-0123456789ab",
        "CUDA": "12.4",
        "TRITON": "stock",
        "TORCH": "none",
        "PYTHON": "3.11",
        "PLATFORM": "linux/amd64",
        "LOCK": "0" * 64,
        "DRIVER": "525.60.13",
        "VERSION": "0",
    }
    values |= changes
    path.write_text("".join(f"TDSTACK_{key}={value}\n" for key, value in values.items()))
    return path


def node_path() -> Mapping[str, str]:
    """Return the PATH of a node: a Python that can make environments goes first."""
    return {"PATH": f"{sys.base_prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
