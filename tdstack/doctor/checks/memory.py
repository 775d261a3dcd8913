"""Memory: that of the GPUs and its faults, and what the host lends of its own."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.facts import UNLIMITED
from tdstack.doctor.host import Host, gigabytes, name_of, names_of, some


def ecc_mode(host: Host) -> Answer | None:
    """Judge whether error correction is on where the GPU has it."""
    known = [gpu for gpu in host.gpus if gpu.ecc is not None and host.kind(gpu).ecc]
    if not known:
        return None
    off = [gpu for gpu in known if not gpu.ecc]
    if off:
        evidence = f"off on GPUs {names_of(off)}"
        what = "ECC is off: flipped bits go unseen"
        return trouble("warning", "ecc-off", what, evidence, gpus=names_of(off))
    turning = [gpu for gpu in known if gpu.ecc_pending is False]
    if turning:
        evidence = f"pending on GPUs {names_of(turning)}"
        what = "ECC will be off after the next reset"
        return trouble("warning", "ecc-off", what, evidence, gpus=names_of(turning))
    return ok("ECC is on")


def ecc_errors(host: Host) -> Answer | None:
    """Judge errors that ECC could not correct."""
    known = [
        gpu
        for gpu in host.gpus
        if (gpu.ecc_uncorrected_volatile, gpu.ecc_uncorrected_aggregate) != (None, None)
    ]
    if not known:
        return None
    now = [gpu for gpu in known if gpu.ecc_uncorrected_volatile]
    if now:
        shown = some(f"GPU {name_of(g)}: {g.ecc_uncorrected_volatile}" for g in now)
        what = "memory errors that could not be corrected, since the driver was loaded"
        return trouble("failure", "ecc-errors", what, shown, gpus=names_of(now))
    ever = [gpu for gpu in known if gpu.ecc_uncorrected_aggregate]
    if ever:
        shown = some(f"GPU {name_of(g)}: {g.ecc_uncorrected_aggregate}" for g in ever)
        return trouble("note", "ecc-past", "memory errors in the GPUs' past, none since", shown)
    return ok("no uncorrected memory error")


def rows(host: Host) -> Answer | None:
    """Judge rows or pages of memory that are to be replaced by spare ones."""
    known = [
        gpu
        for gpu in host.gpus
        if (gpu.remap_pending, gpu.remap_failed, gpu.retired_pending) != (None, None, None)
    ]
    if not known:
        return None
    failed = [gpu for gpu in known if gpu.remap_failed]
    if failed:
        what = "a row of memory could not be replaced: no spare one is left"
        names = names_of(failed)
        return trouble("failure", "row-remap-failed", what, f"GPUs {names}", gpus=names)
    pending = [gpu for gpu in known if gpu.remap_pending or gpu.retired_pending]
    if pending:
        what = "bad memory is replaced at the next reset, and still in use"
        names = names_of(pending)
        return trouble("failure", "row-remap", what, f"pending on GPUs {names}", gpus=names)
    replaced = sum(gpu.remap_uncorrected or 0 for gpu in known)
    return ok("no memory waits to be replaced", f"{replaced} rows were, for uncorrected errors")


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
    Check("ecc", "ECC is on where the GPU has it", ecc_mode),
    Check("ecc-errors", "no memory error of a GPU was left uncorrected", ecc_errors),
    Check("row-remap", "no bad memory of a GPU waits to be replaced", rows),
    Check("shm", "`/dev/shm` has room for what ranks share", shm),
    Check("tmp", "`/tmp` has room and can be written", tmp),
    Check("memlock", "memory may be pinned: with RDMA devices without limit", memlock),
    Check("nofile", "a process may open enough files", nofile),
    Check("hugepages", "transparent huge pages are not off", hugepages),
    Check("numa", "automatic NUMA balancing is off on hosts with several nodes", numa),
)
