"""Interfaces, their address families, and the default routes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from tdstack.doctor.facts import Interface, Network, Route
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

NETWORKS = "sys/class/net"
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
RTF_UP, RTF_REJECT = 0x1, 0x200
# Addresses that documentation keeps free (RFC 5737, RFC 3849): a socket that is connected to
# one shows the route out, and sends nothing.
OUTSIDE = (("AF_INET", "192.0.2.1"), ("AF_INET6", "2001:db8::1"))
Addresses = Mapping[str, frozenset[str]]


def own_addresses() -> Addresses:
    """Return the addresses of this host's interfaces, as the smoke tests find them.

    Raises: ImportError where smoke_tests/ is not beside the package.
    """
    from smoke_tests.interfaces import addresses

    return addresses()


def way_out() -> tuple[str, str]:
    """Return interface and family of a connection to the outside; empty without a route.

    Raises: ImportError where smoke_tests/ is not beside the package.
    """
    from smoke_tests.interfaces import link_to

    for family, address in OUTSIDE:
        try:
            return link_to(address, 9).interface, family
        except OSError:  # no route of this family
            continue
    return "", ""


def network(
    tree: Tree,
    addresses: Callable[[], Addresses] = own_addresses,
    route_out: Callable[[], tuple[str, str]] = way_out,
) -> Part:
    """Read /sys/class/net and the kernel's routes, and ask for this host's own addresses."""
    part = Part()
    names = tree.names(NETWORKS)
    if names is None:
        part.unknown("network.interfaces", "/sys/class/net cannot be read")
    known: Addresses | None = None
    interface: str | None = None
    family: str | None = None
    try:
        known = addresses()
        interface, family = route_out()
    except (ImportError, OSError) as error:
        part.unknown("network.interfaces.families", f"{type(error).__name__}: {error}")
        part.unknown("network.bootstrap_interface", f"{type(error).__name__}: {error}")
    held = [name for name in names or () if tree.has(f"{NETWORKS}/{name}/flags")]
    part.sections["network"] = Network(
        interfaces=None if names is None else tuple(_interface(tree, n, known) for n in held),
        default_routes=default_routes(
            tree.lines("proc/net/route"), tree.lines("proc/net/ipv6_route")
        ),
        bootstrap_interface=interface,
        bootstrap_family=family,
        host_resolves=_resolves(),
    )
    return part


def families_of(addresses: frozenset[str]) -> tuple[str, ...]:
    """Return the families of addresses that other hosts can reach. Pure."""
    far = {a for a in addresses if not a.startswith(("fe80:", "169.254."))}
    six = {address for address in far if ":" in address}
    return (*(("AF_INET",) if far - six else ()), *(("AF_INET6",) if six else ()))


def default_routes(four: list[str] | None, six: list[str] | None) -> tuple[Route, ...] | None:
    """Return the default routes in lines of /proc/net/route and /proc/net/ipv6_route. Pure."""
    if four is None and six is None:
        return None
    found = []
    for line in (four or [])[1:]:
        words = line.split()
        # Interface, destination, gateway, flags, three counters, mask: all hexadecimal.
        if len(words) > 7 and words[1] == words[7] == "00000000" and _up(words[3]):
            found.append(Route("AF_INET", words[0]))
    for line in six or []:
        words = line.split()
        if len(words) > 9 and set(words[0]) == {"0"} and words[1] == "00" and _up(words[8]):
            found.append(Route("AF_INET6", words[9]))
    return tuple(dict.fromkeys(found))


def _up(flags: str) -> bool:
    try:
        value = int(flags, 16)
    except ValueError:
        return False
    return bool(value & RTF_UP) and not value & RTF_REJECT


def _interface(tree: Tree, name: str, known: Addresses | None) -> Interface:
    folder = f"{NETWORKS}/{name}"
    flags = tree.number(f"{folder}/flags", 16)
    speed = tree.number(f"{folder}/speed")
    return Interface(
        name=name,
        up=None
        if flags is None
        else bool(flags & IFF_UP) and tree.text(f"{folder}/operstate") in ("up", "unknown"),
        loopback=None if flags is None else bool(flags & IFF_LOOPBACK),
        virtual=not tree.has(f"{folder}/device"),
        mtu=tree.number(f"{folder}/mtu"),
        speed_mbps=speed if speed is not None and speed >= 0 else None,
        families=None if known is None else families_of(known.get(name, frozenset())),
    )


def _resolves() -> bool:
    try:
        return bool(socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return False
