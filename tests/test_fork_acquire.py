"""Triton-distributed as a file: what is taken, what is refused, and how it is re-labelled."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.utils import parse_wheel_filename

from tdstack.errors import IntegrityError, TdstackError, UpstreamError, UsageError
from tdstack.fork.acquire import built_link, fork_wheel, take_file
from tdstack.fork.acquire import take_wheel as take_wheel_of
from tdstack.fork.commit import build_from_commit as build_commit
from tdstack.fork.facts import read_facts
from tdstack.fork.model import ForkWheel
from tdstack.fork.relabel import is_labelled, label_of, provenance_of, write_relabelled
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock, LockedTritonDistributed
from tdstack.plan import make_plan
from tdstack.stack import Request, make_stack
from tdstack.verify.triton.fork import LIBRARY
from tdstack.wheelhouse.store import Store, sha256_of
from tests.conftest import ROOT
from tests.triton_wheels import FORK_FILES, TAG, elf, library

if TYPE_CHECKING:
    from tests.conftest import IndexServer, MakeWheel

PINNED = load_lock(ROOT)[0].triton_distributed
FORK_LIBRARY = library()
STOCK_LIBRARY = library(fork=False)
FILES: dict[str, bytes | str] = {
    **FORK_FILES,
    "triton/backends/nvidia/bin/ptxas": elf(),
    "triton_dist/kernels/with, a comma.py": "x = 1\n",
}
ENTRY_POINTS = "[triton.backends]\nnvidia = triton.backends.nvidia\n"


def relabel(path: Path, store: Store) -> ForkWheel:
    return take_file(path, store, PINNED)


def take_wheel(source: str, store: Store) -> ForkWheel:
    return take_wheel_of(source, store, PINNED)


def build_from_commit(pinned: LockedTritonDistributed, store: Store) -> ForkWheel:
    return build_commit(pinned, store, "3.11", lambda folder: Path(sys.executable))


@pytest.fixture
def fork(tmp_path: Path, make_wheel: MakeWheel) -> Path:
    """A wheel like those that Triton-distributed's own build gives."""
    return make_wheel(
        tmp_path / "given",
        "triton_dist",
        "3.4.0",
        FILES,
        tag=TAG,
        entry_points=ENTRY_POINTS,
        executable=["triton/backends/nvidia/bin/ptxas"],
    )


def _members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == len(archive.namelist())
        return {name: archive.read(name) for name in archive.namelist()}


def _placed(fork: ForkWheel, store: Store, folder: Path) -> Path:
    """Copy a taken wheel out of the store under its own name."""
    folder.mkdir(exist_ok=True)
    path = folder / fork.file.name
    path.write_bytes(store.verify(fork.file).read_bytes())
    return path


def _assert_record_is_valid(members: Mapping[str, bytes], info: str) -> None:
    rows = list(csv.reader(io.StringIO(members[f"{info}/RECORD"].decode())))
    assert sorted(row[0] for row in rows) == sorted(members)
    for name, digest, size in rows:
        if name == f"{info}/RECORD":
            assert (digest, size) == ("", "")
            continue
        found = base64.urlsafe_b64encode(hashlib.sha256(members[name]).digest()).rstrip(b"=")
        assert (digest, size) == (f"sha256={found.decode()}", str(len(members[name]))), name


# --------------------------------------------------------------------------- the new label


def test_a_fork_wheel_is_relabelled_as_triton_with_its_own_hash_in_the_version(
    fork: Path, store: Store, tmp_path: Path
) -> None:
    digest = sha256_of(fork)
    taken = relabel(fork, store)
    assert taken.version == f"3.4.0+dist.{digest[:8]}"
    assert taken.file.name == f"triton-3.4.0+dist.{digest[:8]}-{TAG}.whl"
    name, version, _, tags = parse_wheel_filename(taken.file.name)
    assert (name, str(version), {str(t) for t in tags}) == ("triton", taken.version, {TAG})
    members = _members(_placed(taken, store, tmp_path / "out"))
    info = f"triton-{taken.version}.dist-info"
    headers = members[f"{info}/METADATA"].decode().partition("\n\n")[0].splitlines()
    assert headers == ["Metadata-Version: 2.1", "Name: triton", f"Version: {taken.version}"]
    told = f"file: {fork.name}\nsha256: {digest}\nsize: {fork.stat().st_size}\n"
    assert members[f"{info}/PROVENANCE"].decode() == told
    assert members[f"{info}/entry_points.txt"].decode() == ENTRY_POINTS
    assert {n.split("/")[0] for n in members} == {"triton", "triton_dist", info}


