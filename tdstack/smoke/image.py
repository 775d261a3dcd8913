"""`invoke smoke --image`: the same checks inside a built image, on what the image holds.

Only the checkout's smoke_tests/ goes in, read-only; gemm_allreduce, cubins, Triton and NVSHMEM are
the image's own. pytest is no part of an image: the packages of this environment's pytest, which
are pure Python and pinned by hash, go in behind everything that the image has.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tdstack.engines.base import Engine, Mount, Resources, RunRequest, RunResult, StoredImage
from tdstack.errors import HostError, UpstreamError, UsageError
from tdstack.plan import PREFIX

USER: Final = "12345:0"
"""An arbitrary user of group 0, as OpenShift and many clusters give one."""
SHM: Final = 1 << 30
"""Bytes of /dev/shm. The ranks are in one container, so the host's IPC namespace is not needed."""
STACK: Final = 64 << 20
LIMIT_S: Final = 3600.0
CHECKS, TOOLS, OUT = "/smoke/smoke_tests", "/smoke/tools", "/smoke/out"
# The checks import tdstack.verify: in an image that is what its tdstack-verify runs.
TOOLKIT, VERIFY = "/smoke/tdstack", f"/{PREFIX}/lib/tdstack_verify"
PYTHON: Final = f"/{PREFIX}/bin/python"

# Appended, not put in front: where the image has one of these packages, it keeps its own.
_BOOT: Final = (
    f"import sys; sys.path.append({TOOLS!r}); import os; os.dup2(2, 1); import pytest; "
    "sys.exit(pytest.main(sys.argv[1:]))"
)
_PROBE: Final = """
import importlib.metadata as m, json
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in ("gemm-allreduce", "torch")}))
"""


@dataclass(frozen=True)
class Inside:
    """An image that checks can run in."""

    engine: Engine
    ref: str
    stored: StoredImage
    torch: str | None
    gpus: bool

    @property
    def place(self) -> str:
        """Return what the report calls it: by digest, or by id where it has no digest."""
        name = self.ref.partition("@")[0]
        if self.stored.digest:
            return f"image {name}@{self.stored.digest}"
        return f"image {name}, id {self.stored.id}"


def find_image(root: Path, engine: Engine, ref: str, gpus: bool) -> Inside:
    """Return the image, pulled if it is not there.

    Raises: UpstreamError when it cannot be had; HostError when it is none of tdstack's; UsageError
    when it holds other kernels than this checkout's checks are for.
    """
    stored = engine.image(ref)
    if stored is None:
        try:
            ref = engine.pull(ref)
        except UpstreamError as error:
            raise UpstreamError(
                error.what, where="--image", got=error.got, remedy=error.remedy
            ) from error
        stored = engine.image(ref)
        assert stored is not None
    done = engine.run(RunRequest(ref, [PYTHON, "-c", _PROBE], user=USER))
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise HostError(
            f"the image has no Python that runs at {PYTHON}",
            where=f"--image {ref}",
            got=(done.stderr or done.stdout)[-300:],
            remedy="name an image that `invoke build` made",
        ) from error
    wanted = kernels_version(root)
    if found["gemm-allreduce"] != wanted:
        raise UsageError(
            "the checks of this checkout are for other kernels than the image's",
            where=f"--image {ref}",
            expected=f"gemm_allreduce {wanted}",
            got=str(found["gemm-allreduce"]),
            remedy="build the image again, or take the checkout that it was built from",
        )
    return Inside(engine, ref, stored, found["torch"], gpus)


def kernels_version(root: Path) -> str:
    """Return the version of the checkout's gemm_allreduce."""
    text = (root / "kernels/src/gemm_allreduce/__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert match is not None
    return match[1]


def host_gpus() -> int:
    """Return how many NVIDIA GPUs this host has."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def run_checks(
    inside: Inside,
    root: Path,
    options: Sequence[str],
    out: Path,
    say: Callable[[str], None],
    limit_s: float = LIMIT_S,
) -> RunResult:
    """Run pytest on the checkout's checks in the image; what it writes to /smoke/out goes to `out`.

    `options` are pytest's, with paths as the container sees them. pytest's words go to `say`.
    Raises: HostError and TimeLimitError as `Engine.run`.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-image-") as folder, tools() as packages:
        written = Path(folder, "out")
        written.mkdir()
        written.chmod(0o777)
        toolkit = Path(folder, "tdstack")
        toolkit.mkdir()
        (toolkit / "__init__.py").touch()
        (toolkit / "verify").symlink_to(VERIFY)
        Path(folder).chmod(0o755)
        mounts = (
            Mount(root / "smoke_tests", CHECKS),
            Mount(packages, TOOLS),
            Mount(toolkit, TOOLKIT),
            Mount(written, OUT, writable=True),
        )
        request = request_for(inside, mounts, options, limit_s)
        try:
            return inside.engine.run(request, say)
        finally:
            for path in written.iterdir():
                shutil.copyfile(path, out / path.name)


def request_for(
    inside: Inside, mounts: Sequence[Mount], options: Sequence[str], limit_s: float = LIMIT_S
) -> RunRequest:
    """Render the run. Pure."""
    command = [PYTHON, "-c", _BOOT, CHECKS, f"--rootdir={CHECKS}"]
    # The checkout's pyproject.toml is not here: what it says for pytest is said again.
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", *options]
    return RunRequest(
        inside.ref,
        command,
        mounts=mounts,
        env={"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(CHECKS).parent)},
        user=USER,
        limit_s=limit_s,
        resources=Resources(SHM, STACK, locked_memory=inside.gpus, gpus=inside.gpus),
    )


@contextmanager
def tools() -> Iterator[Path]:
    """Yield a folder with pytest and what it needs, copied from this environment.

    Raises: HostError when one of them is missing, or is not pure Python.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-tools-") as folder:
        # Whatever rights the host's own environment gives, the container's user can read these.
        Path(folder).chmod(0o755)
        for name in closure("pytest"):
            _copy(name, Path(folder))
        yield Path(folder)


def closure(name: str) -> list[str]:
    """Return a distribution and all that it needs here, by name.

    Raises: HostError when one is not installed.
    """
    found: list[str] = []
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.append(name)
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError as error:
            raise HostError(
                f"{name} is not installed here", remedy="scripts/bootstrap.sh installs it"
            ) from error
        for text in needed:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name.lower())
    return sorted(found)


def _copy(name: str, folder: Path) -> None:
    for file in distribution(name).files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue  # a script of bin/, or what an import leaves
        if file.suffix in (".so", ".pyd"):
            raise HostError(
                f"{name} is not pure Python, and would not run in every image",
                got=str(file),
            )
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(file.locate()), target)
