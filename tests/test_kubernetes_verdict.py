"""Verdicts and patches for whatever checks print and whatever a node looks like."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdstack.kubernetes import agent as agent_module
from tdstack.kubernetes.agent import Agent
from tdstack.kubernetes.patch import EFFECT, UNFIT, Checked, patch_of
from tdstack.kubernetes.verdict import MAX_TEXT, Ended, Verdict, judge, label_value
from tests.kube_api import VALUE, _invalid, merge, node

CHECKED = Checked("cu124", "registry.example/tdstack@sha256:" + "0123456789ab" + "0" * 52)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["findings", "check", "severity", "ok", "what", "remedy", "x"]), inner
        )
    ),
    max_leaves=12,
)
findings = st.fixed_dictionaries(
    {
        "check": st.text(max_size=80),
        "severity": st.sampled_from(["ok", "note", "warning", "failure", "missing", "unknown"]),
        "what": st.text(max_size=2000),
        "remedy": st.none() | st.text(max_size=20),
    }
)


def ended(out: str, code: int | None = 1, name: str = "doctor") -> Ended:
    return Ended(name, code, out, 600)


@given(st.text(max_size=50) | json_data.map(json.dumps), st.integers(-9, 255) | st.none())
def test_whatever_a_check_prints_there_is_a_verdict(out: str, code: int | None) -> None:
    verdict = judge([ended(out, code)])
    assert verdict.state in ("ready", "unfit", "unknown")
    assert (verdict.state == "ready") == (not verdict.reason)
    if code is None:
        assert (verdict.state, verdict.reason) == ("unfit", "doctor-hangs")


@given(st.lists(findings, max_size=4), st.integers(0, 3))
def test_a_node_is_unfit_for_what_is_bad_and_for_nothing_else(
    found: list[dict[str, Any]], code: int
) -> None:
    bad = [one for one in found if one["severity"] in ("failure", "missing")]
    verdict = judge([ended(json.dumps({"findings": found}), code)])
    expected = "unfit" if bad else "ready" if code == 0 else "unknown"
    assert verdict.state == expected
    if bad:
        first = sorted(bad, key=lambda one: one["check"] == "line")[0]
        assert verdict.reason == label_value(first["check"])
        assert len(verdict.text) <= MAX_TEXT
    tolerated = {one["check"] for one in bad}
    mild = judge([ended(json.dumps({"findings": found}), code)], tolerated)
    assert mild.state == ("ready" if bad or code == 0 else "unknown")


def test_of_several_checks_the_worst_counts() -> None:
    fine = ended('{"findings": [{"check": "triton", "ok": true, "detail": "-"}]}', 0, "verify")
    broken = ended("no JSON", 1, "verify")
    bad = ended('{"findings": [{"check": "acs", "severity": "failure", "what": "on"}]}')
    other = ended('{"findings": [{"check": "nvshmem", "ok": false, "detail": "two"}]}', 4, "verify")
    assert judge([fine, bad]) == Verdict("unfit", "acs", "acs: on")
    assert judge([broken, bad]).state == "unfit"
    assert judge([fine, broken]).state == "unknown"
    assert judge([other, bad]) == Verdict("unfit", "nvshmem", "nvshmem: two; acs: on")
    assert judge([fine]) == Verdict("ready")
    line = {"check": "line", "severity": "missing", "what": "12.4 does not run"}
    driver = {"check": "driver", "severity": "missing", "what": "none"}
    told = judge([ended(json.dumps({"findings": [line, driver]}), 3)])
    assert told == Verdict("unfit", "driver", "driver: none; line: 12.4 does not run")


@given(st.text(max_size=200))
def test_every_text_becomes_a_value_of_a_label(text: str) -> None:
    value = label_value(text)
    assert 0 < len(value) <= 63
    assert VALUE.fullmatch(value)


taints = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from([UNFIT, "nvidia.com/gpu", "a"]),
            "effect": st.sampled_from([EFFECT, "NoExecute"]),
        },
        optional={"value": st.sampled_from(["acs", "held-back", ""])},
    ),
    max_size=4,
    unique_by=lambda taint: (taint["key"], taint["effect"]),
)
verdicts = st.sampled_from(
    [Verdict("ready"), Verdict("unfit", "acs", "on"), Verdict("unknown", "doctor-broke", "?")]
)


@given(
    taints,
    st.sampled_from(["acs", "held-back", None]),
    verdicts,
    st.booleans(),
    st.booleans(),
)
def test_a_patch_is_valid_says_the_verdict_and_touches_nothing_else(
    given_taints: list[dict[str, str]],
    recorded: str | None,
    verdict: Verdict,
    taint: bool,
    bare: bool,
) -> None:
    before = node("n1", *given_taints, pool="gpu")
    if recorded:
        before["metadata"]["annotations"] = {"tdstack.dev/tainted": recorded, "other": "x"}
    if bare and not given_taints:
        del before["metadata"]["annotations"], before["spec"]
    original = copy.deepcopy(before)
    checked = Checked(CHECKED.line, CHECKED.image, taint)
    patch = patch_of(before, verdict, checked)
    assert before == original
    assert patch is not None
    assert patch["metadata"]["resourceVersion"] == "1"
    after = merge(before, patch)
    after.setdefault("spec", {})
    assert _invalid(after) == ""
    assert patch_of(after, verdict, checked) is None  # and then there is nothing left to say
    assert after["metadata"]["labels"]["pool"] == "gpu"
    ours = (UNFIT, EFFECT)

    def others(one: dict[str, Any]) -> list[dict[str, str]]:
        held = (one.get("spec") or {}).get("taints") or []
        return [t for t in held if (t["key"], t["effect"]) != ours]

    assert others(after) == others(before)
    mine = [t for t in after["spec"].get("taints") or [] if (t["key"], t["effect"]) == ours]
    had = [t for t in given_taints if (t["key"], t["effect"]) == ours]
    person = bool(had) and had[0].get("value", "") != recorded
    if person:
        assert mine == had
    elif verdict.state == "unfit" and taint:
        assert mine == [{"key": UNFIT, "value": "acs", "effect": EFFECT}]
    elif verdict.state == "unknown" and taint:
        assert mine == had
    else:
        assert mine == []


def test_a_check_that_cannot_be_killed_is_not_started_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that waits for a driver in the kernel does not end by a signal.
    kill = os.killpg
    monkeypatch.setattr("os.killpg", lambda pid, number: None)
    monkeypatch.setattr(agent_module, "END_S", 0.2)
    started = tmp_path / "started"
    command = ("sh", "-c", f"echo $$ >>{started}; exec sleep 60")
    agent = Agent([], frozenset(), lambda verdict, limit: True, tmp_path, 60, 0.3)
    assert agent.run("doctor", command).code is None
    begin = time.monotonic()
    assert agent.run("doctor", command).code is None
    assert time.monotonic() - begin < 0.2
    pids = started.read_text().split()
    assert len(pids) == 1
    kill(int(pids[0]), 9)
    agent.stuck["doctor"].wait(5)
    assert agent.run("doctor", ("sh", "-c", "exit 7")).code == 7  # it has gone: a new one may come
    assert subprocess.run(["kill", "-0", pids[0]], capture_output=True).returncode