def test_the_record_of_the_relabelled_wheel_is_valid_in_every_row(
    tmp_path: Path, store: Store, make_wheel: MakeWheel
) -> None:
    plain = {name: content for name, content in FILES.items() if "," not in name}
    wheel = make_wheel(tmp_path, "triton_dist", "3.4.0", plain, tag=TAG, entry_points=ENTRY_POINTS)
    taken = relabel(wheel, store)
    members = _members(store.path(taken.file))
    _assert_record_is_valid(members, f"triton-{taken.version}.dist-info")


def test_the_record_of_the_relabelled_wheel_quotes_names_with_commas(
    fork: Path, store: Store
) -> None:
    taken = relabel(fork, store)
    _assert_record_is_valid(_members(store.path(taken.file)), f"triton-{taken.version}.dist-info")


def test_every_other_file_stays_byte_for_byte_with_its_mode(fork: Path, store: Store) -> None:
    taken = relabel(fork, store)
    old, new = "triton_dist-3.4.0.dist-info", f"triton-{taken.version}.dist-info"
    before, after = _members(fork), _members(store.path(taken.file))
    own = {f"{new}/{name}" for name in ("METADATA", "RECORD", "PROVENANCE")}
    kept = {n: data for n, data in after.items() if n not in own}
    expected = {
        name.replace(old, new): data
        for name, data in before.items()
        if name not in {f"{old}/METADATA", f"{old}/RECORD"}
    }
    assert kept == expected
    assert kept[LIBRARY] == FORK_LIBRARY
    with zipfile.ZipFile(fork) as one, zipfile.ZipFile(store.path(taken.file)) as other:
        modes = {i.filename.replace(old, new): i.external_attr for i in one.infolist()}
        for info in other.infolist():
            if info.filename not in own:
                assert info.external_attr == modes[info.filename], info.filename


