"""The wheelhouse: files arrive by hash, resume, and nothing bad is ever kept as good."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tdstack.errors import HostError, IntegrityError, TdstackError, UpstreamError
from tdstack.lock.model import LockedDeb, LockedFile
from tdstack.pipconf import PipConfig
from tdstack.wheelhouse import fetch as fetch_module
from tdstack.wheelhouse.fetch import Fetched, fetch
from tdstack.wheelhouse.sources import Sources, debian_mirrors
from tdstack.wheelhouse.store import Store, default_cache, sha256_of

if TYPE_CHECKING:
    from tests.conftest import IndexServer, MakeWheel

MB = 1 << 20
WHEEL = "demo-1.0-py3-none-any.whl"


class Quiet:
    """A Progress that counts what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.bytes = 0
        self.finished: list[tuple[str, str]] = []

    def start(self, file: LockedFile, done: int) -> None:
        self.started.append((file.name, done))

    def advance(self, file: LockedFile, amount: int) -> None:
        self.bytes += amount

    def finish(self, file: LockedFile, origin: str) -> None:
        self.finished.append((file.name, origin))


def _bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def _pip(*indexes: str) -> PipConfig:
    return PipConfig(indexes=indexes, find_links=(), certificate=None, trusted_hosts=())


def _fetch(
    files: Sequence[LockedFile],
    store: Store,
    *indexes: str,
    folders: Sequence[Path] = (),
    progress: Quiet | None = None,
) -> Fetched:
    return fetch(files, store, Sources(_pip(*indexes), folders), progress or Quiet())


