"""WWW-Authenticate headers: how a registry says whom it wants to be asked by (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:\s+|(?=,)|$)")


@dataclass(frozen=True)
class Basic:
    """The registry takes a user and a password."""


@dataclass(frozen=True)
class Bearer:
    """The registry takes tokens of the server at `realm`, made for `service` and `scope`."""

    realm: str
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Basic | Bearer | None:
    """Return the challenge that can be answered, Bearer before Basic; None without one."""
    found: list[Basic | Bearer] = []
    rest = header
    while match := _SCHEME.match(rest):
        scheme, rest = match[1].lower(), rest[match.end() :]
        parameters: dict[str, str] = {}
        while match := _PARAMETER.match(rest):
            quoted, plain = match[2], match[3]
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[match[1].lower()] = value
            rest = rest[match.end() :]
        if scheme == "basic":
            found.append(Basic())
        elif scheme == "bearer" and parameters.get("realm"):
            known = {name: parameters.get(name, "") for name in ("realm", "service", "scope")}
            found.append(Bearer(**known))
    return min(found, key=lambda c: isinstance(c, Basic), default=None)
