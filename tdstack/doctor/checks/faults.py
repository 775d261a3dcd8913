"""Faults of GPUs, links and switches: those of memory, and what the driver logged."""

from __future__ import annotations

from tdstack.doctor.answer import Answer, Check, ok, trouble, unknown
from tdstack.doctor.check import Severity
from tdstack.doctor.hardware import Xid
from tdstack.doctor.host import Host, name_of, names_of, some

RECOVERY = 154
"""The Xid that says in words what another one calls for."""


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


def xid(host: Host) -> Answer | None:
    """Judge the faults that the driver logged."""
    found = host.facts.xids
    if found is None:
        return unknown(host, "xids", "the kernel's log could not be read") if host.gpus else None
    if not host.gpus and not found:
        return None
    known = host.thresholds.xid
    grave = [x for x in found if _recent(host, x) and (x.code in known.failure or _fatal(x))]
    if grave:
        what = "the driver logged faults of a GPU, a link or a switch"
        return trouble("failure", "xid", what, some(map(_shown, grave)))
    others = [x for x in found if x.source != "gpu" or x.code not in known.application]
    if others:
        recent = any(_recent(host, x) for x in others)
        severity: Severity = "warning" if recent else "note"
        what = "the driver logged faults" if recent else "the driver logged faults a while ago"
        return trouble(severity, "xid", what, some(map(_shown, others)))
    if found:
        what = "the driver logged faults of programs"
        return trouble("note", "xid-program", what, some(map(_shown, found)))
    return ok("no Xid in the kernel's log")


def _recent(host: Host, found: Xid) -> bool:
    return found.age_s is None or found.age_s <= host.thresholds.limits.xid_age_s


def _fatal(found: Xid) -> bool:
    words = (found.text or "").lower()
    if found.source == "switch":
        # Its driver says of each fault whether it is fatal (Fabric Manager User Guide, SXid).
        return "fatal" in words and "non-fatal" not in words
    # The catalogue's words of Xid 154: None, Drain P2P, Drain and Reset, ... Required.
    return found.code == RECOVERY and ("drain" in words or "required" in words)


def _shown(found: Xid) -> str:
    name = "SXid" if found.source == "switch" else "Xid"
    times = f" {found.count} times" if found.count and found.count > 1 else ""
    return f"{name} {found.code} on {found.pci or '?'}{times}"


CHECKS = (
    Check("ecc", "ECC is on where the GPU has it", ecc_mode),
    Check("ecc-errors", "no memory error of a GPU was left uncorrected", ecc_errors),
    Check("row-remap", "no bad memory of a GPU waits to be replaced", rows),
    Check("xid", "the driver logged no fault of a GPU, link or switch", xid),
)
