"""Requests to the API of one registry: who we are, which failures are tried again, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import requests

from tdstack.errors import UpstreamError
from tdstack.registry.auth import Access, Authenticator
from tdstack.registry.certificates import scheme
from tdstack.registry.http import Body, Http, joined, read_all, shown
from tdstack.registry.oci import MAX_DOCUMENT
from tdstack.retry import Backoff, TransientError

T = TypeVar("T")
Say = Callable[[str], None]

# Docker Hub's API has another name than its images.
_API_HOSTS = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


@dataclass(frozen=True)
class Answer:
    """A whole answer; `url` is the address that was asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    def words(self) -> str:
        """Return the status and what the registry says about it, in one line."""
        try:
            errors = json.loads(self.body)["errors"]
            said = "; ".join(f"{e.get('code', '')}: {e.get('message', '')}" for e in errors)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            said = ""
        printable = "".join(c if c.isprintable() else " " for c in said)
        return f"HTTP {self.status}" + (f" {printable[:300]}" if printable else "")


class Api:
    """One host's API; thread-safe."""

    def __init__(self, host: str, say: Say) -> None:
        self._host = _API_HOSTS.get(host, host)
        self._http = Http()
        self._auth = Authenticator(host, self._http)
        self._say = say
        self._scheme = ""

    def url(self, path: str) -> str:
        """Return the address of `path`, such as `team/tdstack/tags/list`."""
        if not self._scheme:
            self._scheme = scheme(self._host)
        return f"{self._scheme}://{self._host}/v2/{path}"

    def beside(self, url: str, location: str) -> str:
        """Return the address that a Location or Link header of an answer from `url` names.

        Raises: UpstreamError for one without TLS where that is not allowed.
        """
        if location.lower().startswith(plain := f"http://{self._host}/"):
            # A registry behind a proxy that ends TLS often does not know of it.
            location = f"{self._scheme}://{self._host}/{location[len(plain) :]}"
        return joined(url, location)

    def patiently(self, what: str, action: Callable[[], T], backoff: Backoff | None = None) -> T:
        """Return what `action` returns, trying again after each TransientError.

        Raises: UpstreamError when the last try failed, too.
        """
        backoff = backoff or Backoff()
        while True:
            try:
                return action()
            except TransientError as error:
                self.again(what, error, backoff)

    def again(self, what: str, error: TransientError, backoff: Backoff) -> None:
        """Wait before another try at `what`, after `error`.

        Raises: UpstreamError when that was the last try.
        """
        reason = self._auth.redacted(error.reason)
        if not backoff.again(error.after_s):
            raise UpstreamError(
                "the registry cannot be reached or fails",
                where=f"{self._host}, {what}",
                got=reason,
                remedy="check its address, the network and HTTPS_PROXY; run the verb again, it "
                "resumes",
            ) from error
        self._say(f"  {self._host}: {what}: {reason}; trying again")

    def ask(
        self,
        method: str,
        path: str,
        access: Access,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = MAX_DOCUMENT,
    ) -> Answer:
        """Send a request, again where it fails, and return the whole answer.

        `path` is one below `/v2/`, or an address that the registry gave. `limit` is the largest
        body that is read, in bytes.
        Raises: UpstreamError; IntegrityError past `limit`.
        """

        def once() -> Answer:
            url = path if "://" in path else self.url(path)
            return self.whole(method, url, access, headers or {}, body, limit)

        return self.patiently(f"{method} {shown(path)}", once)

    def whole(
        self,
        method: str,
        url: str,
        access: Access,
        headers: Mapping[str, str],
        body: bytes | Callable[[], Body] | None = None,
        limit: int = MAX_DOCUMENT,
    ) -> Answer:
        """Send a request once and return the whole answer.

        Raises: TransientError; UpstreamError; IntegrityError past `limit`.
        """
        answer = self.open(method, url, access, headers, body)
        # The headers may be read after the body, but not from a closed connection's object.
        status, found = answer.status_code, answer.headers
        return Answer(status, found, read_all(answer, limit, url), url)

    def open(
        self,
        method: str,
        url: str,
        access: Access,
        headers: Mapping[str, str],
        body: bytes | Callable[[], Body] | None = None,
    ) -> requests.Response:
        """Send a request once, proving who we are; the caller reads and closes the answer.

        Raises: TransientError where another try may succeed; UpstreamError where it would not,
        and when the registry refuses (401, 403).
        """
        # Uploads may live on another host, which our credentials are not for.
        ours = urlsplit(url).netloc == self._host
        make = body if callable(body) or body is None else lambda: body
        for last in (False, True):
            proof = self._auth.header(access) if ours else ""
            sent = {**headers, **({"Authorization": proof} if proof else {})}
            answer = self._http.open(method, url, sent, make)
            if answer.status_code not in (401, 403):
                return answer
            answer.close()
            if answer.status_code == 403 or last or not ours:
                break
            self._auth.challenged(answer.headers.get("WWW-Authenticate", ""), access, proof, url)
        raise self._auth.refused(access, url, f"HTTP {answer.status_code}")

    def unexpected(self, what: str, answer: Answer, remedy: str = "") -> UpstreamError:
        """Return the error for an answer that the protocol does not foresee."""
        return UpstreamError(
            f"the registry does not {what}",
            where=shown(answer.url),
            got=self._auth.redacted(answer.words()),
            remedy=remedy,
        )
