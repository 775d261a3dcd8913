"""The doctor on recorded hosts: exactly the expected findings, and no check that is dead."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tdstack.doctor.check import Finding, exit_code
from tdstack.doctor.checks import checks, every, lines
from tdstack.doctor.facts import Facts
from tdstack.doctor.load import dump, load, readable
from tdstack.errors import UsageError
from tdstack.lock.io import load_lock
from tdstack.troubleshooting import sections
from tests.made_hosts import HOSTS

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/data/hosts"
GOLDEN = ROOT / "tests/data/hosts-golden"
WRITE = os.environ.get("TDSTACK_GOLDEN") == "write"
LOCK, _ = load_lock(ROOT)
# Real hosts, too: every file of the folder is a case.
NAMES = sorted({path.stem for path in DATA.glob("*.json")} | set(HOSTS))
TROUBLES = [row for section in sections() for row in section.rows]


def _text(facts: Facts) -> str:
    """Return a host's file: a line for each part, and for each element of a list of parts."""
    parts = []
    for key, value in dump(facts).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f'"{key}": [\n  {rows}]')
        else:
            parts.append(f'"{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{" + ",\n ".join(parts) + "}\n"


@cache
def _host(name: str) -> Facts:
    data = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    assert readable(data)
    return load(data)


@cache
def _found(name: str, line: str | None) -> tuple[Finding, ...]:
    return tuple(checks(_host(name), line))


def _judged(facts: Facts) -> dict[str, Any]:
    """Return all that the doctor says of a host; for each line only what differs."""
    found = checks(facts)
    said = {finding.check: _said(finding) for finding in found}
    asked = {}
    for line in LOCK.lines:
        of_line = checks(facts, line)
        differing = {
            f.check: f"{f.severity}: {f.what}; {f.evidence}; {f.remedy}"
            for f in of_line
            if said.get(f.check) != _said(f)
        }
        asked[line] = {"exit_code": int(exit_code(of_line)), "differing": differing}
    return {
        "exit_code": int(exit_code(found)),
        "lines": lines(facts),
        "findings": said,
        "with --cuda": asked,
    }


def _said(finding: Finding) -> dict[str, object]:
    kept = finding.as_dict()
    kept.pop("check")
    return {key: value for key, value in kept.items() if value}


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_a_made_up_host_is_in_its_file(name: str) -> None:
    """After a wanted change: TDSTACK_GOLDEN=write pytest tests/test_doctor_hosts.py."""
    path, facts = DATA / f"{name}.json", HOSTS[name]()
    assert (facts.label or "").startswith("synthetic: ")
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(facts), encoding="utf-8")
        _host.cache_clear()
    assert _host(name) == facts


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_says_of_a_host_exactly_what_is_expected(name: str) -> None:
    path = GOLDEN / f"{name}.json"
    found = json.dumps(_judged(_host(name)), indent=1, ensure_ascii=False)
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found + "\n", encoding="utf-8")
    assert json.loads(found) == json.loads(path.read_text(encoding="utf-8"))


def test_every_golden_file_belongs_to_a_host() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == NAMES


# ------------------------------------------------------------------------------------- the library


def _severities() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {check.id: set() for check in every()}
    for name in HOSTS:
        for line in (None, *LOCK.lines):
            for finding in _found(name, line):
                found[finding.check].add(finding.severity)
    return found


def test_no_check_is_dead() -> None:
    """Every check fires on some host of the library, and is content with another."""
    severities = _severities()
    told = {"note", "warning", "failure", "missing"}
    assert [check for check, seen in severities.items() if not seen & told] == []
    assert [check for check, seen in severities.items() if "ok" not in seen] == []


def test_every_trouble_of_a_host_is_met_by_one() -> None:
    """A row that no host leads to would be a remedy that nobody has ever seen."""
    by_hand = {row.id for row in TROUBLES if not row.checks}
    met = {
        finding.doc.partition("#")[2]
        for name in HOSTS
        for line in (None, *LOCK.lines)
        for finding in _found(name, line)
        if finding.doc.startswith("docs/troubleshooting.md#")
    }
    patterned = {row.id for row in TROUBLES if row.pattern}
    expected = {row.id for row in TROUBLES if row.id} - by_hand
    assert expected - met <= patterned
    assert met <= expected


