"""A program in place of SGLang's server: GET /health, SIGTERM, a log. Started by serve.sbatch.

Its own options come first: --warm-s S (no answer before), --die-s S (it ends by itself then),
--stubborn (SIGTERM kills it without a word); the others are a server's.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType
from typing import ClassVar


class Handler(BaseHTTPRequestHandler):
    """Answers /health once it is warm."""

    warm_at: ClassVar[float]

    def do_GET(self) -> None:
        warm = self.path == "/health" and time.monotonic() >= self.warm_at
        self.send_response(200 if warm else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def main() -> None:
    """Serve until SIGTERM; then say so, and end with 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--warm-s", type=float, default=0.0)
    parser.add_argument("--die-s", type=float)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--tp-size", type=int)
    given = parser.parse_args()
    Handler.warm_at = time.monotonic() + given.warm_s
    server = HTTPServer((given.host, given.port), Handler)
    overlap = os.environ.get("SGL_USE_TP_OVERLAP")
    print(f"serving {given.model_path}, tp {given.tp_size}, overlap {overlap}", flush=True)

    def stop(number: int, frame: FrameType | None) -> None:
        print("stopped cleanly", flush=True)
        sys.exit(0)

    if not given.stubborn:
        signal.signal(signal.SIGTERM, stop)
    if given.die_s is not None:
        threading.Timer(given.die_s, lambda: os._exit(3)).start()
    server.serve_forever(0.05)


if __name__ == "__main__":
    main()
