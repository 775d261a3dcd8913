"""The host's memory: what ranks share, pin and open, and how the kernel hands it out."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.facts import UNLIMITED
from tdstack.doctor.host import Host, gigabytes


def shm(host: Host) -> Answer | None:
    """Judge the room in /dev/shm."""
    space, least = host.facts.spaces.shm, host.thresholds.limits.shm_bytes
    if space.size is None:
        return unknown(host, "spaces.shm", "the size of /dev/shm is not known")
    evidence = f"{gigabytes(space.size)}, {gigabytes(space.free)} free; {gigabytes(least)} needed"
    if space.size < least:
        return trouble("failure", "shm", "/dev/shm is too small", evidence)
    if space.free is not None and space.free < least:
        return trouble("warning", "shm-full", "/dev/shm is nearly full", evidence)
    if space.writable is False:
        return trouble("failure", "shm-readonly", "/dev/shm cannot be written", evidence)
    return ok("/dev/shm has room", evidence)


def tmp(host: Host) -> Answer | None:
    """Judge the room in the folder for temporary files."""
    space, least = host.facts.spaces.tmp, host.thresholds.limits.tmp_bytes
    if space.writable is None and space.free is None:
        return unknown(host, "spaces.tmp", "the folder for temporary files is not known")
    evidence = f"{gigabytes(space.free)} free; {gigabytes(least)} needed"
    if space.writable is False:
        return trouble("failure", "tmp-readonly", "/tmp cannot be written", evidence)
    if space.free is not None and space.free < least:
        return trouble("warning", "tmp-full", "/tmp is nearly full", evidence)
    return ok("/tmp has room", evidence)


def memlock(host: Host) -> Answer | None:
    """Judge how much memory a process may pin: with RDMA, all of it."""
    limits, least = host.facts.limits, host.thresholds.limits.memlock_bytes
    soft = limits.memlock_soft
    if soft is None:
        return unknown(host, "limits.memlock_soft", "the limit of pinned memory is not known")
    hard = "unlimited" if limits.memlock_hard == UNLIMITED else gigabytes(limits.memlock_hard)
    if soft >= UNLIMITED:
        return ok("memory may be pinned without limit")
    evidence = f"soft {gigabytes(soft)}, hard {hard}"
    if host.ports:
        what = "pinned memory is limited: RDMA needs it without limit"
        severity: Severity = "warning" if hard == "unlimited" else "failure"
        return trouble(severity, "memlock", what, evidence)
    if soft < least:
        return trouble("warning", "memlock", "little memory may be pinned", evidence)
    return ok("enough memory may be pinned; RDMA would need more", evidence)


def nofile(host: Host) -> Answer | None:
    """Judge how many files a process may open."""
    soft, least = host.facts.limits.nofile_soft, host.thresholds.limits.nofile
    if soft is None:
        return unknown(host, "limits.nofile_soft", "the limit of open files is not known")
    if soft < least:
        evidence = f"soft {soft}, {least} expected"
        return trouble("warning", "nofile", "few files may be open", evidence, count=least)
    return ok("enough files may be open", "unlimited" if soft >= UNLIMITED else str(soft))


def hugepages(host: Host) -> Answer | None:
    """Judge whether the kernel gives large pages to those who ask."""
    mode = host.facts.memory.transparent_hugepages
    if mode is None:
        return None
    if mode == "never":
        return trouble("note", "hugepages", "transparent huge pages are off", mode)
    memory = host.facts.memory
    reserved = (memory.hugepages_total or 0) * (memory.hugepage_size or 0)
    evidence = f"{gigabytes(reserved)} of others reserved" if reserved else ""
    return ok(f"transparent huge pages: {mode}", evidence)


def numa(host: Host) -> Answer | None:
    """Judge whether the kernel moves pages between processors on its own."""
    balancing, nodes = host.facts.memory.numa_balancing, host.facts.memory.numa_nodes
    if balancing is None or not host.gpus:
        return None
    if balancing and (nodes or 0) > 1:
        what = "the kernel moves memory between processors, which stalls launches"
        return trouble("note", "numa-balancing", what, f"{nodes} NUMA nodes")
    return ok("automatic NUMA balancing is off or has no effect")


CHECKS = (
    Check("shm", "`/dev/shm` has room for what ranks share", shm),
    Check("tmp", "`/tmp` has room and can be written", tmp),
    Check("memlock", "memory may be pinned: with RDMA devices without limit", memlock),
    Check("nofile", "a process may open enough files", nofile),
    Check("hugepages", "transparent huge pages are not off", hugepages),
    Check("numa", "automatic NUMA balancing is off on hosts with several nodes", numa),
)
