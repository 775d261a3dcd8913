"""Names in a registry: repositories, tags and digests (grammar of distribution-spec 1.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdstack.errors import UsageError

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_HOST = re.compile(rf"(?:{_NAME}|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]+))?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What registries take for host and path together.
MAX_NAME = 255


def is_digest(text: str) -> bool:
    """Return whether `text` is a digest, `sha256:` and 64 hex digits; no other is in use here."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Return whether `text` may be a tag."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True)
class Repository:
    """A repository of one registry: host `reg.example:5000`, path `team/tdstack`.

    Raises: UsageError for a host or a path that no registry has.
    """

    host: str
    path: str

    def __post_init__(self) -> None:
        match = _HOST.fullmatch(self.host)
        if match is None or not _is_registry(self.host) or not _is_port(match["port"]):
            raise _bad(f"{self.host!r} is not the host of a registry", "HOST[:PORT]/PATH")
        if _PATH.fullmatch(self.path) is None:
            raise _bad(
                f"{self.path!r} is not the path of a repository",
                "lower-case letters, digits, and between them . _ __ - and /",
            )
        if len(str(self)) > MAX_NAME:
            raise _bad("the repository's name is too long", f"at most {MAX_NAME} characters")

    def child(self, name: str) -> Repository:
        """Return the repository `name` below this one."""
        return Repository(self.host, f"{self.path}/{name}")

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


@dataclass(frozen=True)
class Reference:
    """A manifest of a repository by its tag, its digest, or both (then the digest decides).

    Raises: UsageError for neither, or for a malformed one.
    """

    repository: Repository
    tag: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        if not self.tag and not self.digest:
            raise _bad(f"{self.repository} names no image", "HOST[:PORT]/PATH:TAG or @sha256:HEX")
        if self.tag and not is_tag(self.tag):
            raise _bad(f"{self.tag!r} is not a tag", "up to 128 letters, digits, '_', '.', '-'")
        if self.digest and not is_digest(self.digest):
            raise _bad(f"{self.digest!r} is not a digest", "sha256: and 64 hex digits")

    @property
    def identifier(self) -> str:
        """Return what to ask the registry for: the digest where there is one."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse_repository(text: str) -> Repository:
    """Read `HOST[:PORT]/PATH`.

    Raises: UsageError when it is something else; a password in it is not repeated.
    """
    host, path = _split(text)
    return Repository(host, path)


def parse_reference(text: str) -> Reference:
    """Read `HOST[:PORT]/PATH[:TAG][@sha256:HEX]`.

    Raises: UsageError when it is something else, or names no registry as `localhost/...` does,
    which is how engines name images of their own.
    """
    host, rest = _split(text)
    rest, at, digest = rest.partition("@")
    path, colon, tag = rest.partition(":")
    if (at and not digest) or (colon and not tag):
        raise _bad(f"{text!r} ends too early", "HOST[:PORT]/PATH[:TAG][@sha256:HEX]")
    return Reference(Repository(host, path), tag, digest)


def is_pinned(text: str) -> bool:
    """Return whether a text names an image by its digest, and by nothing else."""
    try:
        reference = parse_reference(text)
    except UsageError:
        return False
    return bool(reference.digest) and not reference.tag


def _split(text: str) -> tuple[str, str]:
    if "://" in text:
        raise _bad(
            "a registry is named without a scheme",
            "HOST[:PORT]/PATH",
            remedy="leave out http:// or https://; TDSTACK_PLAIN_HTTP names the hosts without TLS",
        )
    host, slash, rest = text.partition("/")
    if "@" in host:
        if not slash and is_digest(host.partition("@")[2]):
            raise _bad(f"{text!r} names no registry", "HOST[:PORT]/PATH")
        # Most likely user:password@host: it must not come back in the message.
        raise _bad(
            "a registry is named without a user or password",
            "HOST[:PORT]/PATH",
            remedy="run `docker login HOST` or `buildah login HOST`; tdstack reads what they save",
        )
    if not slash or not _is_registry(host):
        raise _bad(f"{text!r} names no registry", "HOST[:PORT]/PATH, with a dot or a port in HOST")
    return host, rest


def _is_registry(host: str) -> bool:
    return "." in host or ":" in host


def _is_port(digits: str | None) -> bool:
    return digits is None or (len(digits) <= 5 and 0 < int(digits) < 65536)


def _bad(what: str, expected: str, *, remedy: str = "") -> UsageError:
    return UsageError(what, where="--registry", expected=expected, remedy=remedy)
