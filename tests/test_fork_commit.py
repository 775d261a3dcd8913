"""Triton-distributed built from its commit: repositories on 127.0.0.1, builds that take no time."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tdstack.errors import ExitCode, HostError, IntegrityError, TdstackError, UpstreamError
from tdstack.fork.acquire import fork_wheel
from tdstack.fork.commit import build_from_commit, complete, jobs
from tdstack.fork.facts import read_facts
from tdstack.fork.inspection import inspect
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import LockedTritonDistributed
from tdstack.verify.triton.fork import LIBRARY
from tdstack.wheelhouse.store import Store, sha256_of
from tests.odd_wheels import odd_wheel
from tests.triton_wheels import FORK_FILES

SUBMODULE = "3rdparty/triton"
# Gives the wheel that lies beside it, and notes how it was called.
BACKEND = """
import json, os, pathlib, shutil, subprocess
here = pathlib.Path(__file__).parent
def build_wheel(folder, settings=None, metadata=None):
    count = subprocess.run(["git", "rev-list", "--count", "HEAD"], capture_output=True, text=True)
    told = {"commits": int(count.stdout), "here": str(here), "jobs": os.environ.get("MAX_JOBS"),
            "aot": os.environ.get("USE_TRITON_DISTRIBUTED_AOT"), "path": os.environ["PATH"],
            "submodule": (here.parent / "3rdparty/triton/own.txt").exists()}
    pathlib.Path(os.environ["NOTES"]).write_text(json.dumps(told))
    (made,) = here.glob("*.whl")
    shutil.copy(made, folder)
    return made.name
