"""The pages of docs/ that are made from data: docs/troubleshooting.md, a table of docs/doctor.md.

`python -m tdstack.troubleshooting.pages` writes them, `--check` compares; `invoke lint` and
`invoke lint --fix` do the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tdstack.doctor.checks import SUBJECTS
from tdstack.doctor.host import gigabytes
from tdstack.doctor.thresholds import GpuType, load_thresholds
from tdstack.troubleshooting import sections
from tdstack.verify.symptoms import Section, Symptom

ROOT = Path(__file__).resolve().parents[2]
TROUBLES, DOCTOR = "docs/troubleshooting.md", "docs/doctor.md"
BEGIN, END = "<!-- {}: made from data, see CONTRIBUTING.md -->", "<!-- end -->"
HEAD = """\
# Troubleshooting

<!-- Made from data by tdstack/troubleshooting/pages.py; see CONTRIBUTING.md. -->

Every error of a verb names its remedy; this page adds the reasons. What codes mean:
[exit-codes.md](exit-codes.md).
`tdstack-verify` and [invoke doctor](doctor.md) find what has a check here, and say the same fix.
"""


def troubleshooting() -> str:
    """Return docs/troubleshooting.md. Pure."""
    return "\n".join([HEAD, *map(_section, sections())])


def _section(section: Section) -> str:
    lines = [f"## {section.title}", "", f"| {section.asked} | cause | fix |", "|---|---|---|"]
    return "\n".join([*lines, *map(_row, section.rows), ""])


def _row(row: Symptom) -> str:
    anchor = f'<a id="{row.id}"></a>' if row.id else ""
    checks = ", ".join(f"[{name}](doctor.md#{name})" for name in row.checks)
    cause = f"{row.cause} (doctor: {checks})" if checks else row.cause
    fix = re.sub(r"\{(\w+)\}", lambda found: found.group(1).upper(), row.fix)
    return f"| {anchor}{_cell(row.symptom)} | {_cell(cause)} | {_cell(fix)} |"


def _cell(text: str) -> str:
    # A bar ends a cell even in code; outside of code, <x> would be a tag.
    return text.replace("|", "\\|")


def checks_table() -> str:
    """Return the table of all checks. Pure."""
    rows = [row for section in sections() for row in section.rows if row.id]
    lines = ["| check | what must hold | if not |", "|---|---|---|"]
    for subject, checks in SUBJECTS.items():
        lines.append(f"| **{subject}** | | |")
        for check in checks:
            troubles = [row.id for row in rows if check.id in row.checks]
            links = ", ".join(f"[{name}](troubleshooting.md#{name})" for name in troubles)
            lines.append(f'| <a id="{check.id}"></a>`{check.id}` | {check.asks} | {links} |')
    return "\n".join(lines)


def gpu_table() -> str:
    """Return the table of what is expected of GPUs, by type. Pure."""
    head = "| type | GPUs of a node | NVLinks | PCIe | NVSwitches | multicast | source |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_gpu, load_thresholds().gpu)])


def _gpu(kind: GpuType) -> str:
    links = ""
    if kind.nvlinks is not None:
        links = f"{kind.nvlinks} of version {kind.nvlink_version}"
        links += "" if kind.sxm else ", or none"
    slot = " ".join(
        part
        for part, held in (
            (f"{kind.pcie_generation}.0", kind.pcie_generation),
            (f"x{kind.pcie_width}", kind.pcie_width),
        )
        if held
    )
    cells = (
        *(kind.type, " or ".join(map(str, kind.counts)), links, slot),
        *(str(kind.nvswitches or ""), "yes" if kind.multicast else "", kind.source),
    )
    return f"| {' | '.join(cells)} |"


def limits_table() -> str:
    """Return the table of what is expected of any host. Pure."""
    held = load_thresholds().limits
    rows = (
        ("`/dev/shm`", gigabytes(held.shm_bytes)),
        ("free in `/tmp`", gigabytes(held.tmp_bytes)),
        ("pinned memory", f"unlimited with RDMA devices, else {gigabytes(held.memlock_bytes)}"),
        ("open files", str(held.nofile)),
        ("glibc, without a container", held.glibc),
        ("free for tdstack's store", gigabytes(held.cache_bytes)),
        ("free for the engine's images", gigabytes(held.engine_bytes)),
        ("offset of the clock", f"{held.clock_offset_s:g} s"),
        ("a GPU's distance to the heat that slows it", f"{held.temperature_margin:g} °C"),
        ("errors of an NVLink", str(held.nvlink_errors)),
        ("an Xid counts as failure", f"for {held.xid_age_s / 3600:g} hours"),
    )
    lines = [
        "| threshold | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    return "\n".join(lines)


def filled(page: str) -> str:
    """Return docs/doctor.md with its tables made anew.

    Raises: ValueError for a page without the places for them.
    """
    tables = {"checks": checks_table(), "gpus": gpu_table(), "limits": limits_table()}
    for name, made in tables.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        _, end, after = rest.partition(END)
        if not found or not end:
            raise ValueError(f"{DOCTOR} has no place for the table: {begin} ... {END}")
        page = f"{before}{begin}\n{made}\n{END}{after}"
    return page


def stale(root: Path = ROOT) -> dict[str, str]:
    """Return the pages that are not as the data make them, with what they should be."""
    doctor = (root / DOCTOR).read_text(encoding="utf-8")
    made = {TROUBLES: troubleshooting(), DOCTOR: filled(doctor)}
    held = {TROUBLES: _held(root / TROUBLES), DOCTOR: doctor}
    return {name: text for name, text in made.items() if text != held[name]}


def _held(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main(arguments: Iterable[str]) -> int:
    """Write the pages; with --check only say which are stale, and return 1 if any is."""
    found = stale(ROOT)
    if "--check" in arguments:
        for name in found:
            print(f"{name} is stale: invoke lint --fix, or {' '.join(_COMMAND)}", file=sys.stderr)
        return 1 if found else 0
    for name, text in found.items():
        (ROOT / name).write_text(text, encoding="utf-8")
        print(f"{name} written", file=sys.stderr)
    return 0


_COMMAND = ("python", "-m", "tdstack.troubleshooting.pages")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
