"""Whatever a record holds, the doctor judges it: no crash, and an exit code that scripts know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.doctor.check import SEVERITIES, exit_code
from tdstack.doctor.checks import checks, every, lines
from tdstack.doctor.load import load
from tdstack.lock.io import load_lock

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/data/hosts"
LOCK, _ = load_lock(ROOT)
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
KNOWN = {check.id for check in every()}

# What no field expects: other types, absurd numbers, other languages' words and digits.
WORDS = (
    "",
    "неизвестно",
    "٥٥٠.٩٠",
    "五五〇",
    "N/A",
    "[Unknown Error]",
    "-1",
    "{gpus}",
    "{",
    "%s",
    "a|b\n",
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=4)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@cache
def _text(name: str) -> str:
    return (DATA / f"{name}.json").read_text(encoding="utf-8")


def _descend(draw: st.DrawFn, data: Any) -> tuple[Any, Any] | None:
    """Choose a place in a document: what holds it, and its key there."""
    place = None
    while isinstance(data, dict | list) and data:
        keys = sorted(data) if isinstance(data, dict) else range(len(data))
        key = draw(st.sampled_from(keys))
        place, data = (data, key), data[key]
        if draw(st.integers(0, 5)) == 0:
            break
    return place


@st.composite
def broken_records(draw: st.DrawFn) -> Any:
    """A host's record with some things missing and others absurd."""
    data = json.loads(_text(draw(st.sampled_from(NAMES))))
    for _ in range(draw(st.integers(1, 12))):
        place = _descend(draw, data)
        if place is None:
            break
        held, key = place
        if draw(st.booleans()):
            del held[key]
        else:
            held[key] = draw(ODD)
    return data


def _judge(data: Any, line: str | None) -> None:
    facts = load(data)
    findings = checks(facts, line)
    names = [finding.check for finding in findings]
    assert len(set(names)) == len(names)
    assert set(names) <= KNOWN
    assert {finding.severity for finding in findings} <= set(SEVERITIES)
    assert exit_code(findings) in (0, 1, 3)
    assert all(f.remedy for f in findings if f.severity in ("warning", "failure", "missing"))
    verdicts = lines(facts)
    assert list(verdicts) == sorted(LOCK.lines, key=lambda name: [*map(int, name.split("."))])
    json.dumps([finding.as_dict() for finding in findings] + [verdicts], allow_nan=False)


LINES = st.sampled_from([None, *LOCK.lines])


@settings(max_examples=250, deadline=None)
@given(broken_records(), LINES)
def test_a_record_with_odd_values_is_judged(data: Any, line: str | None) -> None:
    _judge(data, line)


@settings(max_examples=100, deadline=None)
@given(st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)), LINES)
def test_anything_at_all_is_judged(data: Any, line: str | None) -> None:
    _judge(data, line)


@pytest.mark.parametrize("name", ["a100-pcie-2", "container-good", "h100-sxm-8", "laptop"])
def test_each_part_of_a_record_may_be_missing(name: str) -> None:
    whole = json.loads(_text(name))
    for part in whole:
        _judge({key: value for key, value in whole.items() if key != part}, "12.4")
        _judge({**whole, part: None}, None)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_verb_judges_a_foreign_host_under_any_locale(locale: str) -> None:
    """The words of the record reach a terminal that may not know their letters."""
    command = [sys.executable, "-m", "tdstack.doctor", "--facts", str(DATA / "foreign.json")]
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, *more],
            cwd=ROOT,
            env={**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 3, done.stderr
        assert b"Traceback" not in done.stderr
        if more:
            assert json.loads(done.stdout)["exit_code"] == 3
