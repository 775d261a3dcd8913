"""Interfaces, their address families, and the default routes."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable

from tdstack.doctor.facts import Interface, Network, Route
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree, number

NETWORKS = "sys/class/net"
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
RTF_UP, RTF_REJECT = 0x1, 0x200
SIOCGIFADDR = 0x8915  # netdevice(7)
# Of /proc/net/if_inet6: an address that reaches beyond its link (RFC 4291, 2.7).
LINK_LOCAL = 0x20


def ipv4_of(name: str) -> str | None:
    """Return an interface's IPv4 address, or None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def network(tree: Tree, ipv4: Callable[[str], str | None] = ipv4_of) -> Part:
    """Read /sys/class/net and the kernel's routes, and ask for this host's own addresses."""
    part = Part()
    names = tree.names(NETWORKS)
    if names is None:
        part.unknown("network.interfaces", "/sys/class/net cannot be read")
    six = ipv6_interfaces(tree.lines("proc/net/if_inet6") or [])
    held = [name for name in names or () if tree.has(f"{NETWORKS}/{name}/flags")]
    found = tuple(_interface(tree, name, ipv4(name), name in six) for name in held)
    routes = default_routes(tree.lines("proc/net/route"), tree.lines("proc/net/ipv6_route"))
    if routes is None:
        part.unknown("network.default_routes", "/proc/net cannot be read")
    first = routes[0] if routes else Route("", "")
    part.sections["network"] = Network(
        interfaces=None if names is None else found,
        default_routes=routes,
        bootstrap_interface=None if routes is None else first.interface,
        bootstrap_family=None if routes is None else first.family,
        host_resolves=_resolves(),
    )
    return part


def ipv6_interfaces(lines: list[str]) -> frozenset[str]:
    """Return the interfaces with an IPv6 address that other links reach. Pure."""
    rows = [words for words in map(str.split, lines) if len(words) == 6]
    return frozenset(words[5] for words in rows if number(words[3], 16) != LINK_LOCAL)


def default_routes(four: list[str] | None, six: list[str] | None) -> tuple[Route, ...] | None:
    """Return the default routes in lines of /proc/net/route and /proc/net/ipv6_route. Pure.

    IPv4 comes first, as NVSHMEM and NCCL ask for it first; then the lowest metric.
    """
    if four is None and six is None:
        return None
    found = []
    for line in (four or [])[1:]:
        words = line.split()
        # Interface, destination, gateway, flags, two counters, metric, mask.
        if len(words) > 7 and words[1] == words[7] == "00000000" and _up(words[3]):
            found.append((0, number(words[6]) or 0, Route("AF_INET", words[0])))
    for line in six or []:
        words = line.split()
        # Destination, its length, source, its length, gateway, metric, two counters, flags.
        if len(words) > 9 and set(words[0]) == {"0"} and words[1] == "00" and _up(words[8]):
            found.append((1, number(words[5], 16) or 0, Route("AF_INET6", words[9])))
    ordered = sorted(found, key=lambda entry: entry[:2])
    return tuple(dict.fromkeys(route for _, _, route in ordered))


def _up(flags: str) -> bool:
    value = number(flags, 16) or 0
    return bool(value & RTF_UP) and not value & RTF_REJECT


def _interface(tree: Tree, name: str, four: str | None, six: bool) -> Interface:
    folder = f"{NETWORKS}/{name}"
    flags = tree.number(f"{folder}/flags", 16)
    speed = tree.number(f"{folder}/speed")
    far = four is not None and not four.startswith("169.254.")
    families = (*(("AF_INET",) if far else ()), *(("AF_INET6",) if six else ()))
    return Interface(
        name=name,
        up=None
        if flags is None
        else bool(flags & IFF_UP) and tree.text(f"{folder}/operstate") in ("up", "unknown"),
        loopback=None if flags is None else bool(flags & IFF_LOOPBACK),
        virtual=not tree.has(f"{folder}/device"),
        mtu=tree.number(f"{folder}/mtu"),
        speed_mbps=speed if speed is not None and speed >= 0 else None,
        families=families,
    )


def _resolves() -> bool:
    try:
        return bool(socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return False
