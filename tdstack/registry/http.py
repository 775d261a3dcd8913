"""HTTP to registries and what they point to: certificates, proxies, redirects, failures.

Nothing here knows of credentials but the Authorization header that it is given; to another host
than the one asked that header is never sent.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter

from tdstack.errors import IntegrityError, UpstreamError
from tdstack.pipconf import without_credentials
from tdstack.registry.certificates import is_loopback, may_be_plain, tls_context
from tdstack.retry import (
    BROKEN,
    BUSY,
    CONNECT_LIMIT_S,
    SILENCE_LIMIT_S,
    TransientError,
    asked_wait_s,
)

# A registry hashes and moves a blob of gigabytes before it answers the PUT that ends it.
STORE_LIMIT_S = 600
CONNECTIONS = 16
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
BLOCK = 1 << 18

Body = bytes | io.RawIOBase


class _Adapter(HTTPAdapter):
    """Connections to one host, where they have TLS with its certificates and no other's."""

    def __init__(self, host: str, tls: bool) -> None:
        self._settings: dict[str, Any] = {"blocksize": BLOCK}
        if tls:
            self._settings["ssl_context"] = tls_context(host)
        super().__init__(pool_connections=4, pool_maxsize=CONNECTIONS)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, **self._settings})

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **{**kwargs, **self._settings})

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave the context as it is; it requires a certificate by default."""

    def build_connection_pool_key_attributes(  # type: ignore[no-untyped-def]
        self, request, verify, cert=None
    ):
        """Name the pool by host alone: `verify` and `cert` are the context's matter."""
        host, _ = super().build_connection_pool_key_attributes(request, True)
        return host, {}


class _Session(requests.Session):
    """A session that brings nothing of its own: no cookies, no netrc, no loopback by proxy."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = "tdstack"
        self.auth = lambda request: request  # without one requests would look into ~/.netrc
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._lock = threading.Lock()

    def merge_environment_settings(  # type: ignore[no-untyped-def]
        self, url, proxies, stream, verify, cert
    ):
        """Reach loopback hosts directly, as every container engine does."""
        settings = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if is_loopback(urlsplit(url).netloc):
            settings["proxies"] = {}
        return settings

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Name none: `Http.open` follows redirects, by rules of its own."""

    def get_adapter(self, url: str) -> Any:
        """Return the adapter of the address's host, made when it is first spoken to."""
        parts = urlsplit(url)
        prefix = f"{parts.scheme}://{parts.netloc}/"
        with self._lock:
            if prefix not in self.adapters:
                self.mount(prefix, _Adapter(parts.netloc, parts.scheme == "https"))
            # Not by requests' search, which another thread's mount would break.
            return self.adapters[prefix]


class Http:
    """Sends single requests; thread-safe. Trying again is the caller's matter."""

    def __init__(self) -> None:
        self._session = _Session()

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], Body] | None = None,
    ) -> requests.Response:
        """Send a request and return the answer with its body unread; the caller closes it.

        Redirects of GET and HEAD are followed, to another host without Authorization.
        Raises: TransientError where another try may succeed; UpstreamError where it would not.
        """
        sent = {"Accept-Encoding": "identity", **headers}
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._once(method, url, sent, body)
            if answer.status_code not in REDIRECTS:
                return answer
            answer.close()
            if method not in ("GET", "HEAD"):
                break
            target = joined(url, answer.headers.get("Location", ""))
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                sent.pop("Authorization", None)
            url = target
        raise UpstreamError(
            "the registry redirects where it must not, or for ever",
            where=shown(url),
            got=f"{method}: HTTP {answer.status_code}",
        )

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], Body] | None,
    ) -> requests.Response:
        try:
            answer = self._session.request(
                method,
                url,
                headers=headers,
                data=body() if body else None,
                stream=True,
                timeout=(CONNECT_LIMIT_S, STORE_LIMIT_S if method == "PUT" else SILENCE_LIMIT_S),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # `from None`: requests' text has whole addresses, and a storage's are as good as a key.
            raise failure(error, url) from None
        if answer.status_code in BUSY:
            wait = asked_wait_s(answer.headers.get("Retry-After", ""))
            answer.close()
            raise TransientError(f"HTTP {answer.status_code}", wait)
        return answer


def failure(error: Exception, url: str) -> Exception:
    """Return what a failure of a connection means: a TransientError, or an UpstreamError."""
    text = re.sub(r"\?[^\s)'\"]*", "", without_credentials(str(error)))
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return UpstreamError(
            "the certificate is not trusted",
            where=shown(url),
            got=text[-200:],
            remedy="put the authority's certificate into ~/.config/containers/certs.d/HOST/ca.crt, "
            "or name it in SSL_CERT_FILE",
        )
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return UpstreamError(
            "the registry does not speak TLS",
            where=shown(url),
            remedy="name its HOST:PORT in TDSTACK_PLAIN_HTTP if its network may be trusted",
        )
    if "_ALERT_" in text:  # the other side's words; a dropped connection has none
        return UpstreamError(
            "the registry breaks TLS off",
            where=shown(url),
            got=text[-200:],
            remedy="if it wants a client certificate: put one as client.cert, and client.key, into "
            "~/.config/containers/certs.d/HOST/",
        )
    if isinstance(error, BROKEN):
        return TransientError(f"{type(error).__name__}: {text[:200]}")
    return UpstreamError("the request failed", where=shown(url), got=text[:200])


def shown(url: str) -> str:
    """Return an address without what may be secret in it: user, password, query."""
    return without_credentials(url).split("?")[0]


def read_all(answer: requests.Response, limit: int, url: str) -> bytes:
    """Read an answer's body to its end and close it.

    Raises: IntegrityError past `limit` bytes; TransientError when it breaks off.
    """
    data = bytearray()
    try:
        with answer:
            for block in answer.iter_content(BLOCK):
                data += block
                if len(data) > limit:
                    raise IntegrityError(
                        "the registry's answer is too large",
                        where=shown(url),
                        expected=f"at most {limit} bytes",
                    )
    except requests.RequestException as error:
        raise failure(error, url) from None
    return bytes(data)


def joined(url: str, location: str) -> str:
    """Return the address that `location`, of an answer from `url`, names.

    Raises: UpstreamError for none, and for one without TLS unless its host may be spoken to so.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
    except ValueError as error:
        raise UpstreamError("the registry names no address", where=shown(url)) from error
    if parts.scheme == "https" or (parts.scheme == "http" and may_be_plain(parts.netloc)):
        return target
    raise UpstreamError(
        "the registry leads to an address without TLS",
        where=shown(url),
        got=shown(target),
        remedy="name its HOST:PORT in TDSTACK_PLAIN_HTTP if its network may be trusted",
    )
