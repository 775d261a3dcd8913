"""Xid faults, from lines of the ring buffer and from journal files that systemd wrote.

tests/data/journal: written by systemd-journal-remote 252 from 47 entries of two boots, in the
regular and in the compact format, and compressed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import zstandard

from tdstack.doctor.hardware import Xid
from tdstack.doctor.probes import journal
from tdstack.doctor.probes.kernel_log import (
    Logged,
    kernel_log,
    lines_of,
    merged,
    ring_buffer,
    xids_of,
)
from tdstack.doctor.probes.tree import Tree
from tests.conftest import ROOT
from tests.host_trees import plant

BOOT = "0123456789abcdef0123456789abcdef"
BEGAN = 1_700_000_000
FALLEN = "NVRM: Xid (PCI:0000:1b:00): 79, pid=4242, name=python3, GPU has fallen off the bus."


def journal_file(name: str) -> bytes:
    packed = (ROOT / "tests/data/journal" / name).read_bytes()
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 26)


def test_records_of_the_ring_buffer_have_text_and_age() -> None:
    records = [
        f"4,1207,2500000,-;{FALLEN}",
        " SUBSYSTEM=pci",
        f"12,9,1,-;{FALLEN}",
        "6,1,x,-;odd",
        "nothing",
        "",
    ]
    assert lines_of(records, 12.5) == [Logged(FALLEN, 10.0)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (FALLEN, Xid("gpu", "0000:1b:00.0", 79, 1, 5.0, "GPU has fallen off the bus.")),
        (
            "NVRM: Xid (PCI:0000:1B:00): 31, pid='<unknown>', name=<unknown>, Ch 00000010, MMU",
            Xid("gpu", "0000:1b:00.0", 31, 1, 5.0, "MMU"),
        ),
        ("NVRM: Xid (0000:05:00): 43, Ch 10", Xid("gpu", "0000:05:00.0", 43, 1, 5.0, "")),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:c6:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            Xid("switch", "0000:c6:00.0", 20034, 1, 5.0, "Fatal, Link 30 LTSSM Fault Up"),
        ),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module", None),
        ("audit: somebody wrote Xid (", None),
    ],
)
def test_a_fault_is_read_without_whose_process_it_was(line: str, expected: Xid | None) -> None:
    assert xids_of([Logged(line, 5.0)]) == (() if expected is None else (expected,))


def test_equal_faults_are_counted_and_the_newest_gives_the_age() -> None:
    (found,) = xids_of([Logged(FALLEN, 50.0), Logged(FALLEN, 3.04), Logged(FALLEN, 9.0)])
    assert (found.count, found.age_s) == (3, 3.0)


def test_a_fault_in_both_logs_is_not_counted_twice() -> None:
    ring = xids_of([Logged(FALLEN, 3.0)])
    held = xids_of([Logged(FALLEN, 3.0), Logged(FALLEN, 900.0)])
    assert [xid.count for xid in merged(ring, held)] == [2]
    assert [xid.count for xid in merged(held, ring)] == [2]
    assert merged(ring, ()) == merged((), ring) == ring


@pytest.mark.parametrize("name", ["xid.journal.zst", "xid-compact.journal.zst"])
def test_a_journal_of_systemd_is_read_for_one_boot(name: str) -> None:
    data = journal_file(name)
    now = BEGAN + 1000.0
    found = list(journal.messages_of(data, b"Xid (", bytes.fromhex(BOOT), now))
    xids = xids_of([Logged(message.text, message.age_s) for message in found])
    assert [(xid.pci, xid.code, xid.count, xid.age_s) for xid in xids] == [
        ("0000:1b:00.0", 79, 2, 840.0),
        ("0000:43:00.0", 63, 40, 761.0),
        ("0000:c3:00.0", 12028, 1, 830.0),
    ]
    # The other boot has another fault, once.
    (other,) = journal.messages_of(data, b"Xid (", b"\xff" * 16, now)
    assert "48" in other.text


@pytest.mark.parametrize("name", ["xid.journal.zst", "xid-compact.journal.zst"])
def test_a_damaged_journal_ends_no_run(name: str) -> None:
    whole = journal_file(name)
    # Hash tables, of zeros mostly, fill the file up to the first message.
    first, used = whole.find(b"MESSAGE="), whole.rfind(b"MESSAGE=") + 8192
    draw = random.Random(7)
    for _ in range(25):
        data = bytearray(whole[: draw.choice([used, draw.randrange(first, used)])])
        for _ in range(draw.randrange(1, 400)):
            data[draw.randrange(first - 2048, len(data))] = draw.randrange(256)
        found = list(journal.messages_of(bytes(data), b"Xid (", bytes.fromhex(BOOT), 2e9))
        assert len(found) < 1000
    assert list(journal.messages_of(b"", b"Xid (", bytes(16), 0.0)) == []


def test_both_logs_of_a_host_are_put_together(tmp_path: Path) -> None:
    dashed = "01234567-89ab-cdef-0123-456789abcdef"
    tree = plant(
        tmp_path,
        {
            "proc/sys/kernel/random/boot_id": dashed + "\n",
            "dev/kmsg": "4,1,2500000,-;NVRM: Xid (PCI:0000:99:00): 13, Graphics Exception\n",
            "var/log/journal/machine/system.journal": journal_file("xid.journal.zst"),
            "var/log/journal/machine/system@0-1.journal": "",
            "var/log/journal/machine/user-1000.journal": journal_file("xid.journal.zst"),
        },
    )
    found = {(xid.pci, xid.code): xid.count for xid in kernel_log(tree).sections["xids"]}
    assert found == {
        ("0000:1b:00.0", 79): 2,
        ("0000:43:00.0", 63): 40,
        ("0000:99:00.0", 13): 1,
        ("0000:c3:00.0", 12028): 1,
    }


def test_without_any_log_faults_are_not_known(tmp_path: Path) -> None:
    part = kernel_log(Tree(tmp_path, {}))
    assert "xids" not in part.sections
    assert "/dev/kmsg" in part.why["xids"]


def test_the_kernels_own_ring_buffer_is_read_and_ends() -> None:
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("/dev/kmsg cannot be read here")
    lines, reason = ring_buffer(Tree(Path("/"), {}))
    if lines is None:
        pytest.skip(f"/dev/kmsg: {reason}")
    assert all(line.age_s >= 0 for line in lines)
