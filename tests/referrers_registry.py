"""A registry in small that has the referrers API (distribution-spec 1.1), which Debian's lacks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class ReferrersRegistry:
    """What the registry holds: blobs by digest, manifests by repository and tag or digest."""

    host: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def referrers(self, repository: str, digest: str) -> list[dict[str, object]]:
        """Return the entries of all manifests whose subject is `digest`."""
        found = []
        for (name, reference), (data, media_type) in self.manifests.items():
            manifest = json.loads(data)
            subject = manifest.get("subject", {}).get("digest")
            if name == repository and reference.startswith("sha256:") and subject == digest:
                entry = {"mediaType": media_type, "digest": reference, "size": len(data)}
                entry["artifactType"] = manifest.get("artifactType", "")
                entry["annotations"] = manifest.get("annotations", {})
                found.append(entry)
        return found


@contextmanager
def referrers_registry() -> Iterator[ReferrersRegistry]:
    """Run one on loopback."""
    held = ReferrersRegistry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            if self.command != "HEAD" or "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def route(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            url = urlsplit(self.path)
            held.asked.append(f"{self.command} {self.path}")
            path = url.path.removeprefix("/v2/")
            query = parse_qs(url.query)
            for kind, handler in (
                ("/manifests/", self.manifests),
                ("/blobs/uploads/", self.uploads),
                ("/blobs/", self.blobs),
                ("/referrers/", self.referrers),
            ):
                if kind in path:
                    repository, _, rest = path.rpartition(kind)
                    handler(repository, rest, query, body)
                    return
            self.answer(200)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = route  # noqa: N815

        def manifests(
            self, repository: str, name: str, _query: dict[str, list[str]], body: bytes
        ) -> None:
            if self.command == "PUT":
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                for reference in {name, digest}:
                    kind = self.headers["Content-Type"]
                    held.manifests[repository, reference] = body, kind
                subject = json.loads(body).get("subject", {}).get("digest")
                told = {"OCI_Subject": subject} if subject else {}
                self.answer(201, Docker_Content_Digest=digest, Location="/", **told)
            elif found := held.manifests.get((repository, name)):
                self.sent(*found)
            else:
                self.answer(404)

        def sent(self, data: bytes, media_type: str) -> None:
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            told = {"Content_Type": media_type, "Docker_Content_Digest": digest}
            if self.command == "HEAD":
                told["Content_Length"] = str(len(data))
            self.answer(200, data, **told)

        def uploads(
            self, _repository: str, _rest: str, query: dict[str, list[str]], body: bytes
        ) -> None:
            if self.command == "POST" and "digest" not in query:
                self.answer(202, Location=f"{urlsplit(self.path).path}1", Range="0-0")
            else:
                digest = unquote(query.get("digest", [""])[0])
                assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
                held.blobs[digest] = body
                self.answer(201, Location="/", Docker_Content_Digest=digest)

        def blobs(
            self, _repository: str, digest: str, _query: dict[str, list[str]], _body: bytes
        ) -> None:
            if digest in held.blobs:
                self.sent(held.blobs[digest], "application/octet-stream")
            else:
                self.answer(404)

        def referrers(
            self, repository: str, digest: str, query: dict[str, list[str]], _body: bytes
        ) -> None:
            entries = held.referrers(repository, digest)
            if wanted := query.get("artifactType"):
                entries = [e for e in entries if e["artifactType"] == wanted[0]]
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
            self.answer(200, json.dumps(index).encode(), Content_Type=INDEX)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    held.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()
