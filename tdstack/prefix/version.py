"""One version of a prefix: made beside the others, and whole from the moment it has its name."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tdstack.assemble.bundle import MANIFEST
from tdstack.assemble.compiler import check_manifest
from tdstack.assemble.cubins import cubins_wheel
from tdstack.assemble.entries import Entry, arrange, from_bytes
from tdstack.assemble.layer import venv_config
from tdstack.compiler.environment import Compiler
from tdstack.compiler.host import Host
from tdstack.compiler.job import compile_job
from tdstack.compiler.run import check_bundle, run_compiler
from tdstack.console import Stopwatch
from tdstack.cpython import unpack
from tdstack.errors import CheckFailed
from tdstack.lock.model import LockedFile
from tdstack.plan import PREFIX, Plan
from tdstack.prefix.bytecode import compile_version, listed
from tdstack.prefix.contents import Contents
from tdstack.prefix.environment import run_time
from tdstack.prefix.place import Prefix, sync_folder
from tdstack.prefix.record import PLACE, Record, read_record
from tdstack.prefix.scratch import scratch
from tdstack.prefix.shells import activate_version
from tdstack.prefix.tree import Written, size_of, write_tree
from tdstack.space import check_room
from tdstack.stack import CPYTHON_PLACE
from tdstack.workspace import Workspace

# Raise it when this package lays out a version in another way for the same plan.
FORMAT = 1
# Of bytes that are written, for bytecode, which takes as much as its sources.
BYTECODE = 1.05
EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


@dataclass(frozen=True)
class Target:
    """A version to be made: its plan, its Python, and its folder's name."""

    plan: Plan
    host: Host
    key: str

    @staticmethod
    def of(plan: Plan, host: Host) -> Target:
        """Return the target; the name stands for all that decides what is in the folder. Pure."""
        own = "own" if plan.stack.cpython else str(host.interpreter)
        question = json.dumps([FORMAT, plan.final.key, own])
        return Target(plan, host, hashlib.sha256(question.encode()).hexdigest()[:20])


def make_version(
    workspace: Workspace, prefix: Prefix, target: Target, say: Callable[[str], None]
) -> tuple[Written, dict[str, float]]:
    """Make a version, in place of one of the same name; its wheels are in the store.

    Returns what was written and the seconds of each step.
    Raises: IntegrityError for bytes that are not the lock's; HostError for what this host lacks;
    CheckFailed when a kernel does not compile.
    """
    return _Making(workspace, prefix, target, say).make()


