"""A token server for docker-registry: signed JSON web tokens, as distribution specifies them."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from tests.authorities import Authority
from tests.scripted import Asked, Reply, Scripted, scripted_server

SERVICE = "registry of a test"
ISSUER = "a test"


@dataclass
class TokenServer:
    """What the server gives: `refresh` for its identity token, `user` for name and password."""

    authority: Authority
    user: str
    password: str
    refresh: str
    # When the next tokens end, in seconds from now. docker-registry forgives a minute.
    ends_in_s: float = 300
    given: list[str] = field(default_factory=list)
    server: Scripted | None = None

    @property
    def host(self) -> str:
        """Return the server's HOST:PORT."""
        assert self.server is not None
        return self.server.host

    def configuration(self) -> dict[str, object]:
        """Return the part `auth` of a registry's configuration that trusts this server."""
        return {
            "token": {
                "realm": f"http://{self.host}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.authority.path),
            }
        }

    def reply(self, request: Asked) -> Reply:
        """Answer a request for a token."""
        form = parse_qs(urlsplit(request.path).query or request.body.decode())
        if request.method == "POST":
            known = form.get("refresh_token") == [self.refresh]
        else:
            basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            known = request.headers.get("Authorization") == f"Basic {basic}"
        if not known or form.get("service") != [SERVICE]:
            return Reply(401, b'{"details": "incorrect"}')
        asked = " ".join(form.get("scope", [])).split()
        end = time.time() + self.ends_in_s
        token = self._token([scope.split(":") for scope in asked], end)
        self.given.append(token)
        return Reply(200, json.dumps({"token": token, "expires_in": 300}).encode())

    def _token(self, scopes: list[list[str]], end: float) -> str:
        certificate = self.authority.certificate.public_bytes(Encoding.DER)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(certificate).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": self.user,
            "aud": SERVICE,
            "exp": int(end),
            "nbf": int(end) - 3600,
            "iat": int(end) - 3600,
            "jti": uuid.uuid4().hex,
            "access": [
                {"type": kind, "name": name, "actions": actions.split(",")}
                for kind, name, actions in scopes
            ],
        }
        signed = b".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
        signature = self.authority.key.sign(signed, ec.ECDSA(hashes.SHA256()))
        r, s = decode_dss_signature(signature)
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return b".".join((signed, _encoded(raw))).decode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@contextmanager
def token_server(
    authority: Authority, user: str, password: str, refresh: str
) -> Iterator[TokenServer]:
    """Run a token server whose tokens `authority` signs."""
    tokens = TokenServer(authority, user, password, refresh)
    with scripted_server(tokens.reply) as tokens.server:
        yield tokens
