"""A record without what names its host or its people; equal values keep equal placeholders. Pure.

Addresses of hardware and hosts are told by their form everywhere; names of hosts and users can
only be told by knowing them, in those fields whose words are not ours.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Fields that hold paths, messages of programs or settings.
FREE = frozenset({"why", "path", "root", "file", "problems", "notes", "text", "cmdline"}) | {
    *("environment", "parameters", "label"),
}
# Fields whose values are hardware's own names.
NAMED = {"uuid": "uuid", "guid": "guid"}
# Names that say nothing of anybody.
COMMON = frozenset({"root", "nobody", "localhost", "user", "users", "home", "tmp", "nvidia"})

_UUID = re.compile(
    r"\b(?:(?:GPU|MIG)-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I
)
_GUID = re.compile(r"(?<![0-9a-f:])(?:[0-9a-f]{4}:){3}[0-9a-f]{4}(?![0-9a-f:.])", re.I)
_MAC = re.compile(
    r"(?<![0-9a-f:])(?:[0-9a-f]{2}:){5}(?:[0-9a-f]{2}:?)*[0-9a-f]{2}(?![0-9a-f:])", re.I
)
_ID = re.compile(r"\b[0-9a-f]{32,128}\b", re.I)
_ADDRESS = re.compile(r"(?<![\w.:])[0-9a-f:.]*[:.][0-9a-f:.]+(?![\w:])", re.I)
_SERVER = re.compile(r"((?:[a-z][a-z0-9+]*://(?:[^/\s@'\"]*@)?|host=['\"]))([\w.-]+)", re.I)
_HOME = re.compile(r"(/(?:home|Users|var/home|export/home)/)([^/\s:'\"]+)")


@dataclass(frozen=True)
class Names:
    """Names to be replaced: of the host, of users, and their home folders."""

    hosts: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    homes: frozenset[str] = frozenset()


@dataclass
class Placeholders:
    """Placeholders by kind and value, counted in the order in which values are met."""

    given: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, kind: str, value: str) -> str:
        """Return the placeholder of a value, such as `uuid-1`."""
        key = (kind, value.lower())
        if key not in self.given:
            # A host's several names share one placeholder.
            used = {place for (known, _), place in self.given.items() if known == kind}
            self.given[key] = f"{kind}-{len(used) + 1}"
        return self.given[key]


def scrub(record: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return a record with placeholders in place of names, UUIDs, GUIDs, MAC and IP addresses."""
    places = Placeholders()
    # The label first, so that the host itself is host-1.
    made = {"label": places.of("host", str(record.get("label") or "this"))}
    for host in sorted(names.hosts):
        places.given.setdefault(("host", host.lower()), made["label"])
    scrubbed: dict[str, Any] = _walk(record, "", names, places, free=False)
    return scrubbed | made


def _walk(value: Any, key: str, names: Names, places: Placeholders, *, free: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _walk(held, name, names, places, free=free or name in FREE)
            for name, held in value.items()
        }
    if isinstance(value, list | tuple):
        return [_walk(held, key, names, places, free=free) for held in value]
    if not isinstance(value, str):
        return value
    if key in NAMED and value:
        return places.of(NAMED[key], value)
    return text(value, names, places, free=free)


def text(value: str, names: Names, places: Placeholders, *, free: bool) -> str:
    """Return a text with placeholders; names and IP addresses are looked for in `free` text."""

    def put(kind: str, group: int = 0) -> Callable[[re.Match[str]], str]:
        return lambda match: places.of(kind, match[group])

    value = _UUID.sub(put("uuid"), value)
    value = _MAC.sub(put("mac"), value)
    value = _GUID.sub(put("guid"), value)
    if not free:
        return value
    value = _ID.sub(put("id"), value)
    value = _ADDRESS.sub(lambda match: _address(match[0], places), value)
    for home in sorted(names.homes, key=len, reverse=True):
        if len(home) > 1 and home != "/root":
            value = re.sub(
                rf"{re.escape(home)}(?=/|$|[\s:'\"])",
                lambda _, home=home: f"/home/{places.of('user', _user(home))}",  # type: ignore[misc]
                value,
            )
    value = _HOME.sub(
        lambda m: m[1] + (m[2] if _placed(m[2], "user") else places.of("user", m[2])), value
    )
    for kind, known in (("host", names.hosts), ("user", names.users)):
        for name in sorted(known, key=len, reverse=True):
            if len(name) >= 3 and name.lower() not in COMMON:
                whole = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])", re.I)
                value = whole.sub(put(kind), value)
    return _SERVER.sub(lambda match: match[1] + _server(match[2], places), value)


def _address(found: str, places: Placeholders) -> str:
    stripped = found.rstrip(".:")
    for end in range(len(stripped), 0, -1):
        # An IPv4 address may stand before a port.
        if end < len(stripped) and stripped[end] != ":":
            continue
        try:
            address = ipaddress.ip_address(stripped[:end])
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified:
            return found
        return places.of("ip", stripped[:end]) + found[end:]
    return found


def _server(name: str, places: Placeholders) -> str:
    if name.lower() in COMMON or _placed(name, "host") or _placed(name, "ip") or name[0].isdigit():
        return name
    return places.of("host", name)


def _placed(name: str, kind: str) -> bool:
    return re.fullmatch(rf"{kind}-\d+", name) is not None


def _user(home: str) -> str:
    return home.rstrip("/").rpartition("/")[2]