def _locked(name: str, content: bytes) -> LockedFile:
    return LockedFile(name=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _kept(store: Store, folder: str) -> list[str]:
    return sorted(path.name for path in (store.root / folder).iterdir())


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retry without the pauses between; return the pauses that were asked for."""
    pauses: list[float] = []
    monkeypatch.setattr("tdstack.retry.time", SimpleNamespace(sleep=pauses.append))
    return pauses


# -------------------------------------------------------------------------------- arriving


def test_files_arrive_under_the_name_of_their_hash(store: Store, server: IndexServer) -> None:
    sizes = {"demo-1.0-py3-none-any.whl": 10, "big_one-2-py3-none-any.whl": 3 * MB + 17}
    sizes["Dotted.Name-3.1+cpu-cp311-cp311-linux_x86_64.whl"] = 1
    files = [server.add(n, _bytes(s, s)) for n, s in sizes.items()]
    progress = Quiet()
    done = _fetch(files, store, server.index, progress=progress)
    assert done == Fetched(files=3, already=0, downloaded_bytes=sum(sizes.values()))
    assert _kept(store, "blobs") == sorted(file.sha256 for file in files)
    for file in files:
        assert store.path(file).read_bytes() == server.files[file.name]
        assert store.verify(file) == store.path(file)
    assert _kept(store, "partial") == _kept(store, "quarantine") == []
    assert progress.bytes == sum(sizes.values())
    assert {name for name, _ in progress.finished} == set(sizes)


def test_a_real_wheel_arrives_byte_for_byte(
    tmp_path: Path, store: Store, server: IndexServer, make_wheel: MakeWheel
) -> None:
    wheel = make_wheel(tmp_path, "demo", "1.0", {"demo/__init__.py": "x = 1\n"})
    file = server.add(wheel.name, wheel.read_bytes())
    _fetch([file], store, server.index)
    assert store.path(file).read_bytes() == wheel.read_bytes()


def test_a_second_fetch_asks_nobody_anything(store: Store, server: IndexServer) -> None:
    file = server.add(WHEEL, b"content")
    _fetch([file, file], store, server.index)
    served = len(server.served)
    assert _fetch([file], store, server.index) == Fetched(1, 1, 0)
    assert len(server.served) == served == 1


def test_one_content_under_two_names_is_downloaded_once(store: Store, server: IndexServer) -> None:
    files = [server.add(name, b"same") for name in (WHEEL, "other-1.0-py3-none-any.whl")]
    assert _fetch(files, store, server.index).files == 1
    assert len(server.served) == 1


def test_a_local_folder_supplies_a_file_without_any_request(
    tmp_path: Path, store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, b"content")
    house = tmp_path / "house"
    house.mkdir()
    (house / WHEEL).write_bytes(b"content")
    progress = Quiet()
    _fetch([file], store, server.index, folders=[house], progress=progress)
    assert store.path(file).read_bytes() == b"content"
    assert (house / WHEEL).read_bytes() == b"content"
    assert server.served == []
    assert progress.finished == [(WHEEL, str(house / WHEEL))]


def test_a_single_file_may_stand_for_a_folder(tmp_path: Path, store: Store) -> None:
    (tmp_path / WHEEL).write_bytes(b"content")
    file = _locked(WHEEL, b"content")
    _fetch([file], store, folders=[tmp_path / WHEEL])
    assert store.has(file)


def test_pips_find_links_folder_supplies_a_file(tmp_path: Path, store: Store) -> None:
    (tmp_path / WHEEL).write_bytes(b"content")
    file = _locked(WHEEL, b"content")
    for link in (str(tmp_path), tmp_path.as_uri()):
        pip = PipConfig((), (link,), None, ())
        own = Store(store.root / hashlib.sha256(link.encode()).hexdigest())
        fetch([file], own, Sources(pip), Quiet())
        assert own.has(file)


def test_an_index_in_a_folder_supplies_a_file(tmp_path: Path, store: Store) -> None:
    file = _locked("Big_One-1+cpu-py3-none-any.whl", b"content")
    page = tmp_path / "simple" / "big-one" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../files/Big_One-1%2Bcpu-py3-none-any.whl#sha256=00">x</a>')
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / file.name).write_bytes(b"content")
    _fetch([file], store, (tmp_path / "simple").as_uri())
    assert store.path(file).read_bytes() == b"content"


def test_pips_proxy_is_used_for_pages_and_files(store: Store, server: IndexServer) -> None:
    file = server.add(WHEEL, b"content")
    pip = PipConfig(("http://packages.invalid/simple/",), (), None, (), proxy=server.address)
    fetch([file], store, Sources(pip), Quiet())
    assert store.has(file)
    assert server.hosts == ["packages.invalid", "packages.invalid"]


def test_certificates_go_unchecked_for_pips_trusted_hosts_alone() -> None:
    pip = PipConfig((), (), "/ca.pem", ("own.test", "other.test:8443"))
    session: Any = Sources(pip).session
    found = {
        host: session.merge_environment_settings(f"https://{host}/", {}, None, None, None)["verify"]
        for host in ("own.test", "other.test:8443", "else.test")
    }
    assert (found["own.test"], found["other.test:8443"]) == (False, False)
    assert found["else.test"] not in (False, None)


def test_the_second_index_supplies_what_the_first_lacks(store: Store, server: IndexServer) -> None:
    file = server.add(WHEEL, b"content")
    _fetch([file], store, f"{server.address}/empty/", server.index)
    assert store.has(file)


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch, server: IndexServer) -> Iterator[None]:
    """Make the server the host's only Debian mirror."""
    monkeypatch.setenv("TDSTACK_DEBIAN_MIRRORS", f"{server.address}/debian/")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    debian_mirrors.cache_clear()
    yield
    debian_mirrors.cache_clear()


def _deb(content: bytes) -> LockedDeb:
    plain = _locked("pool/main/h/hello/hello_2.10-3_amd64.deb", content).model_dump()
    return LockedDeb(**plain, package="hello", version="2.10-3", archive="main")


@pytest.mark.usefixtures("mirrors")
def test_a_debian_package_comes_from_its_place_in_the_mirrors_pool(
    store: Store, server: IndexServer
) -> None:
    deb = _deb(b"a package")
    server.add(deb.name, b"a package")
    _fetch([deb], store)
    assert store.path(deb).read_bytes() == b"a package"


@pytest.mark.usefixtures("mirrors")
def test_a_debian_package_that_the_mirror_dropped_names_the_ways_out(store: Store) -> None:
    with pytest.raises(UpstreamError) as caught:
        _fetch([_deb(b"gone")], store)
    assert "TDSTACK_DEBIAN_MIRRORS" in caught.value.remedy
    assert "HTTP 404" in caught.value.where


# -------------------------------------------------------------------------------- resuming


def test_a_dropped_connection_ends_in_success_by_retry(
    store: Store, server: IndexServer, no_waiting: list[float]
) -> None:
    content = _bytes(3 * MB)
    file = server.add(WHEEL, content, drop_at=2 * MB + 5, drops=1)
    _fetch([file], store, server.index)
    assert store.path(file).read_bytes() == content
    first, second = server.of(WHEEL)
    assert (first.status, first.asked_range) == (200, "")
    # What came in whole chunks is kept; the rest alone is asked for again.
    assert (second.status, second.asked_range) == (206, f"bytes={2 * MB}-")
    assert second.sent == MB
    assert len(no_waiting) == 1


def _fetch_in_a_process(address: str, where: Path, files: list[LockedFile]) -> None:
    # An error ends the process with a traceback and exit code 1, which the test looks at.
    fetch(files, Store(where), Sources(_pip(address)), Quiet())


def _announce_and_fetch(mark: Path, *arguments: Any) -> None:
    mark.touch()
    _fetch_in_a_process(*arguments)


def _wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def _process(target: Callable[..., None], *arguments: object) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_killed_fetch_is_resumed_and_gets_only_the_rest(
    store: Store, server: IndexServer
) -> None:
    content = _bytes(4 * MB)
    file = server.add(WHEEL, content, stall_at=3 * MB + 100)
    process = _process(_fetch_in_a_process, server.index, store.root, [file])
    partial = store.partial(file)
    _wait_for(lambda: partial.exists() and partial.stat().st_size == 3 * MB)
    process.kill()
    process.join()
    server.released.set()
    have = partial.stat().st_size
    assert have == 3 * MB
    assert not store.has(file)

    progress = Quiet()
    _fetch([file], store, server.index, progress=progress)
    assert store.path(file).read_bytes() == content
    first, second = server.of(WHEEL)
    assert first.asked_range == ""
    assert second.asked_range == f"bytes={have}-"
    assert second.sent == len(content) - have == progress.bytes
    assert progress.started == [(WHEEL, have)]
    assert not partial.exists()


def test_an_interrupt_ends_a_fetch_whose_server_fell_silent(
    store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, _bytes(2 * MB), stall_at=MB + 100)
    process = _process(_fetch_in_a_process, server.index, store.root, [file])
    partial = store.partial(file)
    _wait_for(lambda: partial.exists() and partial.stat().st_size == MB)
    os.kill(process.pid, signal.SIGINT)
    process.join(2)
    alive = process.is_alive()
    process.kill()
    process.join()
    assert not alive
    assert partial.stat().st_size == MB


def test_a_server_that_ignores_ranges_sends_the_file_anew(
    store: Store, server: IndexServer, no_waiting: list[float]
) -> None:
    content = _bytes(3 * MB)
    file = server.add(WHEEL, content, drop_at=2 * MB, drops=1, ignore_ranges=True)
    progress = Quiet()
    _fetch([file], store, server.index, progress=progress)
    assert store.path(file).read_bytes() == content
    first, second = server.of(WHEEL)
    assert (second.asked_range, second.status) == (f"bytes={2 * MB}-", 200)
    assert second.sent == len(content)
    assert progress.started == [(WHEEL, 0), (WHEEL, 0)]
    assert first.sent == 2 * MB


def test_a_partial_file_that_is_too_long_is_thrown_away(store: Store, server: IndexServer) -> None:
    file = server.add(WHEEL, b"content")
    store.partial(file).write_bytes(b"content and more")
    _fetch([file], store, server.index)
    assert store.path(file).read_bytes() == b"content"
    assert server.of(WHEEL)[0].asked_range == ""


def test_a_partial_file_that_is_whole_is_taken_without_a_download(
    store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, b"content")
    store.partial(file).write_bytes(b"content")
    _fetch([file], store, server.index)
    assert store.path(file).read_bytes() == b"content"
    assert server.of(WHEEL) == []


@pytest.mark.parametrize("errors", [1, 3])
def test_a_server_that_fails_a_few_times_is_asked_again_with_growing_pauses(
    store: Store, server: IndexServer, no_waiting: list[float], errors: int
) -> None:
    file = server.add(WHEEL, b"content", errors=errors)
    _fetch([file], store, server.index)
    assert store.has(file)
    assert [answer.status for answer in server.of(WHEEL)] == [500] * errors + [200]
    assert len(no_waiting) == errors
    assert all(
        longest / 2 <= pause <= longest
        for pause, longest in zip(no_waiting, [0.5, 1.0, 2.0], strict=False)
    )


def test_a_server_that_keeps_failing_is_given_up(
    store: Store, server: IndexServer, no_waiting: list[float]
) -> None:
    file = server.add(WHEEL, b"content", errors=1000)
    with pytest.raises(UpstreamError) as caught:
        _fetch([file], store, server.index)
    assert "HTTP 500" in caught.value.where
    assert len(server.of(WHEEL)) == fetch_module.RETRIES == len(no_waiting) + 1
    assert not store.has(file)


def test_a_file_that_lies_below_its_index_is_given_up_with_our_error(
    store: Store, server: IndexServer, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=no_waiting.append))
    server.files_at = "/simple/-/"
    file = server.add(WHEEL, b"content", errors=1000)
    with pytest.raises(UpstreamError):
        _fetch([file], store, server.index)


