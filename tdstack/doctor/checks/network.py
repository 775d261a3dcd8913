"""The network by which ranks find each other before there is RDMA or NVLink."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.facts import Interface
from tdstack.doctor.host import Host, some

NAME = "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"
FAMILY = "NVSHMEM_BOOTSTRAP_UID_SOCK_FAMILY"
DEFAULT = "eth0"
"""What NVSHMEM's UID bootstrap takes when it is told nothing; its family is then IPv4."""


def chosen(host: Host) -> Interface | None:
    """Return the interface of the way out, else the first that is up. Pure."""
    up = [one for one in host.facts.network.interfaces or () if one.up and one.name]
    routed = [host.facts.network.bootstrap_interface]
    routed += [route.interface for route in host.facts.network.default_routes or ()]
    real = [one for one in up if not one.loopback and one.families]
    by_route = [one for name in routed for one in real if one.name == name]
    physical = [one for one in real if not one.virtual]
    loopback = [one for one in up if one.loopback]
    return next(iter([*by_route, *physical, *real, *loopback]), None)


def interface(host: Host) -> Answer | None:
    """Judge the interface that NVSHMEM's bootstrap takes."""
    interfaces = host.facts.network.interfaces
    if interfaces is None:
        return unknown(host, "network.interfaces", "the network interfaces are not known")
    up = {one.name: one for one in interfaces if one.up}
    best = chosen(host)
    told = (host.facts.environment or {}).get(NAME, "")
    evidence = f"up: {some(name for name in up if name) or 'none'}"
    if best is None:
        return trouble("failure", "interface-none", "no network interface is up", evidence)
    # NVSHMEM takes a list of prefixes; ^ excludes, = wants the whole name.
    names = [part.lstrip("=") for part in told.split(",") if part and not told.startswith("^")]
    if names and not any(name.startswith(part) for name in up if name for part in names):
        what = f"{NAME} names an interface that is not up"
        return trouble("failure", "interface", what, f"{told}; {evidence}", interface=best.name)
    if not told and DEFAULT not in up:
        what = f"NVSHMEM's bootstrap expects {DEFAULT}, which is not up here"
        return trouble("note", "interface", what, evidence, interface=best.name)
    return ok(f"NVSHMEM's bootstrap finds {told or DEFAULT}", evidence)


def family(host: Host) -> Answer | None:
    """Judge the address family that NVSHMEM's bootstrap takes."""
    best = chosen(host)
    if best is None or best.families is None:
        return None
    told = (host.facts.environment or {}).get(FAMILY, "")
    evidence = f"{best.name}: {some(best.families) or 'no address'}"
    wanted = told or "AF_INET"
    if best.families and wanted not in best.families:
        what = f"NVSHMEM's bootstrap uses {wanted}, and {best.name} has no such address"
        severity: Severity = "failure" if told else "warning"
        return trouble(severity, "family", what, evidence, family=best.families[0])
    return ok(f"NVSHMEM's bootstrap uses {wanted}", evidence) if best.families else None


def resolves(host: Host) -> Answer | None:
    """Judge whether the host's own name has an address, which gloo asks for."""
    found = host.facts.network.host_resolves
    if found is None:
        return None
    if not found:
        what = "this host's own name has no address"
        return trouble("warning", "host-name", what, "getaddrinfo of the host's name fails")
    return ok("this host's own name has an address")


CHECKS = (
    Check("bootstrap-interface", "the interface of NVSHMEM's bootstrap is up", interface),
    Check("bootstrap-family", "it has an address of the bootstrap's family", family),
    Check("host-name", "this host's own name has an address", resolves),
)
