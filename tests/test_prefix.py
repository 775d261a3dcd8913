"""`invoke install --prefix`: real layers, by a user without rights, killed at any moment."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.prefixes import SMALL, USER, Site, a_site, fill, in_use, needed, owned_folder, tree

KILLS = 10
SEED = 20251127


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with a_site() as site:
        yield site


@pytest.fixture(scope="module")
def installed(site: Site) -> dict[str, Any]:
    return site.install(site.folder / "opt" / "my stack")


@pytest.fixture(scope="module")
def prefix(installed: dict[str, Any]) -> Path:
    """A prefix whose version in use is the first checkout's, until tests change that in turn."""
    return Path(installed["prefix"])


@pytest.fixture(scope="module")
def first(installed: dict[str, Any]) -> str:
    return str(installed["version"])


def verified(site: Site, prefix: Path, *words: str) -> None:
    """The version in use says of itself that it is whole."""
    ended = site.run(str(prefix / "current" / "bin" / "tdstack-verify"), "--json", *words)
    assert ended.code == 0, ended.out
    assert Path(ended.report["prefix"]).parent == prefix / "versions"


# ------------------------------------------------------------------ what an install leaves


def test_all_layers_are_there_and_everything_is_the_users(site: Site, prefix: Path) -> None:
    ended = site.invoke("verify", f"--prefix={prefix}", "--json")
    assert ended.code == 0, ended.err
    found = {f["check"]: f for f in ended.report["findings"]}
    assert all(f["ok"] for f in found.values())
    assert {"packages", "files", "ptxas", "cubins", "nvshmem-host", "import gemm_allreduce"} <= (
        found.keys()
    )
    version = prefix / "current"
    manifest = json.loads((version / "manifest.json").read_text())
    assert (manifest["cuda"], manifest["triton"], manifest["base"]["image"]) == (
        *("12.4", "stock"),
        "host",
    )
    # What an image leaves out is left out here, and the line's ptxas stands in Triton's place.
    packages = next(version.glob("lib/python3*/site-packages"))
    assert not (packages / "triton/_C/libproton.so").exists()
    linked = packages / "triton/backends/nvidia/bin/ptxas"
    assert linked.resolve() == (packages / manifest["ptxas"]).resolve()
    assert list(packages.rglob("__pycache__/*.pyc"))
    if not os.geteuid():
        assert {p.lstat().st_uid for p in [prefix, *prefix.rglob("*")]} == {USER}


def test_programs_run_where_the_path_has_a_space(site: Site, prefix: Path) -> None:
    for program in ("pip", "f2py", "numpy-config"):
        ended = site.run(str(prefix / "current" / "bin" / program), "--version")
        assert ended.code == 0, ended.err
    # Without any variable Python finds the line's ptxas, and its own folder for the cache.
    code = "from triton import knobs; print(knobs.nvidia.ptxas.path)"
    ended = site.run(str(prefix / "current" / "bin" / "python"), "-c", code)
    assert ended.out.strip().endswith("triton/backends/nvidia/bin/ptxas"), ended.err
    traced = "import gemm_allreduce; print(gemm_allreduce.__spec__.cached)"
    cached = site.run(str(prefix / "current" / "bin" / "python"), "-c", traced).out.strip()
    assert Path(cached).is_file()


def test_second_install_changes_nothing(site: Site, prefix: Path, first: str) -> None:
    before = tree(prefix)
    report = site.install(prefix)
    assert (report["changed"], report["made"], report["version"]) == (False, False, first)
    after = tree(prefix)
    for own in ("", ".tdstack", ".tdstack/lock"):  # held, and says by whom
        before.pop(own or "."), after.pop(own or ".")
    assert after == before


def test_dry_runs_touch_nothing(site: Site, prefix: Path, first: str) -> None:
    before = tree(prefix)
    named = f"--prefix={prefix}"
    ended = site.invoke("install", *SMALL, named, "--dry", "--json", checkout=site.second)
    assert ended.code == 0, ended.err
    told = ended.report
    assert (told["changed"], told["made"], told["current"]) == (True, True, first)
    assert told["fetch_files"] == 0
    assert told["version"] != first
    for words in (["install", "--rollback"], ["uninstall", "--all"], ["uninstall", "--version=00"]):
        site.invoke(*words, named, "--dry")
    assert tree(prefix) == before
    nowhere = site.folder / "nowhere" / "at all"
    assert site.invoke("install", *SMALL, f"--prefix={nowhere}", "--dry").code == 0
    assert not nowhere.parent.exists()


