"""Facts as data: any JSON loads, a record comes back as it was, unknown is never absent."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdstack.doctor import facts as model
from tdstack.doctor import hardware, surroundings
from tdstack.doctor.check import SEVERITIES, Finding, Severity, exit_code
from tdstack.doctor.facts import UNLIMITED, Driver, Facts, Module
from tdstack.doctor.hardware import Gpu, NvLink
from tdstack.doctor.kinds import Between, Lengths
from tdstack.doctor.load import dump, load, major, readable
from tdstack.errors import ExitCode

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 2**64, "NaN", "1.0", "sehr falsch", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(sorted(n.name for n in fields(Facts))) | st.text(), inner)
    ),
    max_leaves=20,
)


def shaped(kind: Any) -> st.SearchStrategy[Any]:
    """Return values that are right for a field, for nothing, or for no field at all."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    choices = [one for one in get_args(kind) if one is not type(None)]
    if type(None) in get_args(kind) and len(choices) == 1:
        kind = choices[0]
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        inner = {name: shaped(hint) for name, hint in hints.items()}
        return st.fixed_dictionaries({}, optional=inner) | JSON
    if get_origin(kind) is tuple:
        return st.lists(shaped(get_args(kind)[0]), max_size=3) | JSON
    if get_origin(kind) is not None:
        return st.dictionaries(st.text(max_size=5), shaped(get_args(kind)[1]), max_size=3) | JSON
    right = {str: st.text(max_size=9), bool: st.booleans(), int: st.integers(), float: st.floats()}
    return right.get(kind, st.none()) | st.none() | JSON


RECORDS = shaped(Facts)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_any_json_loads(data: object) -> None:
    assert isinstance(load(data), Facts)


@given(RECORDS)
@settings(max_examples=80, deadline=None)
def test_what_loaded_comes_back_the_same(data: object) -> None:
    facts = load(data)
    text = json.dumps(dump(facts))
    again = load(json.loads(text))
    assert again == facts
    check_bounds(again)


def check_bounds(record: Any) -> None:
    hints = get_type_hints(type(record), include_extras=True)
    for name, hint in hints.items():
        value = getattr(record, name)
        bounds = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        for bound in bounds:
            if value is not None and isinstance(bound, Between):
                assert bound.low <= value <= bound.high
            elif value is not None and isinstance(bound, Lengths):
                assert len(value) <= bound.most
        for inner in value if isinstance(value, tuple) else [value]:
            if is_dataclass(inner):
                check_bounds(inner)


def test_absurd_values_become_unknown_with_a_note() -> None:
    facts = load(
        {
            "schema": "1.9",
            "of the future": {"x": 1},
            "gpus": [
                {"index": 0, "memory": -4, "temperature": float("inf"), "new": 1, "ecc": "yes"},
                7,
            ],
            "driver": {"version": 550, "present": 1},
            "os": [],
            "limits": {"memlock_soft": UNLIMITED, "memlock_hard": UNLIMITED + 1},
            "libraries": {"libcuda.so.1": True, "libodd.so": 1},
        }
    )
    assert facts.schema == "1.9"
    assert facts.gpus == (Gpu(index=0), Gpu())
    assert facts.driver == Driver()
    assert (facts.limits.memlock_soft, facts.limits.memlock_hard) == (UNLIMITED, None)
    assert facts.libraries == {"libcuda.so.1": True}
    noted = " ".join(facts.notes)
    for path in ("gpus[0].memory", "gpus[0].ecc", "gpus[1]", "driver.version", "os", "libodd.so"):
        assert f"{path}: " in noted
    assert "future" not in noted
    assert "gpus[0].new" not in noted


def test_whole_numbers_of_other_writers_are_taken() -> None:
    facts = load({"gpus": [{"index": 1.0, "power": 300}], "clock": {"offset_s": 0}})
    assert facts.gpus == (Gpu(index=1, power=300.0),)
    assert (facts.clock.offset_s, type(facts.clock.offset_s)) == (0.0, float)


def test_unknown_is_left_out_and_absent_is_kept() -> None:
    facts = Facts(gpus=(), modules=(Module("nvidia", ""),), environment={})
    assert dump(facts)["gpus"] == []
    assert dump(facts)["environment"] == {}
    assert "rdma" not in dump(facts)
    assert "driver" not in dump(facts)
    assert load(dump(facts)) == facts
    assert load({}).gpus is None


def test_notes_do_not_grow_without_end() -> None:
    facts = load({"gpus": [{"memory": -1}] * 250})
    assert len(facts.notes) == 101
    assert "150 more" in facts.notes[-1]


def test_a_reason_of_a_section_stands_for_its_facts() -> None:
    facts = Facts(why={"fabric": "not asked", "libraries.libcuda.so.1": "x"})
    assert facts.reason("fabric.unit") == "not asked"
    assert facts.reason("libraries.libcuda.so.1") == "x"
    assert facts.reason("gpus.ecc") == ""


def test_modules_are_loaded_not_loaded_or_not_known() -> None:
    facts = Facts(modules=(Module("gdrdrv", "2.4"),))
    assert (facts.module("gdrdrv"), facts.module("nvidia")) == (True, False)
    assert Facts().module("nvidia") is None


@pytest.mark.parametrize(
    ("data", "number", "can"),
    [
        ({"schema": "1.0"}, 1, True),
        ({"schema": "1.77"}, 1, True),
        ({"schema": "2.0"}, 2, False),
        ({"schema": 1}, None, False),
        ({"schema": "x"}, None, False),
        ({"schema": "٣.0"}, None, False),
        ({"schema": "9" * 5000}, None, False),
        ([], None, False),
    ],
)
def test_only_the_major_version_must_be_known(data: object, number: int | None, can: bool) -> None:
    assert (major(data), readable(data)) == (number, can)


def test_every_record_is_frozen_and_starts_unknown() -> None:
    records = [
        kind
        for module in (model, hardware, surroundings)
        for kind in vars(module).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
    ]
    assert len(records) > 20
    for kind in records:
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        if kind is not Facts:
            assert dump(kind()) == {}
    assert NvLink() == NvLink(None)


def finding(severity: Severity, *, alone: bool = False) -> Finding:
    return Finding("c", severity, "w", alone=alone)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], ExitCode.DONE),
        ([finding("ok"), finding("note"), finding("warning"), finding("unknown")], ExitCode.DONE),
        ([finding("missing"), finding("ok")], ExitCode.HOST),
        ([finding("missing"), finding("failure")], ExitCode.CHECK_FAILED),
        ([finding("missing", alone=True), finding("failure")], ExitCode.HOST),
        ([finding("ok", alone=True), finding("failure")], ExitCode.CHECK_FAILED),
    ],
)
def test_the_exit_code_of_findings(findings: list[Finding], code: ExitCode) -> None:
    assert exit_code(findings) == code
    assert len(SEVERITIES) == 6


def test_a_finding_as_json_has_no_inner_fields() -> None:
    told = Finding("driver-floor", "failure", "too old", "525", "newer", "docs/doctor.md#x")
    assert told.as_dict() == {
        "check": "driver-floor",
        "severity": "failure",
        "what": "too old",
        "evidence": "525",
        "remedy": "newer",
        "doc": "docs/doctor.md#x",
    }
