"""RDMA: InfiniBand and RoCE between hosts, and what lets it reach a GPU's memory."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.hardware import RdmaPort
from tdstack.doctor.host import Host, older, some

# linux.git, drivers/infiniband: memory of other devices as dma-buf, since 5.12.
DMABUF_KERNEL = "5.12"


def devices(host: Host) -> Answer | None:
    """Judge whether there is anything to reach another host's memory with."""
    if not host.gpus:
        return None
    if host.facts.rdma is None:
        return unknown(host, "rdma", "the RDMA devices are not known")
    shut = [device.name or "?" for device in host.facts.rdma if device.usable is False]
    if shut:
        what = "RDMA devices of the host may not be opened here"
        return trouble("warning", "rdma-shut", what, some(shut))
    if not host.ports:
        what = "no RDMA device: one node alone, or sockets between nodes"
        return trouble("note", "rdma-none", what, "/sys/class/infiniband is empty or missing")
    names = [f"{device.name} {device.firmware or ''}".strip() for device in host.facts.rdma]
    return ok(f"{len(host.facts.rdma)} RDMA devices", some(names))


def _up(port: RdmaPort) -> bool | None:
    return None if port.state is None else port.state.upper() == "ACTIVE"


def ports(host: Host) -> Answer | None:
    """Judge the state of every port; a dead rail of InfiniBand makes a node unfit."""
    known = [(name, port) for name, port in host.ports if port.state is not None]
    if not known:
        return None
    down = [(name, port) for name, port in known if not _up(port)]
    if not down:
        return ok(f"all {len(known)} ports are active", some(_rate(n, p) for n, p in known))
    evidence = some(f"{name}: {port.state} {port.physical or ''}".strip() for name, port in down)
    evidence = f"{len(down)} of {len(known)} ports: {evidence}"
    dead = any(port.layer == "InfiniBand" and _is_rail(host, name) for name, port in down)
    severity: Severity = "failure" if dead or len(down) == len(known) else "warning"
    return trouble(severity, "rdma-port", "RDMA ports are down", evidence, port=down[0][0])


def _is_rail(host: Host, name: str) -> bool:
    """Return whether others of its board are active, and no other port of its own card."""
    boards = {device.name or "?": device.board for device in host.facts.rdma or ()}
    own = name.partition("/")[0]
    active = {other.partition("/")[0] for other, port in host.ports if _up(port)}
    return own not in active and any(boards[other] == boards[own] for other in active)


def rates(host: Host) -> Answer | None:
    """Judge whether ports of the same kind run at the same rate."""
    active = [(n, p, p.rate_gbps) for n, p in host.ports if _up(p) and p.rate_gbps is not None]
    slow = [
        f"{_rate(name, port)} of {best:g}"
        for name, port, rate in active
        if rate < (best := max(r for _, p, r in active if p.layer == port.layer))
    ]
    if slow:
        return trouble("warning", "rdma-rate", "RDMA ports run slower than others", some(slow))
    return ok("RDMA ports of a kind run at one rate") if len(active) > 1 else None


def _rate(name: str, port: RdmaPort) -> str:
    return f"{name}: {'?' if port.rate_gbps is None else f'{port.rate_gbps:g}'} Gbit/s"


def roce(host: Host) -> Answer | None:
    """Judge whether Ethernet ports have an address for RoCE v2."""
    known = [
        (name, port)
        for name, port in host.ports
        if port.layer == "Ethernet" and _up(port) and port.gids_v2 is not None
    ]
    without = [
        f"{name} ({port.netdev or 'no interface'})" for name, port in known if not port.gids_v2
    ]
    if without:
        what = "RoCE ports without an address of RoCE v2"
        return trouble("warning", "roce", what, some(without))
    return ok("RoCE ports have addresses of RoCE v2") if known else None


def peermem(host: Host) -> Answer | None:
    """Judge whether RDMA devices can reach a GPU's memory."""
    if not host.gpus or not host.ports:
        return None
    loaded = [host.facts.module(name) for name in ("nvidia_peermem", "nv_peer_mem")]
    if any(loaded):
        return ok("the module for RDMA to GPU memory is loaded")
    if None in loaded:
        return unknown(host, "modules", "loaded kernel modules are not known")
    by_dmabuf = [gpu.dma_buf for gpu in host.gpus]
    kernel = host.facts.os.kernel or ""
    able = host.facts.driver.kind == "open" and kernel and not older(kernel, DMABUF_KERNEL)
    evidence = f"neither nvidia_peermem nor nv_peer_mem; {host.facts.driver.kind or '?'} driver"
    evidence += f", kernel {kernel or '?'}"
    if all(by_dmabuf) or (None in by_dmabuf and able):
        what = "RDMA reaches GPU memory by dma-buf alone, which not every library uses"
        return trouble("warning", "peermem", what, evidence)
    what = "RDMA devices cannot reach GPU memory: all goes through the host"
    return trouble("failure", "peermem", what, evidence)


def gdrcopy(host: Host) -> Answer | None:
    """Judge whether GDRCopy is there, which makes small messages fast."""
    if not host.gpus or not host.ports:
        return None
    loaded = host.facts.module("gdrdrv")
    if loaded is None:
        return unknown(host, "modules", "loaded kernel modules are not known")
    if not loaded:
        what = "no GDRCopy: small messages between nodes are slower"
        return trouble("note", "gdrcopy", what, "gdrdrv is not loaded")
    return ok("GDRCopy's module gdrdrv is loaded")


CHECKS = (
    Check("rdma", "there are RDMA devices", devices),
    Check("rdma-ports", "every port is active", ports),
    Check("rdma-rate", "ports of a kind run at one rate", rates),
    Check("roce", "Ethernet ports have an address of RoCE v2", roce),
    Check("peermem", "RDMA devices reach GPU memory (`nvidia_peermem`)", peermem),
    Check("gdrcopy", "GDRCopy's module is loaded", gdrcopy),
)
