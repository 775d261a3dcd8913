"""The faults that NVIDIA's driver logged (Xid, SXid), from the kernel's ring buffer and journals.

The kernel module writes these lines itself, the same in every locale:
`NVRM: Xid (PCI:0000:1b:00): 79, pid=..., name=..., GPU has fallen off the bus.`
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tdstack.doctor.hardware import Xid
from tdstack.doctor.probes.journal import journal_messages
from tdstack.doctor.probes.part import Part
from tdstack.doctor.probes.tree import Tree

LINE = re.compile(
    r"NVRM: (?P<gpu>Xid) \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]+)\): (?P<code>\d+),?\s*(?P<text>.*)"
    r"|nvidia-nvswitch\d+: SXid \((?:PCI:)?(?P<switch>[0-9a-fA-F:.]+)\): (?P<scode>\d+),?\s*"
    r"(?P<stext>.*)"
)
KERNEL = frozenset("01234567")  # syslog(2): eight levels of facility 0
# Whose process it was is nobody's business in a record.
_PROCESS = re.compile(r"\b(pid|name|Ch|channel)\s*=?\s*('[^']*'|<[^>]*>|[^,\s]*)\s*,?\s*")


@dataclass(frozen=True)
class Logged:
    """A line of a log, and how many seconds old it is."""

    text: str
    age_s: float


def kernel_log(tree: Tree) -> Part:
    """Read the ring buffer, or this boot's kernel lines in the journal; both where both can be."""
    part = Part()
    ring, reason = ring_buffer(tree)
    journal = journal_messages(tree, b"Xid (")
    if ring is None and journal is None:
        part.unknown("xids", f"/dev/kmsg: {reason}; no journal of this boot can be read")
        return part
    if ring is None:
        part.unknown("xids.ring", f"/dev/kmsg: {reason}")
    held = [Logged(line.text, line.age_s) for line in journal or ()]
    part.sections["xids"] = merged(xids_of(ring or ()), xids_of(held))
    return part


def ring_buffer(tree: Tree) -> tuple[list[Logged] | None, str]:
    """Return the lines of /dev/kmsg, or None and why it cannot be read."""
    try:
        handle = os.open(tree.path("dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return None, error.strerror or str(error)
    records: list[str] = []
    try:
        while len(records) < 1_000_000:
            try:
                record = os.read(handle, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten while it was read; the next is whole
                continue
            if not record:
                break
            # A plain file, in place of the device, gives all records at once.
            records += record.decode("utf-8", "replace").splitlines()
    except OSError as error:
        return None, error.strerror or str(error)
    finally:
        os.close(handle)
    return lines_of(records, time.monotonic()), ""


def lines_of(records: Iterable[str], now_s: float) -> list[Logged]:
    """Return the lines of records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg). Pure.

    A record is `priority,sequence,microseconds since boot,flags;text`. What a program wrote there
    has another facility than the kernel's 0 in the priority, and is passed over.
    """
    found = []
    for record in records:
        head, mark, text = record.partition(";")
        words = head.split(",")
        if mark and len(words) >= 3 and words[2].isdigit() and words[0] in KERNEL:
            found.append(Logged(text, max(0.0, now_s - int(words[2]) / 1e6)))
    return found


def xids_of(lines: Iterable[Logged]) -> tuple[Xid, ...]:
    """Return the faults in lines of a log: one for each device and code, with a count. Pure."""
    found: dict[tuple[str, str, int], Xid] = {}
    for line in lines:
        match = LINE.search(line.text)
        if not match:
            continue
        source = "gpu" if match["gpu"] else "switch"
        pci = (match["pci"] or match["switch"]).lower()
        pci = pci if "." in pci else f"{pci}.0"
        code = int(match["code"] or match["scode"])
        text = _PROCESS.sub("", match["text"] or match["stext"] or "").strip(" ,")[:200]
        old = found.get((source, pci, code))
        age = round(min(line.age_s, old.age_s or 0.0) if old else line.age_s, 1)
        count = 1 + (old.count or 0 if old else 0)
        found[source, pci, code] = Xid(source, pci, code, count, age, text)
    return tuple(found[key] for key in sorted(found))


def merged(ring: tuple[Xid, ...], journal: tuple[Xid, ...]) -> tuple[Xid, ...]:
    """Return faults of both logs. The same lines are in both, so counts are not added. Pure."""
    found = {(xid.source, xid.pci, xid.code): xid for xid in journal}
    for xid in ring:
        key = (xid.source, xid.pci, xid.code)
        if key not in found or (found[key].count or 0) <= (xid.count or 0):
            found[key] = xid
    return tuple(found[key] for key in sorted(found, key=str))
