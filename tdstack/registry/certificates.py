"""How a registry's host is spoken to: with TLS and which certificates, or in the clear.

The folders are those of Docker and of containers (docker-certs.d(5), containers-certs.d(5)).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from tdstack.errors import HostError
from tdstack.retry import TransientError

PROBE_LIMIT_S = 10.0


def is_loopback(host: str) -> bool:
    """Return whether `HOST[:PORT]` is this machine, by its name alone."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def may_be_plain(host: str) -> bool:
    """Return whether `host` may be spoken to without TLS: loopback, or in TDSTACK_PLAIN_HTTP."""
    return is_loopback(host) or host in _named_plain()


def scheme(host: str) -> str:
    """Return `http` or `https` for a registry's host. A loopback host is asked which it is.

    Raises: TransientError when a loopback host does not answer.
    """
    if host in _named_plain():
        return "http"
    return "https" if not is_loopback(host) or _speaks_tls(host) else "http"


def _named_plain() -> list[str]:
    return os.environ.get("TDSTACK_PLAIN_HTTP", "").replace(",", " ").split()


def _speaks_tls(host: str) -> bool:
    parts = urlsplit(f"//{host}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent over this connection; whom it leads to is checked by those that follow.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        address = (parts.hostname or "", parts.port or 443)
        with socket.create_connection(address, PROBE_LIMIT_S) as raw, context.wrap_socket(raw):
            return True
    except (ssl.SSLEOFError, TimeoutError, ConnectionError) as error:
        raise TransientError(f"no connection: {error.strerror or error}") from error
    except ssl.SSLError:  # an answer, but not TLS
        return False
    except OSError as error:
        raise TransientError(f"no connection: {error.strerror or error}") from error


def tls_context(host: str) -> ssl.SSLContext:
    """Return the certificates for `host`: whom to trust, and who we are where it asks.

    Trusted are the system's authorities (SSL_CERT_FILE and SSL_CERT_DIR move them), those of
    REQUESTS_CA_BUNDLE, and `*.crt` of the host's folders in certs.d; `*.cert` with `*.key` there
    is a client certificate.
    Raises: HostError for a file that cannot be read or is no certificate.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and paths.capath is None:  # a slim container has no authorities
        _trust(context, Path(DEFAULT_CA_BUNDLE_PATH))
    if bundle := os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"):
        _trust(context, Path(bundle))
    for folder in _folders(host):
        for authority in sorted(folder.glob("*.crt")):
            _trust(context, authority)
        for certificate in sorted(folder.glob("*.cert")):
            key = certificate.with_suffix(".key")
            try:
                context.load_cert_chain(certificate, key)
            except OSError as error:  # an ssl.SSLError is one, too
                raise _unreadable("a client certificate", certificate, error) from error
    return context


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(**{"capath" if path.is_dir() else "cafile": str(path)})
    except OSError as error:
        raise _unreadable("a certificate authority", path, error) from error


def _folders(host: str) -> Iterator[Path]:
    roots = [Path("/etc/containers"), Path.home() / ".config" / "containers", Path("/etc/docker")]
    for root in roots:
        folder = root / "certs.d" / host
        if folder.is_dir():
            yield folder


def _unreadable(what: str, path: Path, error: OSError) -> HostError:
    return HostError(
        f"{what} cannot be read", where=str(path), expected="a PEM file", got=str(error)
    )