def test_the_hosts_are_good() -> None:
    for name in ("h100-sxm-8", "h20-8", "a100-pcie-2", "container-good", "b200-8"):
        bad = [f for f in checks(_host(name), "12.8") if f.severity not in ("ok", "note")]
        assert bad == []
        assert exit_code(checks(_host(name), "12.8")) == 0


# ----------------------------------------------------------------------------------- each finding


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_wrong_has_a_remedy_evidence_and_a_page(name: str) -> None:
    pages = _pages()
    for line in (None, *LOCK.lines):
        findings = _found(name, line)
        assert len({f.check for f in findings}) == len(findings)
        for finding in findings:
            page, _, anchor = finding.doc.partition("#")
            assert f'<a id="{anchor}"></a>' in pages[page], finding
            assert finding.what
            if finding.severity in ("warning", "failure", "missing"):
                assert finding.remedy, finding
                assert finding.evidence, finding
            assert not re.search(r"[{}`]|\]\(", finding.remedy.replace("${", "")), finding
            if finding.severity == "ok":
                assert finding.remedy == ""


@cache
def _pages() -> dict[str, str]:
    pages = ("docs/doctor.md", "docs/troubleshooting.md")
    return {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}


def test_a_debian_machine_without_a_gpu_lacks_things_and_says_what_to_do() -> None:
    findings = {f.check: f for f in checks(_host("laptop"), "12.4")}
    assert exit_code(findings.values()) == 3
    lacking = {name for name, f in findings.items() if f.severity == "missing"}
    assert {"driver", "gpus", "engine", "line"} <= lacking
    assert "525.60.13" in findings["driver"].remedy
    assert not {"nvlink", "p2p", "ecc", "fabric-manager", "peermem"} & findings.keys()


def test_without_a_driver_the_exit_code_is_3_whatever_else_is_broken() -> None:
    broken = load({**dump(_host("laptop")), "spaces": {"tmp": {"writable": False, "free": 1}}})
    findings = checks(broken)
    assert "failure" in {f.severity for f in findings}
    assert exit_code(findings) == 3


@pytest.mark.parametrize(
    ("name", "line", "runs", "why"),
    [
        ("h20-8", "13.0", True, "experimental"),
        ("h100-sxm-8", "13.0", False, "older than 580.65.06"),
        ("h100-sxm-8", "12.9", True, "cubins for sm_90"),
        ("driver-old", "12.4", False, "older than 525.60.13"),
        ("b200-closed-modules", "12.6", False, "no cubins for GPU 0 (sm_100)"),
        ("b200-closed-modules", "12.8", True, "cubins for sm_100"),
        ("mixed", "12.4", True, "no cubins for GPU 4 (sm_70)"),
        ("gpu-fallen-off", "12.4", True, "cubins for sm_90"),
        ("laptop", "12.4", False, "no driver"),
        ("unknown", "12.4", None, "not known"),
    ],
)
def test_which_lines_a_host_runs(name: str, line: str, runs: bool | None, why: str) -> None:
    verdict = lines(_host(name))[line]
    assert verdict["runs"] is runs
    assert why in str(verdict["why"])
    asked = {f.check: f for f in checks(_host(name), line)}["line"]
    assert asked.severity == {True: "ok", False: "missing", None: "unknown"}[runs]


def test_an_unknown_line_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown CUDA line"):
        checks(Facts(), "11.8")


def test_a_remedy_of_a_record_from_elsewhere_is_safe_to_paste() -> None:
    evil = "0000:1a:01.0; rm -rf $(HOME) `id` | sh #"
    data = dump(_host("acs-on"))
    for bridge in data["pcie"]["bridges"]:
        bridge["pci"] = evil
    found = {f.check: f for f in checks(load(data))}["acs"]
    assert "rm -rf ??HOME?" in found.remedy
    assert not set("`|$") & set(found.remedy.replace("$b", ""))
