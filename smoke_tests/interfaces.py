"""The interface and address family by which a host reaches another, by its kernel's routes."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Link:
    """How this host reaches another; ``interface`` is empty where no interface has the address."""

    interface: str
    family: str
    address: str

    def settings(self) -> dict[str, str]:
        """Return what makes gloo and NCCL use this interface and family."""
        if not self.interface:
            return {}
        return {
            "GLOO_SOCKET_IFNAME": self.interface,
            "NCCL_SOCKET_IFNAME": self.interface,
            "NCCL_SOCKET_FAMILY": self.family,
        }


def link_to(host: str, port: int) -> Link:
    """Return the link to a host; nothing is sent. Raises: OSError when no route leads there."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    failure: OSError | None = None
    for family, kind, protocol, _, place in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                own = str(probe.getsockname()[0]).partition("%")[0]
        except OSError as error:  # a family without a route; the next may have one
            failure = error
            continue
        name = "AF_INET6" if family == socket.AF_INET6 else "AF_INET"
        return Link(interface_of(own, addresses()), name, own)
    raise failure or OSError(f"{host} has no address")


def interface_of(address: str, known: Mapping[str, frozenset[str]]) -> str:
    """Return the interface that has an address, or nothing. Pure."""
    wanted = _packed(address)
    for name, own in known.items():
        if any(_packed(other) == wanted for other in own):
            return name
    return ""


def addresses() -> dict[str, frozenset[str]]:
    """Return the addresses of this host's interfaces, by interface."""
    known: dict[str, set[str]] = {name: set() for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, own in known.items():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            own.add(socket.inet_ntoa(answer[20:24]))
    try:
        table = Path("/proc/net/if_inet6").read_text()
    except OSError:
        table = ""
    for digits, *_, name in map(str.split, table.splitlines()):
        own = known.setdefault(name, set())
        own.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return {name: frozenset(own) for name, own in known.items()}


def _packed(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)
