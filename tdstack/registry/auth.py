"""Proving who we are: Basic, and Bearer tokens of a registry's token server.

Protocol: the token authentication of distribution ("Token Authentication Specification" and its
OAuth2 variant for identity tokens). A token is kept until shortly before it ends.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from tdstack.errors import UpstreamError
from tdstack.registry.challenge import Basic, Bearer, parse_challenge
from tdstack.registry.credentials import Credentials, credentials_for
from tdstack.registry.http import Http, joined, read_all, shown

# The specification's default; many servers leave the field out.
LIFETIME_S = 60.0
# Of a token's life, the part in which it is used: a request must end before the token does.
USED_PART = 0.8
MAX_ANSWER = 1 << 20
CLIENT = "tdstack"


@dataclass(frozen=True)
class Access:
    """What a request does to a repository; `also` is a second one that it only reads."""

    repository: str
    actions: str = "pull"
    also: str = ""

    def scopes(self) -> tuple[str, ...]:
        """Return the scopes to ask a token server for."""
        also = (f"repository:{self.also}:pull",) if self.also else ()
        return (f"repository:{self.repository}:{self.actions}", *also)


@dataclass(frozen=True)
class _Token:
    value: str = field(repr=False)
    until: float  # of time.monotonic


class Authenticator:
    """Makes the Authorization headers for one host; thread-safe."""

    def __init__(self, host: str, http: Http) -> None:
        self._host = host
        self._http = http
        self._lock = threading.RLock()
        self._challenge: Basic | Bearer | None = None
        self._credentials: dict[str, Credentials | None] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._extra: dict[Access, str] = {}

    def header(self, access: Access) -> str:
        """Return the header for a request; empty as long as the registry asked for none.

        Raises: UpstreamError when the token server refuses; TransientError when it fails.
        """
        with self._lock:  # one thread fetches a token, the others use it
            if self._challenge is None:
                return ""
            credentials = self._who(access)
            if isinstance(self._challenge, Basic):
                return credentials.basic() if credentials else ""
            scopes = self._scopes(access)
            token = self._tokens.get(scopes)
            if token is None or token.until < time.monotonic():
                token = self._fetch(self._challenge, access, credentials)
                self._tokens[scopes] = token
            return f"Bearer {token.value}"

    def challenged(self, header: str, access: Access, used: str, url: str) -> None:
        """Take note of a 401: what it asks for, and that the header `used` is worth nothing.

        Raises: UpstreamError when there is nothing else to answer with.
        """
        with self._lock:
            challenge = parse_challenge(header)
            if challenge is None:
                raise self.refused(access, url, "HTTP 401 without a challenge that is known here")
            if isinstance(challenge, Basic) and (used or not self._who(access)):
                raise self.refused(access, url, "HTTP 401")
            if isinstance(challenge, Bearer):
                challenge = replace(challenge, realm=joined(url, challenge.realm))
                if challenge.scope:
                    self._extra[access] = challenge.scope
                scopes = self._scopes(access)
                if (kept := self._tokens.get(scopes)) and used == f"Bearer {kept.value}":
                    del self._tokens[scopes]
            self._challenge = challenge

    def refused(self, access: Access, url: str, got: str) -> UpstreamError:
        """Return the error for credentials that do not suffice; it names the user at most."""
        credentials = self._who(access)
        return UpstreamError(
            "the registry refuses your credentials"
            if credentials
            else "the registry asks for credentials, and there are none for it",
            where=shown(url),
            expected=f"the right to {access.actions} {access.repository}",
            got=self.redacted(got) + (f" for user {credentials.user}" if credentials else ""),
            remedy=f"run `docker login {self._host}` or `buildah login {self._host}`, or name a "
            "file with credentials in REGISTRY_AUTH_FILE",
        )

    def redacted(self, text: str) -> str:
        """Return what a server said without the secrets that it was told."""
        with self._lock:
            known = [c for c in self._credentials.values() if c]
            secrets = [token.value for token in self._tokens.values()]
        secrets += [c.secret for c in known] + [c.basic().split()[1] for c in known]
        for secret in secrets:
            text = text.replace(secret, "***") if secret else text
        return text

    def _who(self, access: Access) -> Credentials | None:
        if access.repository not in self._credentials:
            self._credentials[access.repository] = credentials_for(self._host, access.repository)
        return self._credentials[access.repository]

    def _scopes(self, access: Access) -> tuple[str, ...]:
        # What the registry named counts too: some want other actions than the specification's.
        named = self._extra.get(access, "").split()
        return tuple(dict.fromkeys([*access.scopes(), *named]))

    def _fetch(self, challenge: Bearer, access: Access, credentials: Credentials | None) -> _Token:
        realm, scopes = challenge.realm, self._scopes(access)
        begin = time.monotonic()
        if credentials and credentials.is_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.secret}
            form |= {"service": challenge.service, "client_id": CLIENT, "scope": " ".join(scopes)}
            data = urlencode(form).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._http.open("POST", realm, headers, lambda: data)
        else:
            query = [("service", challenge.service)] if challenge.service else []
            query += [("scope", scope) for scope in scopes]
            headers = {"Authorization": credentials.basic()} if credentials else {}
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            answer = self._http.open("GET", url, headers)
        body = read_all(answer, MAX_ANSWER, realm)
        if answer.status_code in (400, 401, 403):
            raise self.refused(access, realm, f"HTTP {answer.status_code}")
        try:
            if answer.status_code != 200:
                raise ValueError(f"HTTP {answer.status_code}")
            said = json.loads(body)
            value = said.get("token") or said["access_token"]
            lifetime = float(said.get("expires_in") or LIFETIME_S)
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise ValueError("the token is no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            status = f"HTTP {answer.status_code}, {type(error).__name__}"
            # `from None`: a JSON error carries the document, and the token in it.
            raise UpstreamError(
                "the token server's answer is of no use", where=shown(realm), got=status
            ) from None
        return _Token(value, begin + USED_PART * lifetime)