def test_a_resume_after_a_partial_file_of_other_bytes_ends_well_the_second_time(
    store: Store, server: IndexServer
) -> None:
    content = _bytes(2 * MB)
    file = server.add(WHEEL, content)
    store.partial(file).write_bytes(b"\0" * MB)
    with pytest.raises(IntegrityError):
        _fetch([file], store, server.index)
    _fetch([file], store, server.index)
    assert store.path(file).read_bytes() == content


# ------------------------------------------------------------------------------- bad bytes


def test_a_flipped_byte_is_named_quarantined_and_costs_no_other_file(
    store: Store, server: IndexServer
) -> None:
    content = _bytes(1000)
    flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    bad = server.add(WHEEL, content, wrong=flipped)
    good = [server.add(f"good{i}-1-py3-none-any.whl", _bytes(2000, i)) for i in range(4)]
    with pytest.raises(IntegrityError) as caught:
        _fetch([*good, bad], store, server.index)
    error = caught.value
    got = hashlib.sha256(flipped).hexdigest()
    assert int(error.code) == 4
    assert WHEEL in error.what
    assert error.where == server.url(WHEEL)
    assert (error.expected, error.got) == (f"sha256 {bad.sha256}", f"sha256 {got}")
    quarantined = store.root / "quarantine" / f"{bad.sha256}-got-{got[:12]}"
    assert quarantined.read_bytes() == flipped
    assert str(quarantined) in error.remedy
    assert not store.has(bad)
    assert not store.partial(bad).exists()
    assert [store.has(file) for file in good] == [True] * 4
    assert _kept(store, "partial") == []


