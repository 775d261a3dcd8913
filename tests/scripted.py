"""An HTTP server on loopback that answers as a test says and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """One request. `body` is what came of it: less than was announced if it broke off."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer; `cut` closes the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Scripted:
    """A running server and the requests that it had, in the order of their ends."""

    host: str
    asked: list[Asked] = field(default_factory=list)

    def of(self, method: str) -> list[Asked]:
        """Return the requests with one method."""
        return [request for request in self.asked if request.method == method]


@contextmanager
def scripted_server(
    reply: Callable[[Asked], Reply | None], tls: ssl.SSLContext | None = None
) -> Iterator[Scripted]:
    """Run a server whose answers `reply` makes; None closes the connection without one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            request = Asked(self.command, self.path, dict(self.headers), self.rfile.read(length))
            answer = reply(request)
            state.asked.append(request)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.cut])
            self.close_connection = answer.cut is not None

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        # The handshake waits for the first read: it must not hold up the thread that accepts.
        listening.socket = tls.wrap_socket(
            listening.socket, server_side=True, do_handshake_on_connect=False
        )
    state = Scripted(f"127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
