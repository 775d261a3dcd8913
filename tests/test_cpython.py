"""A stand-alone CPython as the image's Python: what is taken, what is refused, what follows."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tdstack.cpython import entries_of, take_cpython, unpack
from tdstack.errors import IntegrityError, UsageError
from tdstack.lock.io import load_lock
from tdstack.plan import make_plan
from tdstack.stack import Request, make_stack
from tdstack.wheelhouse.store import Store, sha256_of
from tests.conftest import ROOT
from tests.triton_wheels import a_fork, library

LOCK = load_lock(ROOT)[0]
NAME = "cpython-3.12.9+20250317-x86_64-unknown-linux-gnu-install_only.tar.gz"
FILES: Mapping[str, bytes] = {
    "python/bin/python3.12": library(),
    "python/include/python3.12/Python.h": b"",
    "python/lib/python3.12/os.py": b"x = 1\n",
    "python/lib/python3.12/json/__init__.py": b"y = 2\n",
    "python/lib/python3.12/test/test_os.py": b"",
    "python/lib/python3.12/__pycache__/os.cpython-312.pyc": b"",
    "python/lib/libpython3.12.a": b"",
    "python/share/man/man1/python.1": b"",
}


def archive(
    folder: Path, files: Mapping[str, bytes] = FILES, link: tuple[str, str] = ("", "")
) -> Path:
    path = folder / NAME
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if "/bin/" in name else 0o644
            tar.addfile(member, io.BytesIO(data))
        name, target = link if link[0] else ("python/bin/python3", "python3.12")
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, target
        tar.addfile(member)
    return path


def test_an_archive_is_taken_with_what_it_says_of_itself(tmp_path: Path, store: Store) -> None:
    path = archive(tmp_path)
    found = take_cpython(str(path), store)
    assert (found.python, found.root, found.machine) == ("3.12", "python", "x86_64")
    assert found.glibc == "2.2.5"
    assert store.verify(found.file).read_bytes() == path.read_bytes()
    assert take_cpython(f"{path}#sha256={sha256_of(path)}", store) == found


def test_another_hash_is_refused_and_nothing_is_kept(tmp_path: Path, store: Store) -> None:
    path = archive(tmp_path)
    with pytest.raises(IntegrityError, match="not the file that was asked for"):
        take_cpython(f"{path}#sha256={'0' * 64}", store)
    assert list((store.root / "blobs").iterdir()) == []
    with pytest.raises(UsageError, match="not a hash"):
        take_cpython(f"{path}#sha256=12", store)
    with pytest.raises(UsageError, match="no such archive"):
        take_cpython(str(tmp_path / "nowhere.tar.gz"), store)


@pytest.mark.parametrize(
    ("left_out", "why"),
    [
        ("python/bin/python3.12", "0 files bin/python3.N"),
        ("python/include/python3.12/Python.h", "no include/python3.12/Python.h"),
        ("python/lib/python3.12/os.py", "no lib/python3.12/os.py"),
    ],
)
def test_an_archive_without_what_an_image_needs_is_refused(
    tmp_path: Path, store: Store, left_out: str, why: str
) -> None:
    path = archive(tmp_path, {n: d for n, d in FILES.items() if n != left_out})
    with pytest.raises(IntegrityError) as caught:
        take_cpython(str(path), store)
    assert caught.value.got == why


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_an_archive_that_is_cut_short_is_refused(
    tmp_path: Path, store: Store, share: float
) -> None:
    path = archive(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(IntegrityError, match="no stand-alone CPython"):
        take_cpython(str(path), store)


def test_what_no_program_needs_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    unpack(archive(tmp_path), "python", folder)
    found = {e.path: e for e in entries_of(folder, "opt/tdstack/python")}
    assert sorted(found) == [
        "opt/tdstack/python/bin/python3",
        "opt/tdstack/python/bin/python3.12",
        "opt/tdstack/python/include/python3.12/Python.h",
        "opt/tdstack/python/lib/python3.12/json/__init__.py",
        "opt/tdstack/python/lib/python3.12/os.py",
    ]
    assert found["opt/tdstack/python/bin/python3"].target == "python3.12"
    assert found["opt/tdstack/python/bin/python3.12"].mode == 0o755


@pytest.mark.parametrize(
    "link", [("python/bin/out", "../../../etc/passwd"), ("python/../../out", "x")]
)
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, link: tuple[str, str]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        unpack(archive(tmp_path, link=link), "python", folder)
    assert not (tmp_path.parent / "out").exists()


def test_it_is_the_interpreter_of_the_first_base_that_its_fork_runs_on(
    tmp_path: Path, store: Store
) -> None:
    cpython = take_cpython(str(archive(tmp_path)), store)
    for glibc, suite in (("2.36", "bookworm"), ("2.38", "trixie")):
        fork = a_fork("cp312-cp312-manylinux_2_28_x86_64", glibc=glibc)
        stack = make_stack(LOCK, Request(fork=fork, cpython=cpython))
        assert stack.rootfs is not None
        assert (stack.python, stack.rootfs.suite) == ("3.12", suite)
        assert stack.interpreter == "/opt/tdstack/python/bin/python3.12"


def test_its_bytes_move_every_key_and_it_is_in_the_slice(tmp_path: Path, store: Store) -> None:
    one = take_cpython(str(archive(tmp_path)), store)
    (tmp_path / "b").mkdir()
    other = take_cpython(str(archive(tmp_path / "b", {**FILES, "python/lib/x.py": b""})), store)
    plans = [
        make_plan(make_stack(LOCK, Request(triton="stock", cpython=c)), ROOT) for c in (one, other)
    ]
    assert all(a.key != b.key for a, b in zip(plans[0].layers, plans[1].layers, strict=True))
    assert plans[0].lock_slice != plans[1].lock_slice


def test_one_that_does_not_fit_is_refused(tmp_path: Path, store: Store) -> None:
    cpython = take_cpython(str(archive(tmp_path)), store)
    with pytest.raises(UsageError, match=r"is Python 3\.12, not 3\.13"):
        make_stack(LOCK, Request(triton="stock", python="3.13", cpython=cpython))
    for other in (replace(cpython, machine="aarch64"), replace(cpython, glibc="2.99")):
        with pytest.raises(IntegrityError, match="does not run on this base"):
            make_stack(LOCK, Request(triton="stock", cpython=other))
