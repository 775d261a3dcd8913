"""Asking a host: hung, crashing and chatty drivers, and what is made of several answers."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tdstack.doctor.collect import Question, ask_all, collect
from tdstack.doctor.merge import gpus_of, merge

# Told apart from what others run here.
NAP = f"8765.{os.getpid()}"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts a module in pynvml's place, for the probes alone."""

    def put(code: str) -> None:
        (tmp_path / "pynvml.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def one(question: Question) -> Any:
    (answer,) = ask_all([question])
    return answer


def test_a_hung_driver_costs_its_own_facts_alone(driver: Any) -> None:
    driver(f"import subprocess\nsubprocess.run(['sleep', '{NAP}'])\n")
    begin = time.monotonic()
    facts = collect(limit_s=5)
    assert time.monotonic() - begin < 30
    assert facts.gpus is None or facts.gpus == ()
    assert facts.driver.nvml == "timeout"
    assert facts.reason("gpus.ecc") == "nvml: no answer within 5 s"
    probes = {probe.name: probe for probe in facts.probes or ()}
    assert probes["nvml"].state == "timeout"
    assert facts.limits.nofile_soft
    assert facts.spaces.shm.path == "/dev/shm"
    # What the probe itself started has ended with it.
    assert not any(NAP.encode() in line for line in command_lines())


def command_lines() -> list[bytes]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(place.read_bytes())
    return found


def test_a_crashing_driver_is_a_reason(driver: Any) -> None:
    driver("import os\nos._exit(77)\n")
    answer = one(Question("nvml"))
    assert (answer.state, answer.sections) == ("failed", {})
    assert answer.why == "the probe ended with status 77: it printed nothing"
    assert answer.reasons["gpus"].endswith(answer.why)


def test_an_unforeseen_error_is_a_reason(driver: Any) -> None:
    driver("raise ValueError('what the author did not think of')\n")
    answer = one(Question("nvml"))
    assert (answer.state, answer.why.endswith("what the author did not think of")) == (
        "failed",
        True,
    )


def test_a_library_that_prints_does_not_spoil_the_answer(driver: Any) -> None:
    driver("import os\nprint('hello')\nos.write(1, b'{}')\nraise ImportError\n")
    answer = one(Question("nvml"))
    assert (answer.state, answer.sections["driver"]) == ("partial", {"nvml": "no-package"})


def test_what_lies_in_the_current_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "tomllib.py", "pynvml.py", "tdstack.py"):
        (tmp_path / name).write_text("raise SystemExit('somebody else\\'s code ran')\n")
    monkeypatch.chdir(tmp_path)
    assert [answer.state for answer in ask_all([Question("limits"), Question("container")])] == [
        *("ok", "ok"),
    ]
    assert one(Question("nvml")).state == "partial"


@pytest.mark.parametrize("locale", ["C", "de_DE.ISO-8859-1", "ja_JP.eucJP", "tr_TR.UTF-8"])
def test_the_locale_does_not_matter(locale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LANG", "LANGUAGE"):
        monkeypatch.setenv(name, locale)
    answers = ask_all([Question("limits"), Question("system"), Question("memory")])
    assert [answer.state for answer in answers] == ["ok", "ok", "ok"]
    assert answers[0].sections["limits"]["nofile_soft"] > 0
    assert answers[2].sections["memory"]["total"] > 0


def test_what_hides_gpus_is_told_and_not_obeyed(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver("import os\nraise ValueError(os.environ.get('CUDA_VISIBLE_DEVICES', 'x'))\n")
    nvml, system = ask_all([Question("nvml"), Question("system")])
    assert nvml.why.endswith("ValueError: x")
    assert system.sections["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_this_host_answers_every_question(tmp_path: Path) -> None:
    facts = collect(str(tmp_path / "none"))
    assert facts.notes == ()
    states = {probe.state for probe in facts.probes or ()}
    assert states <= {"ok", "partial"}, facts.probes
    assert (facts.tdstack.where, facts.tdstack.state) == ("prefix", "absent")
    assert facts.spaces.prefix.size
    if not Path("/proc/driver/nvidia").exists():
        assert facts.driver.present is False


def test_what_was_said_first_stays() -> None:
    record = merge(
        [
            ({"driver": {"cuda": "12.4"}}, {"xids": "first"}),
            (
                {"driver": {"cuda": "13.0", "version": "550"}, "spaces.shm": {"size": 1}},
                {"xids": "2"},
            ),
            ({"spaces.tmp": {"size": 2}}, {"driver.version": "known after all"}),
        ]
    )
    assert record["driver"] == {"cuda": "12.4", "version": "550"}
    assert record["spaces"] == {"shm": {"size": 1}, "tmp": {"size": 2}}
    assert record["why"] == {"xids": "first"}


@pytest.mark.parametrize(
    ("found", "driver", "expected"),
    [
        ({}, {}, None),
        ({"pci": []}, {"present": False}, []),
        # GPUs on the bus that no driver serves may be those of other containers.
        ({"pci": [{"pci": "a"}]}, {"present": False}, None),
        ({"pci": [{"pci": "a", "pcie_width": 16}], "proc": []}, {}, []),
        (
            {
                "pci": [{"pci": "a", "pcie_width": 8}, {"pci": "b"}],
                "nvml": [{"index": 0, "pci": "a"}],
            },
            {},
            [{"index": 0, "pci": "a", "pcie_width": 8}],
        ),
        (
            {"cuda": [{"index": 0, "pci": "a", "name": "x"}], "nvml": [{"index": 5, "pci": "a"}]},
            {},
            [{"index": 5, "pci": "a", "name": "x"}],
        ),
        # A GPU without an address takes nothing from another one.
        ({"nvml": [{"index": 0}], "cuda": [{"pci": "a", "name": "x"}]}, {}, [{"index": 0}]),
    ],
)
def test_gpus_of_several_sources(found: Any, driver: Any, expected: Any) -> None:
    assert gpus_of(found, driver) == expected


def test_gpus_on_the_bus_without_a_driver_are_a_reason() -> None:
    record = merge([({"pcie": {"nvidia_devices": 8}, "gpus@pci": [{"pci": "a"}]}, {})])
    assert "gpus" not in record
    assert record["why"]["gpus"] == "8 are on the bus, and no driver answers for them"
