"""Blobs on their way to a registry: in pieces, after dropped connections, and when it forgets."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tdstack.assemble.image import LAYER_TYPE
from tdstack.errors import IntegrityError, UpstreamError
from tdstack.registry.api import Api
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor
from tdstack.registry.reference import Repository
from tdstack.registry.upload import Source, Upload
from tests.registries import RunningRegistry, flaky_proxy, plain_registry
from tests.scripted import Asked, Reply, scripted_server

__all__ = ["plain_registry"]

PIECE = 100_000


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdstack.retry.FIRST_WAIT_S", 0.01)


@dataclass
class Uploads:
    """A registry's upload, as distribution-spec 1.1 wants it, of which parts may be lost.

    `lose` gets each PATCH and says how many bytes arrive before its connection drops.
    """

    lose: Callable[[Asked], int | None] = lambda request: None
    finish: Callable[[int], Reply | None] | None = None
    got: bytearray = field(default_factory=bytearray)
    stored: dict[str, bytes] = field(default_factory=dict)
    begun: int = 0
    finishes: int = 0

    def reply(self, request: Asked) -> Reply | None:
        here = {"Location": f"/v2/a/blobs/uploads/{self.begun}"}
        if request.method == "HEAD":
            return Reply(200 if request.path.rpartition("/")[2] in self.stored else 404)
        if request.method == "POST":
            self.begun += 1
            self.got.clear()
            return Reply(202, headers={"Location": f"/v2/a/blobs/uploads/{self.begun}?state=a"})
        if not request.path.split("?")[0].endswith(f"/{self.begun}"):
            return Reply(404)
        if request.method == "GET":
            return Reply(204, headers={**here, "Range": f"0-{max(len(self.got) - 1, 0)}"})
        if request.method == "PATCH":
            return self._patch(request, here)
        return self._put(request)

    def _patch(self, request: Asked, here: dict[str, str]) -> Reply | None:
        begin, end = map(int, request.headers["Content-Range"].split("-"))
        assert end - begin + 1 == len(request.body)
        if begin != len(self.got):
            return Reply(416, headers={**here, "Range": f"0-{len(self.got) - 1}"})
        kept = self.lose(request)
        self.got += request.body[:kept]
        return Reply(202, headers=here) if kept is None else None

    def _put(self, request: Asked) -> Reply | None:
        self.got += request.body
        self.finishes += 1
        if self.finish and (answer := self.finish(self.finishes)):
            return answer
        digest = re.sub(r".*[?&]digest=sha256(%3A|:)", "sha256:", request.path)
        if digest != f"sha256:{hashlib.sha256(self.got).hexdigest()}":
            return Reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}')
        self.stored[digest] = bytes(self.got)
        return Reply(201)


def send(host: str, blob: bytes | Path, descriptor: Descriptor, path: str = "a") -> list[int]:
    """Send a blob in small pieces; return what the progress heard."""
    heard: list[int] = []
    api = Api(host, lambda line: None)
    Upload(
        api,
        Repository(host, path),
        Source(blob),
        descriptor,
        lambda _, amount: heard.append(amount),
        piece=PIECE,
    ).run()
    return heard


def test_pieces_are_sent_in_order(tmp_path: Path) -> None:
    uploads, blob = Uploads(), os.urandom(3 * PIECE + 5)
    (tmp_path / "layer").write_bytes(blob)
    with scripted_server(uploads.reply) as server:
        descriptor = Descriptor.of(blob, LAYER_TYPE)
        heard = send(server.host, tmp_path / "layer", descriptor)
    assert uploads.stored == {descriptor.digest: blob}
    assert [request.headers["Content-Range"] for request in server.of("PATCH")] == [
        "0-99999",
        "100000-199999",
        "200000-299999",
        "300000-300004",
    ]
    assert sum(heard) == len(blob)


def test_a_piece_that_broke_off_goes_on_where_the_registry_says() -> None:
    losses = [0, 1, 2, 55_555, 99_999, 100_000]
    turn = itertools.cycle([True, False])
    uploads = Uploads(lambda request: losses.pop(0) if next(turn) and losses else None)
    blob = os.urandom(8 * PIECE + 77)
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    with scripted_server(uploads.reply) as server:
        heard = send(server.host, blob, descriptor)
    assert uploads.stored == {descriptor.digest: blob}
    assert not losses
    assert sum(heard) == len(blob)
    assert min(heard) < 0  # what was sent and lost is taken back
    # Begun again only where `0-0` could stand for one byte or for none.
    assert uploads.begun <= 3


def test_an_upload_that_the_registry_forgot_begins_anew() -> None:
    forgot: list[bool] = []

    def reply(request: Asked) -> Reply | None:
        if request.method == "PATCH" and request.headers["Content-Range"].startswith("200000"):
            forgot.append(True)
            if len(forgot) == 1:
                return Reply(404)
        return uploads.reply(request)

    uploads, blob = Uploads(), os.urandom(3 * PIECE)
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    with scripted_server(reply) as server:
        assert sum(send(server.host, blob, descriptor)) == len(blob)
    assert uploads.begun == 2
    assert uploads.stored == {descriptor.digest: blob}


@pytest.mark.parametrize("answer", [Reply(404), None])
def test_a_registry_that_forgets_each_time_is_given_up(answer: Reply | None) -> None:
    def reply(request: Asked) -> Reply | None:
        if request.method == "PATCH" and request.headers["Content-Range"].startswith("200000"):
            return answer
        return Reply(404) if request.method == "GET" else uploads.reply(request)

    uploads, blob = Uploads(), os.urandom(3 * PIECE)
    with scripted_server(reply) as server, pytest.raises(UpstreamError):
        send(server.host, blob, Descriptor.of(blob, LAYER_TYPE))
    assert uploads.begun == 6


def test_an_answer_that_is_lost_after_the_blob_is_stored_ends_well() -> None:
    uploads, blob = Uploads(), os.urandom(10)
    descriptor = Descriptor.of(blob, LAYER_TYPE)

    def reply(request: Asked) -> Reply | None:
        answer = uploads.reply(request)
        if request.method == "PUT" and uploads.finishes == 1:
            uploads.begun += 1  # the upload is over and so is its address
            return None
        return answer

    with scripted_server(reply) as server:
        send(server.host, blob, descriptor)
    assert len(server.of("PUT")) == 1


def test_a_registry_that_got_other_bytes_gets_them_again() -> None:
    uploads = Uploads(finish=lambda n: Reply(400) if n == 1 else None)
    blob = os.urandom(2 * PIECE)
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    with scripted_server(uploads.reply) as server:
        send(server.host, blob, descriptor)
    assert uploads.begun == 2
    assert uploads.stored == {descriptor.digest: blob}


def test_a_registry_that_never_takes_it_is_given_up() -> None:
    uploads, blob = Uploads(finish=lambda n: Reply(400, b"{}")), os.urandom(2 * PIECE)
    with scripted_server(uploads.reply) as server, pytest.raises(UpstreamError):
        send(server.host, blob, Descriptor.of(blob, LAYER_TYPE))
    assert uploads.begun == 6


def test_a_source_that_changed_is_not_sent_for_ever(tmp_path: Path) -> None:
    uploads, blob = Uploads(), os.urandom(2 * PIECE)
    file = tmp_path / "layer"
    file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    with scripted_server(uploads.reply) as server:
        with pytest.raises(IntegrityError, match="not what its digest says"):
            send(server.host, file, Descriptor.of(blob, LAYER_TYPE))
        file.write_bytes(blob[:-1])
        with pytest.raises(IntegrityError, match="not what its digest says"):
            send(server.host, file, Descriptor.of(blob, LAYER_TYPE))
    assert not uploads.stored


def test_pieces_are_as_large_as_the_registry_wants() -> None:
    def reply(request: Asked) -> Reply | None:
        answer = uploads.reply(request)
        if request.method == "POST" and answer:
            return Reply(202, headers={**answer.headers, "OCI-Chunk-Min-Length": "150000"})
        return answer

    uploads, blob = Uploads(), os.urandom(3 * PIECE + 5)
    with scripted_server(reply) as server:
        send(server.host, blob, Descriptor.of(blob, LAYER_TYPE))
    assert [len(request.body) for request in server.of("PATCH")] == [150_000, 150_000, 5]


def test_an_upload_to_a_foreign_host_without_tls_is_refused() -> None:
    def reply(request: Asked) -> Reply:
        return Reply(202, headers={"Location": "http://uploads.invalid/1?secret=Pa55"})

    with (
        scripted_server(reply) as server,
        pytest.raises(UpstreamError, match="without TLS") as caught,
    ):
        send(server.host, b"abc", Descriptor.of(b"abc", LAYER_TYPE))
    assert "Pa55" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_a_real_registry_takes_pieces(plain_registry: RunningRegistry, size: int) -> None:
    blob = os.urandom(size)
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    assert sum(send(plain_registry.host, blob, descriptor, "pieces")) == size
    registry, repository = Registry(plain_registry.host), Repository(plain_registry.host, "pieces")
    with registry.open_blob(repository, descriptor) as reader:
        assert reader.read() == blob


def test_a_real_registry_behind_a_network_that_cuts_uploads(
    plain_registry: RunningRegistry,
) -> None:
    # This registry throws an upload away of which a piece was cut, so it begins anew.
    blob = os.urandom(5 * PIECE)
    descriptor = Descriptor.of(blob, LAYER_TYPE)
    limits = iter([None, 150_000, 250_000, 20_000, 450_000])
    with flaky_proxy(plain_registry.host) as proxy:
        proxy.cut_upload_after = lambda: next(limits, None)
        assert sum(send(proxy.host, blob, descriptor, "cut/uploads")) == len(blob)
        assert proxy.cut == 4
    assert plain_registry.blob(descriptor.digest).read_bytes() == blob