# ---------------------------------------------------------------- kills, upgrades, rollback


def test_a_killed_upgrade_leaves_the_old_version_whole_and_in_use(
    site: Site, prefix: Path, first: str, installed: dict[str, Any]
) -> None:
    words = ["install", *SMALL, f"--prefix={prefix}"]
    # About what an upgrade takes, on whatever machine: starting, reading and checking as much as
    # the first install did, nothing to compile.
    begin = time.monotonic()
    verified(site, prefix)
    whole = 2 * (time.monotonic() - begin) + installed["seconds"]["read"]
    moments = random.Random(SEED)
    killed = tries = 0
    while killed < KILLS and tries < 2 * KILLS:
        tries += 1
        # One moment in each tenth of the time that it takes.
        delay = whole * (killed + moments.random()) / KILLS
        begin = time.monotonic()
        running = site.start(*words, checkout=site.second)
        try:
            running.wait(delay)
            # A machine that others use too gets faster and slower: what it took now counts.
            whole = min(whole, time.monotonic() - begin)
        except subprocess.TimeoutExpired:
            # Python itself, not setpriv, which became it.
            running.send_signal(signal.SIGKILL)
            killed += 1
        _, said = running.communicate()
        ended = running.returncode
        assert ended in (0, -signal.SIGKILL), said
        now = in_use(prefix)
        # A late kill comes after the switch: then the new version must be whole.
        verified(site, prefix, *(["--quick"] if now == first else []))
        if now != first:  # it was faster than the first one: back, so that the next can be killed
            assert site.invoke("install", f"--prefix={prefix}", "--rollback").code == 0
            site.invoke("uninstall", f"--prefix={prefix}", f"--version={now}")
    assert killed >= KILLS - 3
    # The next run clears what they left, and goes on.
    report = site.install(prefix, checkout=site.second)
    # A late kill may have left the whole new version, not yet in use: then only that is done.
    assert (report["changed"], report["previous"]) == (True, first)
    assert not report["made"] or report["linked"] > 100 * report["written"]
    verified(site, prefix)
    packages = [v / "lib" for v in (prefix / "versions" / first, prefix / "current")]
    for name in ("numpy/version.py", "numpy/__pycache__/version.cpython-*.pyc"):
        one, other = (next(p.glob(f"python3*/site-packages/{name}")) for p in packages)
        assert one.samefile(other)
    assert not (prefix / ".tdstack" / "new").exists()
    assert len(report["versions"]) == 2


def test_rollback_goes_back_and_forth_and_old_versions_can_go(
    site: Site, prefix: Path, first: str
) -> None:
    second = in_use(prefix)
    named = f"--prefix={prefix}"
    for expected in (first, second):
        ended = site.invoke("install", named, "--rollback", "--json")
        assert ended.code == 0, ended.err
        assert (ended.report["changed"], in_use(prefix)) == (True, expected)
    assert site.invoke("uninstall", named, f"--version={second}").code == 2  # in use
    assert site.invoke("uninstall", named).code == 2  # of what?
    gone = site.invoke("uninstall", named, f"--version={first[:6]}", "--json")
    assert gone.code == 0, gone.err
    assert gone.report["removed"] == [first]
    assert site.invoke("install", named, "--rollback").code == 2
    verified(site, prefix)


def test_what_was_changed_in_one_version_does_not_get_into_the_next(
    site: Site, prefix: Path
) -> None:
    code = next((prefix / "current").glob("lib/python3*/site-packages/numpy/version.py"))
    good = code.read_bytes()
    # In place, of the same size: what a size or a time would not show.
    with code.open("r+b") as file:
        file.write(b"#" * 10)
    report = site.install(prefix, checkout=site.first)
    assert report["changed"]
    again = next((prefix / "current").glob("lib/python3*/site-packages/numpy/version.py"))
    assert again.read_bytes() == good
    verified(site, prefix, "--deep", "--quick")
    # The changed version is not gone back to.
    (prefix / "previous" / again.relative_to(prefix / "current")).write_text("short")
    before = in_use(prefix)
    assert site.invoke("install", f"--prefix={prefix}", "--rollback").code == 4
    assert in_use(prefix) == before
    # But installing it again mends it, in its place.
    mended = site.install(prefix, checkout=site.second)
    assert mended["made"]
    verified(site, prefix, "--deep", "--quick")