def test_the_same_wheel_gives_the_same_bytes_in_any_store(
    fork: Path, store: Store, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / fork.name
    copy.write_bytes(fork.read_bytes())
    first = relabel(fork, store)
    second = relabel(copy, Store(tmp_path / "another"))
    assert first == second
    assert list((store.root / "work").iterdir()) == []
    assert fork.read_bytes() == copy.read_bytes()


def test_relabelling_twice_is_relabelling_once(fork: Path, store: Store, tmp_path: Path) -> None:
    once = relabel(fork, store)
    twice = relabel(_placed(once, store, tmp_path / "out"), store)
    assert twice == once


def test_a_fork_wheel_named_triton_is_taken_too(
    tmp_path: Path, store: Store, make_wheel: MakeWheel
) -> None:
    wheel = make_wheel(tmp_path, "triton", "3.4.0+git1512a81", FILES, tag=TAG)
    assert relabel(wheel, store).version == f"3.4.0+dist.{sha256_of(wheel)[:8]}"


def test_two_different_forks_get_two_versions(
    fork: Path, tmp_path: Path, store: Store, make_wheel: MakeWheel
) -> None:
    other = make_wheel(
        tmp_path / "b", "triton_dist", "3.4.0", {**FILES, "triton/x.py": ""}, tag=TAG
    )
    assert relabel(fork, store).version != relabel(other, store).version


def test_a_hash_of_digits_that_begins_with_zero_keeps_its_version(
    fork: Path, tmp_path: Path
) -> None:
    facts = replace(read_facts(fork), sha256="01234567" + "a" * 56)
    assert label_of(facts) == "3.4.0+dist.1234567"  # as PEP 440 writes it
    told = provenance_of(facts)
    once = write_relabelled(fork, facts, told, tmp_path)
    again = read_facts(once)
    assert (again.version, label_of(again)) == ("3.4.0+dist.1234567", "3.4.0+dist.1234567")
    assert is_labelled(again)


# ---------------------------------------------------------------------------- what is refused


def _refused(path: Path, store: Store) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        relabel(path, store)
    assert int(caught.value.code) == 4
    assert list((store.root / "blobs").iterdir()) == []
    assert list((store.root / "work").iterdir()) == []
    return caught.value


@pytest.mark.parametrize("version", ["3.4.0", "3.4.0+dist.01234abc"])
def test_stock_triton_is_refused_whatever_it_calls_itself(
    tmp_path: Path, store: Store, make_wheel: MakeWheel, version: str
) -> None:
    files = {**FILES, LIBRARY: STOCK_LIBRARY}
    error = _refused(make_wheel(tmp_path, "triton", version, files, tag=TAG), store)
    assert "stock Triton" in error.what
    assert error.where == "--wheel: fingerprint"
    assert error.expected == f"distributed.get_rank in {LIBRARY}"
    assert "--triton stock" in error.remedy


def test_the_trap_of_the_index_is_refused(
    tmp_path: Path, store: Store, make_wheel: MakeWheel
) -> None:
    files = {"triton/__init__.py": b"", "triton_dist/__init__.py": b"", "triton_dist/x.so": b"x"}
    trap = make_wheel(tmp_path, "triton_dist", "0.0.0", files)
    error = _refused(trap, store)
    assert LIBRARY in error.what
    assert "triton-dist 0.0.0" in error.what
    assert "--wheel" in error.remedy


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_wheel_is_refused(fork: Path, store: Store, share: float) -> None:
    data = fork.read_bytes()
    fork.write_bytes(data[: int(len(data) * share)])
    assert "not a whole wheel" in _refused(fork, store).what


@pytest.mark.parametrize("name", ["torch-2.8.0-py3-none-any.whl", "triton.whl", "triton.tar.gz"])
def test_another_file_is_refused(fork: Path, store: Store, name: str) -> None:
    assert name in str(_refused(fork.rename(fork.with_name(name)), store))


def test_a_wheel_whose_library_is_damaged_is_refused(fork: Path, store: Store) -> None:
    with zipfile.ZipFile(fork) as archive:
        info = archive.getinfo(LIBRARY)
    data = bytearray(fork.read_bytes())
    data[info.header_offset + 30 + len(LIBRARY)] ^= 0xFF
    fork.write_bytes(bytes(data))
    _refused(fork, store)


@pytest.mark.parametrize("left_out", ["METADATA", "RECORD", ""])
def test_a_wheel_without_its_metadata_is_refused(fork: Path, store: Store, left_out: str) -> None:
    bare = fork.with_name("bare.whl")
    with zipfile.ZipFile(fork) as source, zipfile.ZipFile(bare, "w") as target:
        for name in source.namelist():
            if f".dist-info/{left_out}" not in name:
                target.writestr(name, source.read(name))
    bare.replace(fork)
    _refused(fork, store)


def test_a_missing_file_is_a_usage_error(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        take_wheel(str(tmp_path / "nowhere-1-py3-none-any.whl"), store)
    assert int(caught.value.code) == 2
    assert "nowhere" in caught.value.where
    assert "--wheel FILE" in caught.value.remedy


# ------------------------------------------------------------------------------- by address


@pytest.mark.parametrize("fragment", ["", "#", "#sha256=abc", "#md5=" + "0" * 32, "#sha256="])
def test_an_address_without_a_hash_is_a_usage_error_and_nobody_is_asked(
    fork: Path, store: Store, server: IndexServer, fragment: str
) -> None:
    server.add(fork.name, fork.read_bytes())
    with pytest.raises(UsageError) as caught:
        take_wheel(server.url(fork.name) + fragment, store)
    assert "#sha256=HEX" in caught.value.expected
    assert server.served == []


def test_an_address_with_the_right_hash_gives_the_same_as_the_file(
    fork: Path, store: Store, server: IndexServer, tmp_path: Path
) -> None:
    file = server.add(fork.name, fork.read_bytes())
    taken = take_wheel(f"{server.url(fork.name)}#sha256={file.sha256}", store)
    assert taken == relabel(fork, Store(tmp_path / "another"))
    assert store.verify(taken.file)
    take_wheel(f"{server.url(fork.name)}#sha256={file.sha256}", store)
    assert len(server.of(fork.name)) == 1, "what is there already is not downloaded again"


def test_an_address_with_another_hash_is_an_integrity_error_and_nothing_is_kept(
    fork: Path, store: Store, server: IndexServer
) -> None:
    file = server.add(fork.name, fork.read_bytes())
    with pytest.raises(IntegrityError) as caught:
        take_wheel(f"{server.url(fork.name)}#sha256={'0' * 64}", store)
    assert caught.value.where == server.url(fork.name)
    assert caught.value.expected == f"sha256 {'0' * 64}"
    assert caught.value.got == f"sha256 {file.sha256}"
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_an_address_that_serves_stock_triton_under_the_right_hash_is_refused(
    tmp_path: Path, store: Store, server: IndexServer, make_wheel: MakeWheel
) -> None:
    stock = make_wheel(tmp_path, "triton", "3.4.0", {LIBRARY: STOCK_LIBRARY}, tag=TAG)
    file = server.add(stock.name, stock.read_bytes())
    with pytest.raises(IntegrityError, match="stock Triton"):
        take_wheel(f"{server.url(stock.name)}#sha256={file.sha256}", store)


@pytest.mark.parametrize("how", ["missing", "errors", "drop_at"])
def test_an_address_that_cannot_be_read_is_an_upstream_error_and_nothing_is_kept(
    fork: Path, store: Store, server: IndexServer, how: str
) -> None:
    file = server.add(fork.name, fork.read_bytes(), **{how: 100, "drops": 100})
    with pytest.raises(UpstreamError) as caught:
        take_wheel(f"{server.url(fork.name)}#sha256={file.sha256}", store)
    assert int(caught.value.code) == 5
    assert caught.value.where == server.url(fork.name)
    assert "--triton stock" in caught.value.remedy
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_an_address_with_a_query_names_the_wheel_by_its_path(
    fork: Path, store: Store, server: IndexServer
) -> None:
    file = server.add(fork.name, fork.read_bytes())
    taken = take_wheel(f"{server.url(fork.name)}?token=x#sha256={file.sha256}", store)
    assert taken.version.startswith("3.4.0+dist.")


@pytest.mark.parametrize("name", ["", "a%2Fb.whl", "..%2Fx-1-py3-none-any.whl", "%2e%2e"])
def test_an_address_whose_last_part_is_no_file_name_ends_in_our_error(
    store: Store, server: IndexServer, name: str
) -> None:
    file = server.add(name or "unnamed", b"content")
    with pytest.raises(TdstackError):
        take_wheel(f"{server.url(name)}#sha256={file.sha256}", store)
    assert [p for p in store.work().iterdir() if p.is_file()] == []


def test_an_address_with_a_password_is_not_shown_with_it(store: Store) -> None:
    source = f"http://me:secret@127.0.0.1:9/triton_dist-3.4.0-{TAG}.whl#sha256={'0' * 64}"
    with pytest.raises(UpstreamError) as caught:
        take_wheel(source, store)
    assert "secret" not in str(caught.value)


# -------------------------------------------------------------------- what the host has already


def test_a_wheelhouse_folder_or_file_gives_its_fork(
    fork: Path, store: Store, lock: Lock, make_wheel: MakeWheel
) -> None:
    make_wheel(fork.parent, "torch", "2.8.0")
    pinned = lock.triton_distributed
    expected = relabel(fork, store)
    assert fork_wheel(pinned, [fork.parent], store) == expected
    assert fork_wheel(pinned, [fork], store) == expected


def test_a_wheelhouse_with_a_relabelled_fork_gives_it(
    fork: Path, store: Store, lock: Lock, tmp_path: Path
) -> None:
    taken = relabel(fork, store)
    folder = tmp_path / "out"
    _placed(taken, store, folder)
    assert fork_wheel(lock.triton_distributed, [folder], store) == taken


def test_a_wheelhouse_of_links_into_another_store_gives_its_fork(
    fork: Path, store: Store, lock: Lock, tmp_path: Path
) -> None:
    expected = relabel(fork, store)
    house = tmp_path / "house"
    house.mkdir()
    (tmp_path / "0123abcd").write_bytes(fork.read_bytes())  # content stores name files so
    (house / fork.name).symlink_to(tmp_path / "0123abcd")
    assert fork_wheel(lock.triton_distributed, [house], store) == expected


def test_a_wheelhouse_with_two_forks_asks_which(
    fork: Path, store: Store, lock: Lock, make_wheel: MakeWheel
) -> None:
    other = make_wheel(fork.parent, "triton_dist", "3.4.0", FILES, tag="cp312-cp312-linux_x86_64")
    with pytest.raises(UsageError) as caught:
        fork_wheel(lock.triton_distributed, [fork.parent], store)
    assert fork.name in caught.value.where
    assert other.name in caught.value.where
    assert "--wheel" in caught.value.remedy


def test_a_wheelhouse_without_the_fork_gives_none(
    tmp_path: Path, store: Store, lock: Lock, make_wheel: MakeWheel
) -> None:
    make_wheel(tmp_path / "house", "triton", "3.4.0", {LIBRARY: STOCK_LIBRARY}, tag=TAG)
    assert fork_wheel(lock.triton_distributed, [tmp_path / "house"], store) is None
    assert fork_wheel(lock.triton_distributed, [], store) is None
    assert fork_wheel(lock.triton_distributed, [tmp_path / "nowhere"], store) is None


def test_a_wheelhouse_with_the_trap_of_the_index_is_refused(
    tmp_path: Path, store: Store, lock: Lock, make_wheel: MakeWheel
) -> None:
    make_wheel(tmp_path / "house", "triton_dist", "0.0.0", {"triton/__init__.py": ""})
    with pytest.raises(IntegrityError, match="libtriton"):
        fork_wheel(lock.triton_distributed, [tmp_path / "house"], store)


def test_a_fork_that_was_built_earlier_is_found_for_its_python(
    fork: Path, store: Store, lock: Lock
) -> None:
    pinned = lock.triton_distributed
    link = built_link(pinned, store, "3.11")
    link.parent.mkdir(parents=True)
    (link.parent / fork.name).write_bytes(fork.read_bytes())
    link.symlink_to(fork.name)  # as build_from_commit leaves it
    assert fork_wheel(pinned, [], store, python="3.11") == fork_wheel(pinned, [], store)
    found = fork_wheel(pinned, [], store)
    assert found is not None
    assert found.source.commit == pinned.commit
    assert fork_wheel(pinned, [], store, python="3.12") is None


def _no_git(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))


def _silent_git(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def run(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("break_git", [_no_git, _silent_git])
def test_a_git_that_is_missing_or_hangs_ends_in_our_error(
    store: Store,
    lock: Lock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_git: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    break_git(monkeypatch, tmp_path)
    with pytest.raises(TdstackError):
        build_from_commit(lock.triton_distributed, store)


def test_sources_that_cannot_be_reached_are_an_upstream_error_with_the_other_ways_in(
    store: Store, lock: Lock, tmp_path: Path
) -> None:
    nowhere = lock.triton_distributed.model_copy(update={"repository": str(tmp_path / "nowhere")})
    with pytest.raises(UpstreamError) as caught:
        build_from_commit(nowhere, store)
    assert str(tmp_path / "nowhere") in caught.value.where
    for way in ("--wheel FILE", "--wheel URL", "--wheelhouse DIR", "--triton stock"):
        assert way in caught.value.remedy


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


BACKEND = """
import pathlib, shutil
def build_wheel(folder, settings=None, metadata=None):
    (made,) = pathlib.Path(__file__).parent.glob("*.whl")
    shutil.copy(made, folder)
    return made.name
"""


@pytest.fixture
def repository(
    tmp_path: Path, fork: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LockedTritonDistributed]:
    """A git repository on 127.0.0.1 whose build gives the fork's wheel and needs nothing else."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(fork, folder)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    commit = done.stdout.strip()
    # git's plain protocol over static files.
    bare = tmp_path / "served" / "fork.git"
    clone = ["git", "clone", "-q", "--bare", str(folder), str(bare)]
    subprocess.run(clone, check=True, capture_output=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True, capture_output=True)
    handler = functools.partial(_Files, directory=str(bare.parent))
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
    thread.start()
    yield LockedTritonDistributed(
        repository=f"http://127.0.0.1:{listening.server_port}/fork.git",
        commit=commit,
        submodule_commit=commit,
        base_version="3.4.0",
        sets=["cu12"],
        wheels=[],
    )
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_the_pinned_commit_is_built_from_its_repository_and_found_again(
    repository: LockedTritonDistributed, fork: Path, store: Store
) -> None:
    assert fork_wheel(repository, [], store) is None
    built = build_from_commit(repository, store)
    assert built == relabel(fork, store)
    assert fork_wheel(repository, [], store) == built
    assert list(store.work().iterdir()) == []


def test_the_pinned_commit_is_built_once(repository: LockedTritonDistributed, store: Store) -> None:
    built = build_from_commit(repository, store)
    assert build_from_commit(repository, store) == built


# ------------------------------------------------------------------------------ in the stack


@pytest.mark.parametrize("torch", ["cuda", "none"])
@pytest.mark.parametrize("cuda", ["12.4", "12.8"])
def test_the_fork_is_the_only_triton_of_the_stack(
    fork: Path, store: Store, lock: Lock, root: Path, cuda: str, torch: str
) -> None:
    taken = relabel(fork, store)
    stack = make_stack(lock, Request(cuda=cuda, torch=torch, fork=taken))
    tritons = [p for p in stack.all_packages() if p.name.startswith("triton")]
    assert [(p.name, p.version, p.file, p.origin) for p in tritons] == [
        ("triton", taken.version, taken.file, "wheel"),
        ("triton-dist", taken.version, taken.alias, "wheel"),
    ]
    assert set(tritons) <= set(stack.packages["triton"])
    plan = make_plan(stack, root)
    assert taken.file in plan.files
    assert plan.final.labels["io.tdstack.triton"] == "distributed"
    stock = make_stack(lock, Request(cuda=cuda, torch=torch, triton="stock"))
    others = [p for p in stock.packages["triton"] if p.name != "triton"]
    rest = [p for p in stack.packages["triton"] if p.name not in ("triton", "triton-dist")]
    assert rest == others


def test_a_stack_that_has_no_fork_yet_names_the_pinned_commit(lock: Lock) -> None:
    stack = make_stack(lock, Request())
    (triton,) = [p for p in stack.packages["triton"] if p.name == "triton"]
    commit = lock.triton_distributed.commit
    assert (triton.version, triton.file, triton.origin) == (
        f"3.4.0+dist.{commit[:8]}",
        None,
        "commit",
    )


def test_another_fork_moves_the_triton_layer_and_those_above(
    fork: Path, tmp_path: Path, store: Store, lock: Lock, root: Path, make_wheel: MakeWheel
) -> None:
    more = {**FILES, "triton/x.py": ""}
    other = make_wheel(tmp_path / "b", "triton_dist", "3.4.0", more, tag=TAG)
    keys = [
        {x.name: x.key for x in make_plan(make_stack(lock, Request(fork=f)), root).layers}
        for f in (relabel(fork, store), relabel(other, store))
    ]
    moved = [name for name in keys[0] if keys[0][name] != keys[1][name]]
    assert moved == ["triton", "cuda", "kernels"]


def test_stock_takes_no_fork_even_if_there_is_one(fork: Path, store: Store, lock: Lock) -> None:
    stack = make_stack(lock, Request(triton="stock", fork=relabel(fork, store)))
    (triton,) = [p for p in stack.packages["triton"] if p.name == "triton"]
    assert (triton.version, triton.origin) == ("3.4.0", "index")
