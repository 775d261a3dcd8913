"""Triton-distributed from its sources: the pinned commit built into a wheel, once.

The sources are fetched by commit and checked against the pinned submodule; a virtual environment
with pinned build tools makes the wheel; packages that setup.py forgot are added from the sources.
setup.py itself downloads LLVM and NVIDIA's compiler tools; their versions are the commit's, and
only the result is pinned.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tdstack.errors import HostError, IntegrityError, UpstreamError
from tdstack.fork.acquire import built_earlier, built_link, take_file
from tdstack.fork.inspection import REMEDIES
from tdstack.fork.model import ForkWheel
from tdstack.fork.zipcopy import WheelWriter, info_folder, recorded_digests
from tdstack.lock.model import LockedTritonDistributed
from tdstack.process import find, last_words, run
from tdstack.verify.triton.fork import PACKAGES
from tdstack.wheelhouse.store import Store

TOOLS = Path(__file__).with_name("builder-requirements.lock")
REACH_LIMIT_S = 60
MakeBuilder = Callable[[Path], Path]


def build_from_commit(
    pinned: LockedTritonDistributed,
    store: Store,
    python: str,
    make_builder: MakeBuilder | None = None,
) -> ForkWheel:
    """Build the pinned commit into a wheel for Python `python`, once per commit.

    `make_builder` makes an environment with the build tools in a folder and returns its Python.
    Raises: UpstreamError when the sources cannot be had or do not build, with the other ways in;
    IntegrityError when the submodule is not the pinned one; HostError when the host has no such
    Python.
    """
    if earlier := built_earlier(pinned, store, python):
        return earlier
    git = find("git", "apt-get install git, or " + REMEDIES)
    with tempfile.TemporaryDirectory(dir=store.work()) as name:
        folder = Path(name)
        sources = _fetch(git, pinned, folder / "sources")
        builder = (make_builder or _builder_for(python))(folder / "builder")
        wheel = _build(builder, sources / pinned.subdirectory, folder / "dist", pinned)
        wheel = complete(wheel, sources / pinned.subdirectory, folder)
        # Before it is kept: a wheel that is refused must not stand in the way of the next build.
        fork = take_file(wheel, store, pinned, commit=pinned.commit)
        built = built_link(pinned, store, python)
        built.parent.mkdir(parents=True, exist_ok=True)
        kept = wheel.rename(built.with_name(wheel.name))
        # Renamed into place, so that two builds of one commit end alike.
        link = folder / built.name
        link.symlink_to(kept.name)
        link.replace(built)
    return fork


def complete(wheel: Path, sources: Path, folder: Path) -> Path:
    """Return a wheel with the Python files that lie in the sources and that setup.py left out.

    Only of the fork's own packages: what is generated or compiled cannot be copied. The wheel
    itself, if it lacks nothing.
    """
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
        lacking = [path for path in _python_files(sources) if path not in there]
        if not lacking:
            return wheel
        out = folder / "completed" / wheel.name
        out.parent.mkdir()
        info = info_folder(archive)
        digests = recorded_digests(archive, info)
        with WheelWriter(out, info) as target:
            for member in archive.infolist():
                if not member.is_dir() and not member.filename.startswith(f"{info}/RECORD"):
                    digest = digests.get(member.filename, "")
                    target.copy(archive, member, member.filename, digest)
            for path in lacking:
                target.add(path, (sources / path).read_bytes())
    return out


def _python_files(sources: Path) -> Iterator[str]:
    for package in PACKAGES[1:]:  # `triton` is a link to generated files
        for path in sorted((sources / package).rglob("*.py")):
            relative = path.relative_to(sources)
            if not {"test", "tests", "benchmark", "benchmarks", "__pycache__"} & set(
                relative.parts
            ):
                yield str(relative)


def _fetch(git: str, pinned: LockedTritonDistributed, sources: Path) -> Path:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return run([git, *words], environment={"GIT_TERMINAL_PROMPT": "0"})

    def must(*words: str) -> str:
        done = command("-C", str(sources), *words)
        if done.returncode:
            raise _unreachable(pinned, done.stderr)
        return done.stdout

    reach = run(
        [git, "ls-remote", "--exit-code", pinned.repository, "HEAD"],
        environment={"GIT_TERMINAL_PROMPT": "0"},
        limit_s=REACH_LIMIT_S,
    )
    if reach.returncode:
        raise _unreachable(pinned, reach.stderr)
    command("init", "--quiet", str(sources))
    shallow = ("fetch", "--quiet", "--depth", "1", pinned.repository, pinned.commit)
    # Not every server gives a single commit without its history.
    if command("-C", str(sources), *shallow).returncode:
        branches, tags = "+refs/heads/*:refs/remotes/pinned/*", "+refs/tags/*:refs/tags/*"
        must("fetch", "--quiet", pinned.repository, branches, tags)
    must("checkout", "--quiet", "--detach", pinned.commit)
    if pinned.submodule:
        listed = must("ls-tree", "HEAD", pinned.submodule)
        if pinned.submodule_commit not in listed:
            raise IntegrityError(
                f"{pinned.submodule} of the pinned commit is another one than the lock names",
                where=f"{pinned.repository} at {pinned.commit[:12]}",
                expected=pinned.submodule_commit,
                got=listed.strip() or "no such submodule",
                remedy="correct images/versions.toml and run `invoke lock`",
            )
    must("submodule", "--quiet", "update", "--init", "--recursive")
    return sources


def _unreachable(pinned: LockedTritonDistributed, words: str) -> UpstreamError:
    return UpstreamError(
        "the sources of Triton-distributed cannot be reached",
        where=f"{pinned.repository} at {pinned.commit[:12]}",
        got=words.strip()[-300:],
        remedy=REMEDIES,
    )


def _builder_for(python: str) -> MakeBuilder:
    def make(folder: Path) -> Path:
        interpreter = find(
            f"python{python}",
            f"install Python {python}, the image's, with its headers, or " + REMEDIES,
        )
        done = run([interpreter, "-m", "venv", str(folder)])
        if not done.returncode:
            pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet"]
            done = run([*pip, "--require-hashes", "--requirement", str(TOOLS)])
        if done.returncode:
            raise HostError(
                "the tools that build Triton-distributed could not be installed",
                where=str(TOOLS.name),
                got=last_words(done),
                remedy="check `pip config list` and the proxy, or " + REMEDIES,
            )
        return folder / "bin" / "python"

    return make


def _build(python: Path, project: Path, out: Path, pinned: LockedTritonDistributed) -> Path:
    command = [str(python), "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    environment = {
        "MAX_JOBS": str(jobs(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))),
        # setup.py looks for cmake and ninja on PATH.
        "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
        "USE_TRITON_DISTRIBUTED_AOT": "0",
    }
    done = run([*command, "--wheel-dir", str(out), str(project)], environment=environment)
    wheels = [p for p in out.glob("*.whl") if re.match(r"triton", p.name)]
    if done.returncode or len(wheels) != 1:
        raise UpstreamError(
            "Triton-distributed did not build from its sources",
            where=f"{pinned.repository} at {pinned.commit[:12]}",
            got=last_words(done),
            remedy=REMEDIES,
        )
    return wheels[0]


def jobs(free_bytes: int) -> int:
    """Return how many compilers may run at once: one of LLVM-heavy C++ takes about 3 GB. Pure."""
    return max(1, min(os.cpu_count() or 1, free_bytes // 3_000_000_000))