def test_a_version_with_a_python_of_its_own_needs_none_of_the_host(
    site: Site, prefix: Path
) -> None:
    archive = a_cpython(site.first.parent / "cpython.tar.gz")
    report = site.install(prefix, *SMALL, f"--cpython={archive}")
    assert report["changed"]
    assert report["linked"] > 50 * report["written"]
    python = prefix / "current" / "bin" / "python"
    code = "import sys, triton; print(sys.base_prefix)"
    found = site.run(str(python), "-c", code)
    assert found.out.strip() == str(prefix / "versions" / report["version"] / "python")
    verified(site, prefix)
    assert not [p for p in (prefix / "current").rglob("*") if escapes(p, prefix)]


def a_cpython(path: Path) -> Path:
    """Make an archive like those of python-build-standalone, of the distribution's Python."""
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    binary, library = Path("/usr/bin", minor), Path("/usr/lib", minor)
    if not binary.is_file() or not (library / "os.py").is_file():
        pytest.skip(f"this distribution has no {minor} to pack")
    header = Path(f"/usr/include/{minor}/Python.h")
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(binary.resolve(), f"python/bin/{minor}")
        archive.add(library, f"python/lib/{minor}", filter=_without_links)
        inside = tarfile.TarInfo(f"python/include/{minor}/Python.h")
        data = header.read_bytes() if header.is_file() else b"/* not installed here */"
        inside.size = len(data)
        archive.addfile(inside, io.BytesIO(data))
    return path