@pytest.mark.parametrize("change", [b"", b"much longer than it should be" * 100])
def test_bytes_of_another_length_are_never_taken(
    store: Store, server: IndexServer, no_waiting: list[float], change: bytes
) -> None:
    file = server.add(WHEEL, b"content", wrong=change)
    with pytest.raises((IntegrityError, UpstreamError)):
        _fetch([file], store, server.index)
    assert not store.has(file)
    assert _kept(store, "blobs") == []


def test_a_place_with_other_bytes_ends_the_fetch_so_that_no_later_one_hides_it(
    tmp_path: Path, store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, b"content")
    (tmp_path / WHEEL).write_bytes(b"another build")
    with pytest.raises(IntegrityError) as caught:
        _fetch([file], store, server.index, folders=[tmp_path])
    assert caught.value.where == str(tmp_path / WHEEL)
    assert server.served == []


def test_a_local_file_of_other_bytes_is_refused_and_left_where_it_is(
    tmp_path: Path, store: Store
) -> None:
    (tmp_path / WHEEL).write_bytes(b"another build")
    file = _locked(WHEEL, b"content")
    with pytest.raises(IntegrityError) as caught:
        _fetch([file], store, folders=[tmp_path])
    assert caught.value.where == str(tmp_path / WHEEL)
    assert (tmp_path / WHEEL).read_bytes() == b"another build"
    assert _kept(store, "blobs") == _kept(store, "quarantine") == []


