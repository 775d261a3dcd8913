"""What several test files share: the checkout, its lock, a store, real wheels, a real index."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import importlib.util
import io
import re
import signal
import sys
import threading
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

# `pytest` alone does not put the checkout on the path (`python -m pytest` does), and processes
# that a test starts with multiprocessing take their path from here.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock, LockedFile
from tdstack.wheelhouse.store import Store
from tests.halves import group_of, order_of

# A shell starts background jobs with interrupts ignored, and every program below would inherit
# that: tests of an interrupt would wait for something that cannot happen.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
ZIP_TIME = (2024, 1, 1, 0, 0, 0)

needs_torch = pytest.mark.skipif(
    any(not importlib.util.find_spec(name) for name in ("torch", "triton", "numpy")),
    reason="needs torch, Triton and numpy",
)
"""For tests that run the kernels, or what measures them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option, unless kernels/tests, which also run alone, were there first."""
    with contextlib.suppress(ValueError):
        parser.addoption("--by-hand", action="store_true", help="also run what takes minutes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes; two processes begin with the long groups."""
    if hasattr(config, "workerinput"):  # one of the processes of pytest-xdist
        items.sort(key=lambda item: order_of(group_of(item.path.relative_to(ROOT))))
    if config.getoption("--by-hand", default=False):
        return
    for item in items:
        if item.get_closest_marker("by_hand"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: --by-hand runs it"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests by groups. xdist's own groups, marks, are lost with pytest 9.2."""
    from tests.halves_scheduler import GroupScheduling

    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout's root."""
    return ROOT


@pytest.fixture
def kernels_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test import the kernels' package, which is not installed here."""
    monkeypatch.syspath_prepend(str(ROOT / "kernels" / "src"))


@pytest.fixture(scope="session")
def lock() -> Lock:
    """Return the checkout's own versions.lock, parsed."""
    return load_lock(ROOT)[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    return Store(tmp_path / "store")


class MakeWheel(Protocol):
    """Writes a real wheel with a valid RECORD and returns its path."""

    def __call__(
        self,
        folder: Path,
        name: str,
        version: str,
        files: Mapping[str, bytes | str] = {},
        tag: str = "py3-none-any",
        entry_points: str = "",
        scripts: Mapping[str, bytes | str] = {},
        executable: Collection[str] = (),
    ) -> Path: ...


@pytest.fixture(scope="session")
def make_wheel() -> MakeWheel:
    """Return the wheel writer.

    `files` maps names in the wheel to content; `{data}` in a name stands for the wheel's .data
    folder and `{info}` for its .dist-info. `executable` names those that carry the x bit;
    scripts always do.
    What `files` says of RECORD, METADATA and the like goes before what would be written.
    """
    return _write_wheel


def _write_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes | str] = {},
    tag: str = "py3-none-any",
    entry_points: str = "",
    scripts: Mapping[str, bytes | str] = {},
    executable: Collection[str] = (),
) -> Path:
    stem = f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    info, data = f"{stem}.dist-info", f"{stem}.data"
    pure = "true" if tag.endswith("-any") else "false"
    members: dict[str, bytes] = {
        member.format(data=data, info=info): _encoded(content) for member, content in files.items()
    }
    members |= {f"{data}/scripts/{k}": _encoded(v) for k, v in scripts.items()}
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nMade by a test.\n"
    members.setdefault(f"{info}/METADATA", metadata.encode())
    members[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    )
    if entry_points:
        members[f"{info}/entry_points.txt"] = entry_points.encode()
    record = io.StringIO()
    rows = [(member, *record_hash(content)) for member, content in members.items()]
    csv.writer(record, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
    members.setdefault(f"{info}/RECORD", record.getvalue().encode())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            entry = zipfile.ZipInfo(member, ZIP_TIME)
            marked = member in executable or member.startswith(f"{data}/scripts/")
            entry.external_attr = (0o100755 if marked else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def record_hash(content: bytes) -> tuple[str, str]:
    """Return hash and size as RECORD wants them."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}", str(len(content))


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


@dataclass
class Behaviour:
    """How the server serves one file. Offsets count from the file's first byte."""

    ignore_ranges: bool = False
    drop_at: int | None = None  # close the connection there ...
    drops: int = 1  # ... this many times
    stall_at: int | None = None  # fall silent there until released, then go on
    errors: int = 0  # answer 500 this many times
    missing: bool = False  # listed, but 404
    wrong: bytes | None = None  # other bytes under the same name


@dataclass(frozen=True)
class Served:
    """One answer: the file, the Range that was asked for, the status, the bytes sent."""

    name: str
    asked_range: str
    status: int
    sent: int


@dataclass
class IndexServer:
    """A package index and its files on 127.0.0.1; also a Debian mirror, and a proxy.

    `hosts` lists the hosts that it was asked for as a proxy.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    served: list[Served] = field(default_factory=list)
    files_at: str = "/files/"
    index_errors: int = 0
    hosts: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def index(self) -> str:
        """Return the address of the simple index."""
        return f"{self.address}/simple/"

    def url(self, name: str) -> str:
        """Return the address of a file."""
        return f"{self.address}{self.files_at}{name}"

    def add(self, name: str, content: bytes, **behaviour: object) -> LockedFile:
        """Serve `content` as `name`; return it as a lock would name it."""
        self.files[name] = content
        self.behaviours[name] = Behaviour(**behaviour)  # type: ignore[arg-type]
        return LockedFile(name=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    def of(self, name: str) -> list[Served]:
        """Return the answers that concern one file, oldest first."""
        return [answer for answer in self.served if answer.name == name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: IndexServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)  # a whole address when this server is asked as a proxy
        path = address.path
        if address.hostname:
            self.state.hosts.append(address.hostname)
        if path.startswith(self.state.files_at):
            self._file(path.removeprefix(self.state.files_at))
        elif path.startswith("/simple/"):
            self._index(path.removeprefix("/simple/").strip("/"))
        elif path.startswith("/debian/"):
            self._file(path.removeprefix("/debian/"))
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"")

    def _index(self, project: str) -> None:
        if self.state.index_errors:
            self.state.index_errors -= 1
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"")
            return
        names = [n for n in self.state.files if _project(n) == project]
        at = self.state.files_at
        links = "".join(f'<a href="{at}{name}">{name}</a>\n' for name in names)
        status = HTTPStatus.OK if names else HTTPStatus.NOT_FOUND
        self._answer(status, f"<!DOCTYPE html><html><body>\n{links}</body></html>".encode())

    def _file(self, name: str) -> None:
        behaviour = self.state.behaviours.get(name, Behaviour(missing=True))
        asked = self.headers.get("Range", "")
        if behaviour.errors:
            behaviour.errors -= 1
            self._note(name, asked, HTTPStatus.INTERNAL_SERVER_ERROR, 0)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"")
            return
        if behaviour.missing:
            self._note(name, asked, HTTPStatus.NOT_FOUND, 0)
            self._answer(HTTPStatus.NOT_FOUND, b"")
            return
        whole = self.state.files[name] if behaviour.wrong is None else behaviour.wrong
        match = re.fullmatch(r"bytes=(\d+)-", asked)
        begin = int(match.group(1)) if match and not behaviour.ignore_ranges else 0
        end, stalls = len(whole), False
        if behaviour.drop_at is not None and behaviour.drops:
            behaviour.drops -= 1
            end = max(begin, behaviour.drop_at)
        if behaviour.stall_at is not None and not self.state.released.is_set():
            end, stalls = max(begin, behaviour.stall_at), True
        status = HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK
        self._note(name, asked, status, (len(whole) if stalls else end) - begin)
        self.send_response(status)
        self.send_header("Content-Length", str(len(whole) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        self.close_connection = end < len(whole)
        self.wfile.write(whole[begin:end])
        if stalls:
            self.state.released.wait(30)
            with contextlib.suppress(OSError):  # the client was killed meanwhile
                self.wfile.write(whole[end:])

    def _note(self, name: str, asked: str, status: HTTPStatus, sent: int) -> None:
        self.state.served.append(Served(name, asked, int(status), sent))

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def _project(filename: str) -> str:
    stem = re.split(r"-\d", filename, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", stem).lower()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexServer]:
    """Run an index without files; tests add files and say how each is served."""
    # Whatever proxy this host has must not see these requests.
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (_Handler,), {})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state = IndexServer(f"http://127.0.0.1:{listening.server_port}")
    handler.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
    thread.start()
    yield state
    state.released.set()
    listening.shutdown()
    thread.join()
    listening.server_close()