def _without_links(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.issym() and member.linkname.startswith(("/", "..")) else member


def escapes(path: Path, prefix: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(prefix)


# ---------------------------------------------------------------------------- refusals


def test_a_prefix_of_somebody_else_or_one_that_moved_is_refused(site: Site, prefix: Path) -> None:
    other = owned_folder(site.folder / "other")
    (other / "notes.txt").write_text("mine")
    for verb in (["install", *SMALL], ["uninstall", "--all"]):
        assert site.invoke(*verb, f"--prefix={other}").code == 2
    assert tree(other).keys() == {".", "notes.txt"}
    moved = prefix.with_name("moved")
    prefix.rename(moved)
    try:
        for verb in (["install", *SMALL], ["install", "--rollback"], ["verify"]):
            ended = site.invoke(*verb, f"--prefix={moved}")
            assert ended.code == 3, ended.err
            assert str(prefix) in ended.err
    finally:
        moved.rename(prefix)


def test_one_install_at_a_time(site: Site, prefix: Path) -> None:
    with (prefix / ".tdstack" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for verb in (["install", *SMALL], ["install", "--rollback"], ["uninstall", "--all"]):
            ended = site.invoke(*verb, f"--prefix={prefix}")
            assert ended.code == 3, ended.err
            assert "at work in this prefix" in ended.err
    verified(site, prefix, "--quick")


def test_a_prefix_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root to make a folder that the user may not write")
    closed = site.first.parent / "closed"
    closed.mkdir()
    for place in (closed, closed / "below"):
        ended = site.invoke("install", *SMALL, f"--prefix={place}", "--json")
        assert ended.code == 3, ended.err
        assert "cannot be written" in ended.report["what"]
    assert not list(closed.iterdir())


def test_a_wheel_that_is_not_the_locks_is_not_installed(site: Site) -> None:
    # The store also holds what other installs need.
    wheel = site.folder / "cache" / "blobs" / min(file.sha256 for file in needed("none"))
    good = wheel.read_bytes()
    wheel.unlink()  # it may be linked to the store of whoever runs the tests
    wheel.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    new = site.folder / "not" / "there yet"
    try:
        ended = site.invoke("install", *SMALL, f"--prefix={new}")
        assert ended.code == 4, ended.err
        assert not new.parent.exists()
    finally:
        wheel.write_bytes(good)


def test_a_full_disk_leaves_nothing(site: Site) -> None:
    small = site.first.parent / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m,mode=0777", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    # The disk that fills up while files are written, too: the estimate is left out.
    late = (
        "import sys; sys.argv[0] = 'invoke'\n"
        "from tdstack.prefix import version\n"
        "version.check_room = lambda *_: None\n"
        "from invoke import Collection, Program; import tasks\n"
        "Program(namespace=Collection.from_module(tasks)).run()\n"
    )
    try:
        words = ("install", *SMALL, f"--prefix={small / 'x'}")
        early = site.invoke(*words)
        full = site.run(sys.executable, "-c", late, *words, cwd=site.first)
        assert (early.code, full.code) == (3, 3), early.err + full.err
        assert "not enough disk space" in early.err
        assert "the disk is full" in full.err
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--prefix=x"], 3, "--triton stock"),
        (["--prefix=x", "--triton=stock", "--cuda=12.5"], 2, "12.4, 12.6"),
        (["--prefix=x", "--triton=stock", "--python=3.4"], 3, "--cpython"),
        (["--prefix=x", "--triton=stock", "--python=python"], 2, "3.11, or a path"),
        (["--prefix=x", "--triton=stock", "--python=/nowhere"], 2, "no such interpreter"),
        (["--prefix=x", "--triton=stock", "--python=/bin/false"], 3, "does not run"),
        (["--prefix=x", "--triton=stock", "--wheel=y"], 2, "--wheel"),
        (["--prefix=x:y", "--triton=stock"], 2, "':'"),
        (["--triton=stock"], 2, "--prefix"),
        (["--prefix=x", "--layer=torch"], 2, "triton"),
        (["--prefix=x", "--version=1"], 2, "--rollback"),
        (["--prefix=x", "--rollback"], 3, "no such prefix"),
    ],
)
def test_bad_input_ends_with_the_right_code(
    site: Site, words: list[str], code: int, said: str
) -> None:
    ended = site.invoke("install", *words)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert not (site.first / "x").exists()


# --------------------------------------------------------------------------- uninstall


def test_uninstall_leaves_nothing_that_it_made(site: Site, prefix: Path) -> None:
    site.install(prefix)
    stray = prefix / "notes.txt"
    stray.write_text("mine")
    ended = site.invoke("uninstall", f"--prefix={prefix}", "--all", "--json")
    assert ended.code == 0, ended.err
    assert ended.report["left"] == ["notes.txt"]
    assert tree(prefix).keys() == {".", "notes.txt"}
    shutil.rmtree(prefix.parent)
    again = site.invoke("uninstall", f"--prefix={prefix}", "--all", "--json")
    assert (again.code, again.report["changed"]) == (0, False)


def test_install_with_torch_is_whole_and_uninstalled_without_a_trace(site: Site) -> None:
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if python != "3.11":
        pytest.skip(f"the lock holds no CPU build of torch for Python {python}")
    fill(site, "cpu")
    base = owned_folder(site.folder / "base")
    (base / "there before").write_text("x")
    before = tree(base)
    prefix = base / "a" / "b"
    report = site.install(prefix, "--triton=stock", "--torch=cpu", "--arch=sm_90")
    checks = {f["check"]: f["ok"] for f in report["findings"]}
    assert checks["import torch"]
    assert all(checks.values())
    ran = site.run(str(prefix / "current/bin/python"), "-c", "import torch; print(torch.ones(2))")
    assert ran.out == "tensor([1., 1.])\n", ran.err
    assert unrecorded(prefix / "current") == []
    assert site.invoke("uninstall", f"--prefix={prefix}", "--all").code == 0
    after = tree(base)
    assert {n: v for n, v in after.items() if n != "."} == {
        n: v for n, v in before.items() if n != "."
    }


def unrecorded(version: Path) -> list[str]:
    """Return the files in a version's packages that no RECORD names and no recipe links."""
    packages = next(version.glob("lib/python3*/site-packages"))
    named = {
        os.path.normpath(packages / row[0])
        for record in packages.glob("*.dist-info/RECORD")
        for row in csv.reader(record.read_text().splitlines())
    }
    return [
        str(p)
        for p in packages.rglob("*")
        if p.is_file() and not p.is_symlink() and p.suffix != ".pyc" and str(p) not in named
    ]
