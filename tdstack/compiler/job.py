"""What a compiler on this host gets: the sources that the kernels' wheel installs."""

from __future__ import annotations

from pathlib import Path

from tdstack.assemble.kernels import kernels_wheel
from tdstack.assemble.unpack import unpack_wheel
from tdstack.compiler.run import CompileJob
from tdstack.lock.model import LockedFile
from tdstack.stack import Stack
from tdstack.workspace import Workspace


def compile_job(
    workspace: Workspace,
    stack: Stack,
    scratch: Path,
    jobs: int = 0,
    variants: tuple[str, ...] = (),
) -> tuple[LockedFile, CompileJob]:
    """Return the kernels' wheel, and the job that compiles what it installs.

    `scratch` gets the sources and the bundle; `jobs` and `variants` are those of the job.
    Raises: HostError when the build backend fails.
    """
    wheel = kernels_wheel(workspace.root, scratch, workspace.store)
    # Not the checkout's own files, which may be edited meanwhile.
    sources = scratch / "sources"
    unpack_wheel(workspace.store.path(wheel), wheel.name, sources, "", lambda _: False)
    cache, out = workspace.store.cubins(), scratch / "bundle"
    return wheel, CompileJob(stack.cuda, stack.archs, sources, out, cache, jobs, variants)