def test_a_stored_file_that_rots_is_found_and_quarantined(
    store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, _bytes(5000))
    _fetch([file], store, server.index)
    assert store.verify(file) == store.path(file)
    with store.path(file).open("r+b") as stream:
        stream.seek(1234)
        stream.write(b"rot")
    assert store.has(file), "the size alone does not show it"
    with pytest.raises(IntegrityError) as caught:
        store.verify(file)
    assert file.name in caught.value.what
    assert caught.value.expected == f"sha256 {file.sha256}"
    assert not store.has(file)
    (name,) = _kept(store, "quarantine")
    assert name.startswith(f"{file.sha256}-got-")
    _fetch([file], store, server.index)
    assert store.verify(file) == store.path(file)


def test_verifying_a_file_that_is_not_there_is_our_error(store: Store) -> None:
    with pytest.raises(TdstackError):
        store.verify(_locked(WHEEL, b"content"))


def test_a_wheelhouse_of_symbolic_links_supplies_the_files_themselves(
    tmp_path: Path, store: Store
) -> None:
    file = _locked(WHEEL, b"content")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / WHEEL).write_bytes(b"content")
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / WHEEL).symlink_to(f"../real/{WHEEL}")
    _fetch([file], store, folders=[tmp_path / "house"])
    shutil.rmtree(tmp_path / "real")
    assert store.has(file)
    assert not store.path(file).is_symlink()


def test_a_wheelhouse_file_that_is_rewritten_in_place_does_not_rot_the_store(
    tmp_path: Path, store: Store
) -> None:
    file = _locked(WHEEL, b"content")
    (tmp_path / WHEEL).write_bytes(b"content")
    _fetch([file], store, folders=[tmp_path])
    (tmp_path / WHEEL).write_bytes(b"CONTENT")  # open(..., "wb") keeps the inode
    assert sha256_of(store.path(file)) == file.sha256