"""
FAILING = "def build_wheel(*a, **k):\n    raise RuntimeError('the compiler ran out of room')\n"
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@dataclass
class Upstream:
    """Repositories below `folder`, served as files: git's protocol without shallow fetches."""

    folder: Path
    address: str
    notes: Path
    commits: dict[str, str] = field(default_factory=dict)

    def git(self, name: str, *words: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(self.folder / name), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(
        self, name: str, files: Mapping[str, bytes | str], submodule: tuple[str, str] | None = None
    ) -> str:
        """Add files to a repository, and a submodule (name, commit); return the new commit."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir(parents=True)
            self.git(name, "init", "-q", "-b", "main")
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data.encode() if isinstance(data, str) else data)
        if submodule:
            other, commit = submodule
            (folder / ".gitmodules").write_text(
                f'[submodule "x"]\n\tpath = {SUBMODULE}\n\turl = {self.address}/{other}/.git\n'
            )
            self.git(name, "update-index", "--add", "--cacheinfo", f"160000,{commit},{SUBMODULE}")
        self.git(name, "add", *files, *([".gitmodules"] if submodule else []))
        self.git(name, "commit", "-q", "--allow-empty", "-m", "x")
        self.publish(name)
        return self.git(name, "rev-parse", "HEAD")

    def publish(self, name: str) -> None:
        self.git(name, "update-server-info")

    def pinned(self, name: str, commit: str, **more: str) -> LockedTritonDistributed:
        return LockedTritonDistributed.model_validate(
            {
                "repository": f"{self.address}/{name}/.git",
                "commit": commit,
                "submodule_commit": "0" * 40,
                "base_version": "3.4.0",
                "sets": ["cu12"],
                "wheels": [],
                **more,
            }
        )

    def told(self) -> dict[str, object]:
        """What the build noted."""
        data: dict[str, object] = json.loads(self.notes.read_text())
        return data


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    folder = tmp_path / "upstream"
    folder.mkdir()
    handler = functools.partial(_Files, directory=str(folder))
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
    thread.start()
    yield Upstream(folder, f"http://127.0.0.1:{listening.server_port}", tmp_path / "notes")
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return odd_wheel(tmp_path / "given")


def project(wheel: Path, at: str = "", backend: str = BACKEND) -> dict[str, bytes | str]:
    return {
        f"{at}backend.py": backend,
        f"{at}pyproject.toml": PROJECT,
        f"{at}{wheel.name}": wheel.read_bytes(),
    }


def build(pinned: LockedTritonDistributed, store: Store) -> ForkWheel:
    return build_from_commit(pinned, store, "3.11", lambda folder: Path(sys.executable))


def nothing_left(store: Store) -> bool:
    return [*store.work().iterdir(), *(store.root / "blobs").iterdir()] == [] and not (
        store.root / "built"
    ).exists()


# ---------------------------------------------------------------------------------- fetching


def test_setup_in_a_subdirectory_with_a_submodule_that_matches(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    submodule = upstream.commit("sub", {"own.txt": "x"})
    commit = upstream.commit("main", project(wheel, "python/"), ("sub", submodule))
    pinned = upstream.pinned(
        "main", commit, subdirectory="python", submodule=SUBMODULE, submodule_commit=submodule
    )
    fork = build(pinned, store)
    assert fork.source.sha256 == sha256_of(wheel)
    assert fork.source.commit == commit
    told = upstream.told()
    assert str(told["here"]).endswith("/sources/python")
    assert told["submodule"] is True, "the submodule's files are there when it is built"
    assert list(store.work().iterdir()) == []
    assert fork_wheel(pinned, [], store, python="3.11") == fork


@pytest.mark.parametrize("how", ["another commit", "no submodule there"])
def test_a_submodule_that_is_not_the_pinned_one_ends_with_exit_code_4(
    upstream: Upstream, wheel: Path, store: Store, how: str
) -> None:
    pinned_one = upstream.commit("sub", {"own.txt": "x"})
    other = upstream.commit("sub", {"own.txt": "y"})
    own = ("sub", other) if how == "another commit" else None
    commit = upstream.commit("main", project(wheel), own)
    pinned = upstream.pinned("main", commit, submodule=SUBMODULE, submodule_commit=pinned_one)
    with pytest.raises(IntegrityError, match=SUBMODULE) as caught:
        build(pinned, store)
    assert caught.value.code == ExitCode.INTEGRITY
    assert caught.value.expected == pinned_one
    assert (other if own else "no such submodule") in caught.value.got
    assert not upstream.notes.exists(), "it was not built"
    assert nothing_left(store)


def test_a_server_without_shallow_fetches_gives_a_commit_of_another_branch(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    upstream.commit("main", {"readme": "1"})
    upstream.git("main", "checkout", "-q", "-b", "release")
    commit = upstream.commit("main", project(wheel))
    upstream.commit("main", {"readme": "later"})
    upstream.git("main", "checkout", "-q", "main")
    upstream.publish("main")
    fork = build(upstream.pinned("main", commit), store)
    assert fork.source.commit == commit
    assert upstream.told()["commits"] == 2, "with its history: nothing else is on offer"


def test_a_server_with_shallow_fetches_gives_one_commit_alone(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    upstream.commit("main", {"readme": "1"})
    commit = upstream.commit("main", project(wheel))
    repository = f"file://{upstream.folder}/main"
    build(upstream.pinned("main", commit, repository=repository), store)
    assert upstream.told()["commits"] == 1


def test_a_commit_that_is_not_there_ends_with_exit_code_5(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    upstream.commit("main", project(wheel))
    with pytest.raises(UpstreamError, match="cannot be reached") as caught:
        build(upstream.pinned("main", "1" * 40), store)
    assert "111111111111" in caught.value.where
    assert "--wheel FILE" in caught.value.remedy
    assert nothing_left(store)


def test_a_submodule_out_of_reach_ends_with_exit_code_5(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    submodule = upstream.commit("sub", {"own.txt": "x"})
    commit = upstream.commit("main", project(wheel), ("sub", submodule))
    shutil.rmtree(upstream.folder / "sub")
    pinned = upstream.pinned("main", commit, submodule=SUBMODULE, submodule_commit=submodule)
    with pytest.raises(UpstreamError) as caught:
        build(pinned, store)
    assert SUBMODULE in caught.value.got
    assert nothing_left(store)


# ---------------------------------------------------------------------------------- building


def test_the_build_is_told_how_many_compilers_may_run(
    upstream: Upstream, wheel: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_JOBS", "999")
    build(upstream.pinned("main", upstream.commit("main", project(wheel))), store)
    told = upstream.told()
    assert 1 <= int(str(told["jobs"])) <= (os.cpu_count() or 1)
    assert told["aot"] == "0"
    assert str(told["path"]).split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("processors", "free_bytes", "expected"),
    [
        (8, 0, 1),
        (8, 2_999_999_999, 1),
        (8, 3_000_000_000, 1),
        (8, 6_000_000_000, 2),
        (8, 24_000_000_000, 8),
        (8, 1 << 50, 8),
        (1, 1 << 50, 1),
        (None, 1 << 50, 1),
    ],
)
def test_as_many_compilers_run_as_fit_in_memory_and_as_there_are_processors(
    monkeypatch: pytest.MonkeyPatch, processors: int | None, free_bytes: int, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert jobs(free_bytes) == expected


def test_a_build_that_fails_ends_with_exit_code_5_and_its_last_words(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    commit = upstream.commit("main", project(wheel, backend=FAILING))
    with pytest.raises(UpstreamError, match="did not build") as caught:
        build(upstream.pinned("main", commit), store)
    assert caught.value.code == ExitCode.UPSTREAM
    assert "the compiler ran out of room" in caught.value.got
    assert "--wheel FILE" in caught.value.remedy
    assert nothing_left(store)
    # The next try is not held up by the last one.
    fixed = upstream.commit("main", project(wheel))
    assert build(upstream.pinned("main", fixed), store).source.commit == fixed


def test_a_build_that_makes_another_distribution_is_a_failure(
    upstream: Upstream, tmp_path: Path, store: Store
) -> None:
    other = odd_wheel(tmp_path / "x", name="other", metadata="Name: other\nVersion: 3.4.0\n")
    commit = upstream.commit("main", project(other))
    with pytest.raises(UpstreamError, match="did not build"):
        build(upstream.pinned("main", commit), store)
    assert nothing_left(store)


def test_a_build_that_makes_stock_triton_is_refused(
    upstream: Upstream, tmp_path: Path, store: Store
) -> None:
    stock = odd_wheel(tmp_path / "x", {LIBRARY: bytes(FORK_FILES[LIBRARY])[:-20]})  # type: ignore[arg-type]
    commit = upstream.commit("main", project(stock))
    with pytest.raises(IntegrityError, match="stock Triton"):
        build(upstream.pinned("main", commit), store)
    assert nothing_left(store)
    # Nor does it stand in the way once the build is mended.
    assert fork_wheel(upstream.pinned("main", commit), [], store) is None


@pytest.mark.parametrize("python", ["3.99"])
def test_a_python_that_the_host_lacks_ends_with_exit_code_3(
    upstream: Upstream, wheel: Path, store: Store, python: str
) -> None:
    pinned = upstream.pinned("main", upstream.commit("main", project(wheel)))
    with pytest.raises(HostError, match=rf"python{python}") as caught:
        build_from_commit(pinned, store, python)
    assert "--wheel FILE" in caught.value.remedy
    assert nothing_left(store)


def test_whatever_the_builder_raises_leaves_nothing(
    upstream: Upstream, wheel: Path, store: Store
) -> None:
    pinned = upstream.pinned("main", upstream.commit("main", project(wheel)))

    def interrupted(folder: Path) -> Path:
        folder.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_from_commit(pinned, store, "3.11", interrupted)
    assert nothing_left(store)


# -------------------------------------------------------------------------------- completing

FORGOTTEN = {
    "triton_dist/language/core.py": "",
    "triton_dist/language/tma/__init__.py": "x = 1\n",
    "little_kernel/__init__.py": "",
}
LEFT = {
    "triton_dist/test/test_a.py": "",
    "triton_dist/tests/a.py": "",
    "triton_dist/kernels/nvidia/benchmark/a.py": "",
    "triton_dist/benchmarks/a.py": "",
    "triton_dist/kernels/__pycache__/a.py": "",
    "triton_dist/kernels/a.cu": "",
    "triton/generated.py": "",
    "other/a.py": "",
    "setup.py": "",
}


def test_packages_that_setup_forgot_are_in_the_wheel_and_tests_are_not(
    upstream: Upstream, tmp_path: Path, store: Store
) -> None:
    lacking = odd_wheel(tmp_path / "given", {"triton_dist/language/core.py": None})
    assert inspect(read_facts(lacking), "3.4.0").refused != ()
    sources = {f"python/{n}": text for n, text in {**FORGOTTEN, **LEFT}.items()}
    commit = upstream.commit("main", {**project(lacking, "python/"), **sources})
    fork = build(upstream.pinned("main", commit, subdirectory="python"), store)
    assert fork.complete
    assert fork.source.name == lacking.name
    with zipfile.ZipFile(store.path(fork.file)) as archive:
        names = set(archive.namelist())
        assert archive.read("triton_dist/language/tma/__init__.py") == b"x = 1\n"
    assert set(FORGOTTEN) <= names
    assert names.isdisjoint(LEFT)
    out = tmp_path / fork.file.name
    shutil.copy(store.path(fork.file), out)
    found = inspect(read_facts(out), "3.4.0")
    assert [f.detail for f in found.findings if f.check == "whole"] == [
        "every file has the bytes that RECORD says"
    ]


def test_a_wheel_that_lacks_nothing_stays_as_it_was_built(wheel: Path, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    for name in ("triton_dist/language/core.py", "triton_dist/__init__.py"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text("# unlike the wheel's")
    before = sha256_of(wheel)
    assert complete(wheel, sources, tmp_path) == wheel
    assert sha256_of(wheel) == before


def test_what_the_wheel_has_is_not_replaced_from_the_sources(wheel: Path, tmp_path: Path) -> None:
    for name in ("triton_dist/__init__.py", "triton_dist/more.py"):
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# from the sources")
    made = complete(wheel, tmp_path / "sources", tmp_path)
    assert made.name == wheel.name
    with zipfile.ZipFile(made) as new, zipfile.ZipFile(wheel) as old:
        own = [n for n in old.namelist() if not n.endswith("/RECORD")]
        assert {n: new.read(n) for n in own} == {n: old.read(n) for n in own}
        assert set(new.namelist()) - set(old.namelist()) == {"triton_dist/more.py"}


def test_two_builds_of_one_commit_end_alike(upstream: Upstream, wheel: Path, store: Store) -> None:
    pinned = upstream.pinned("main", upstream.commit("main", project(wheel)))
    ended: list[ForkWheel | TdstackError] = []

    def one() -> None:
        try:
            ended.append(build(pinned, store))
        except TdstackError as error:
            ended.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 2
    assert ended[0] == ended[1] == build(pinned, store)