class _Making:
    def __init__(
        self, workspace: Workspace, prefix: Prefix, target: Target, say: Callable[[str], None]
    ) -> None:
        self._workspace, self._prefix, self._target, self._say = workspace, prefix, target, say
        self._plan = target.plan
        self._final = prefix.versions / target.key
        prefix.staging.mkdir(exist_ok=True)
        # A name of its own: what a killed install had started may write to the old one a moment.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{target.key}-", dir=prefix.staging))
        self._folder.chmod(0o755)
        self._watch = Stopwatch()

    def make(self) -> tuple[Written, dict[str, float]]:
        plan = self._plan
        store, root = self._workspace.store, self._workspace.root
        contents = Contents(plan, store, root, self._final, self._target.host.interpreter)
        with self._watch.step("read"):
            early = arrange(contents.early())
        donors = self._donors()
        new = size_of(e for e in early if e.content.wheel not in donors)
        check_room(self._folder, int(new * BYTECODE), "for this version")
        with self._watch.step("write"):
            done = write_tree(early, self._folder, donors)
            if plan.stack.cpython:
                self._own_python()
        with self._watch.step("compile"), scratch(self._workspace.store, self._prefix.root) as work:
            own = self._compile(work)
        known = {entry.path: entry for entry in early}
        late = arrange([*early, *contents.kernels(own)])
        done += write_tree([e for e in late if e.path not in known], self._folder, {})
        with self._watch.step("bytecode"):
            compile_version(self._folder, self._others())
        self._describe(late)
        with self._watch.step("publish"):
            _sync_disk(self._folder)
            publish(self._folder, self._final, self._prefix.trash)
        return done, self._watch.seconds

    def _donors(self) -> dict[Path, list[Path]]:
        wheels = {f.sha256: self._workspace.store.path(f) for f in self._plan.files}
        found: dict[Path, list[Path]] = {}
        for key in self._prefix.version_keys():
            version = self._prefix.versions / key
            record = read_record(version)
            for sha256 in record.wheels if record else ():
                if sha256 in wheels:
                    found.setdefault(wheels[sha256], []).append(version)
        return found

    def _others(self) -> list[Path]:
        """Return the versions whose bytecode this one's Python can read."""
        versions = (self._prefix.versions / key for key in self._prefix.version_keys())
        python = self._plan.stack.python
        return [v for v in versions if (r := read_record(v)) and r.python == python]

    def _own_python(self) -> None:
        cpython = self._plan.stack.cpython
        assert cpython is not None
        place = self._folder / CPYTHON_PLACE.removeprefix(f"{PREFIX}/")
        place.mkdir(mode=0o755)
        unpack(self._workspace.store.verify(cpython.file), cpython.root, place)
        self._write_config(self._folder)

    def _write_config(self, version: Path) -> None:
        """Say where the version's own Python is: it must run here, and then there."""
        python = self._plan.stack.python
        (self._folder / "pyvenv.cfg").write_text(venv_config(python, f"{version}/python/bin"))

    def _compile(self, folder: Path) -> tuple[LockedFile, LockedFile]:
        """Compile with the very Triton and ptxas of the version, as in an image."""
        plan, workspace = self._plan, self._workspace
        site = self._folder / plan.site.removeprefix(f"{PREFIX}/")
        compiler = Compiler(
            folder=self._folder,
            python=self._folder / "bin" / "python",
            ptxas=site / plan.stack.line.ptxas,
            files=(),
            forked=plan.stack.flavour == "distributed",
        )
        self._say(f"compiling {sum(plan.cubins.values())} cubins: {', '.join(plan.cubins)}")
        wheel, job = compile_job(workspace, plan.stack, folder)
        run_compiler(compiler, job, folder, lambda line: self._say(f"  {line}"))
        manifest = json.loads((job.out / MANIFEST).read_text())
        check_manifest(manifest, plan.stack, plan.cubins, str(self._folder))
        findings = check_bundle(compiler, job)["findings"]
        if findings:
            raise CheckFailed(
                f"the kernels were compiled, and {len(findings)} checks of them failed",
                where=str(self._folder),
                got="; ".join(str(f["what"]) for f in findings[:5]),
            )
        cubins = cubins_wheel(job.out, plan.stack.cuda, workspace.root, folder, workspace.store)
        return wheel, cubins

    def _describe(self, entries: list[Entry]) -> None:
        plan, target = self._plan, self._target
        ours = run_time(plan, self._final)
        record = Record(
            key=target.key,
            plan=plan.final.key,
            cuda=plan.stack.cuda,
            triton=plan.stack.flavour,
            torch=plan.stack.torch,
            python=plan.stack.python,
            interpreter="python" if plan.stack.cpython else str(target.host.interpreter),
            archs=tuple(plan.stack.archs),
            driver_floor=plan.stack.line.driver_floor,
            lock_slice=plan.lock_slice,
            wheels=tuple(sorted({e.content.wheel.name for e in entries if e.content.wheel})),
            environment=ours.fixed,
            cached=ours.cached,
        )
        if plan.stack.cpython:
            self._write_config(self._final)
        own = {PLACE: record.text(), Path("bin/activate"): activate_version(self._final, record)}
        extra = [from_bytes(str(path), text.encode()) for path, text in own.items()]
        write_tree(arrange([*extra, listed(self._folder)]), self._folder, {})


def publish(made: Path, final: Path, trash: Path) -> None:
    """Give a version its name; a broken one of that name goes away in the same step."""
    final.parent.mkdir(exist_ok=True)
    if final.exists() and not _exchange(made, final):
        trash.mkdir(exist_ok=True)
        final.rename(trash / final.name)
    if made.exists() and not final.exists():
        made.rename(final)
    sync_folder(final.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return whether this system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at = -100  # AT_FDCWD
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename and rename(at, names[0], at, names[1], EXCHANGE) == 0)


def _sync_disk(folder: Path) -> None:
    """Bring everything onto the disk before it has a name: a power cut must not leave holes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(handle)
    finally:
        os.close(handle)