def test_a_wheelhouse_file_that_changes_while_it_is_taken_never_gets_the_name_of_its_hash(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _locked(WHEEL, b"content")
    (tmp_path / WHEEL).write_bytes(b"content")

    def hash_and_change(path: Path) -> str:
        digest = sha256_of(path)
        (tmp_path / WHEEL).write_bytes(b"CONTENT")  # somebody else, at the worst moment
        return digest

    monkeypatch.setattr("tdstack.wheelhouse.store.sha256_of", hash_and_change)
    with contextlib.suppress(IntegrityError):
        _fetch([file], store, folders=[tmp_path])
    assert not store.has(file) or sha256_of(store.path(file)) == file.sha256


# ------------------------------------------------------------------------ nothing to be had


def test_an_index_that_is_down_is_an_upstream_error_with_a_remedy(store: Store) -> None:
    with pytest.raises(UpstreamError) as caught:
        _fetch([_locked(WHEEL, b"content")], store, "http://127.0.0.1:9/simple/")
    assert int(caught.value.code) == 5
    assert caught.value.where == "http://127.0.0.1:9/simple/"
    assert "--wheelhouse" in caught.value.remedy


def test_an_index_that_is_down_does_not_show_its_password(store: Store) -> None:
    with pytest.raises(UpstreamError) as caught:
        _fetch([_locked(WHEEL, b"content")], store, "http://me:secret@127.0.0.1:9/simple/")
    assert "secret" not in str(caught.value)
    assert "//***@127.0.0.1:9" in caught.value.where


def test_an_index_that_is_down_ends_the_fetch_so_that_no_later_one_stands_in(
    store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, b"content")
    with pytest.raises(UpstreamError) as caught:
        _fetch([file], store, "http://127.0.0.1:9/simple/", server.index)
    assert caught.value.where == "http://127.0.0.1:9/simple/"
    assert server.served == []


def test_an_index_that_fails_once_is_asked_again(
    store: Store, server: IndexServer, no_waiting: list[float]
) -> None:
    file = server.add(WHEEL, b"content")
    server.index_errors = 1
    _fetch([file], store, server.index)
    assert store.has(file)


def test_a_file_that_no_index_lists_is_an_upstream_error(store: Store, server: IndexServer) -> None:
    server.add("demo-2.0-py3-none-any.whl", b"another version")
    file = _locked(WHEEL, b"content")
    with pytest.raises(UpstreamError) as caught:
        _fetch([file], store, server.index)
    assert WHEEL in caught.value.what
    assert file.sha256 in caught.value.expected
    assert "extra-index-url" in caught.value.remedy
    assert server.served == []


def test_a_file_that_is_listed_but_gone_is_an_upstream_error_without_retries(
    store: Store, server: IndexServer
) -> None:
    file = server.add(WHEEL, b"content", missing=True)
    with pytest.raises(UpstreamError) as caught:
        _fetch([file], store, server.index)
    assert "HTTP 404" in caught.value.where
    assert len(server.of(WHEEL)) == 1


def test_a_full_disk_is_a_host_error_before_anything_is_downloaded(
    store: Store, server: IndexServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server.add(WHEEL, b"content")
    full = SimpleNamespace(total=1, used=1, free=file.size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(HostError) as caught:
        _fetch([file], store, server.index)
    assert int(caught.value.code) == 3
    assert caught.value.where == str(store.root)
    assert "TDSTACK_CACHE" in caught.value.remedy
    assert server.served == []
    full.free = file.size
    _fetch([file], store, server.index)
    assert store.has(file)


def test_what_is_half_there_needs_only_the_rest_of_the_disk(
    store: Store, server: IndexServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _bytes(3000)
    file = server.add(WHEEL, content)
    store.partial(file).write_bytes(content[:2000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    _fetch([file], store, server.index)
    assert server.of(WHEEL)[0].sent == 1000


def test_a_cache_that_cannot_be_written_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError) as caught:
        Store(tmp_path / "file" / "store")
    assert "TDSTACK_CACHE" in caught.value.remedy


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("TDSTACK_CACHE", raising=False)
    assert default_cache() == tmp_path / "xdg" / "tdstack"
    monkeypatch.setenv("TDSTACK_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


# ----------------------------------------------------------------------------- at the same time


def test_two_processes_share_a_store_and_each_file_is_downloaded_once(
    tmp_path: Path, store: Store, server: IndexServer
) -> None:
    files = [server.add(f"demo{i}-1-py3-none-any.whl", _bytes(MB // 4, i)) for i in range(12)]
    largest = server.add("large-1-py3-none-any.whl", _bytes(MB, 99), stall_at=10)
    files.append(largest)
    marks = [tmp_path / "first", tmp_path / "second"]
    both = [_process(_announce_and_fetch, mark, server.index, store.root, files) for mark in marks]
    # The largest file comes first and stalls: whoever has it is still there when both run.
    _wait_for(lambda: all(mark.exists() for mark in marks) and bool(server.of(largest.name)))
    server.released.set()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    for file in files:
        assert store.verify(file) == store.path(file)
        assert sum(answer.sent for answer in server.of(file.name)) == file.size
        assert len(server.of(file.name)) == 1
    assert _kept(store, "partial") == []


def test_a_lock_of_the_store_keeps_others_out_until_it_is_released(store: Store) -> None:
    order: list[str] = []

    def second() -> None:
        with Store(store.root).locked("name"):
            order.append("second")

    with store.locked("name"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    with store.locked("another"):
        order.append("third")
    assert os.path.exists(store.root / "locks" / "another")
