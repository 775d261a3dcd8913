"""Records: what is scrubbed, that nothing half-written is left, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import venv
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tdstack.doctor import record as records
from tdstack.doctor.check import exit_code
from tdstack.doctor.checks import checks
from tdstack.doctor.facts import Container, Driver, Engine, Facts, Installed, Os, Space, Spaces
from tdstack.doctor.hardware import Gpu, Rdma
from tdstack.doctor.load import dump, load
from tdstack.doctor.record import names_here, read_record, write_record
from tdstack.doctor.scrub import FREE, NAMED, Names, scrub
from tdstack.errors import UsageError
from tests.conftest import ROOT

NAMES = Names(
    frozenset({"gpu-node17", "gpu-node17.corp.example"}),
    frozenset({"alice", "root", "al"}),
    frozenset({"/root", "/data/people/alice"}),
)
ONE, OTHER = (
    "GPU-0f0e0d0c-1111-2222-3333-444455556666",
    "0a0b0c0d-1111-2222-3333-444455556666",
)


def scrubbed(facts: Facts, names: Names = NAMES) -> dict[str, Any]:
    return scrub(dump(facts), names)


def test_hardwares_own_names_get_stable_placeholders() -> None:
    found = scrubbed(
        Facts(
            label="gpu-node17",
            gpus=(Gpu(uuid=ONE), Gpu(uuid=OTHER), Gpu(uuid=ONE.upper())),
            rdma=(Rdma(guid="0c42:a103:00ab:cdef"), Rdma(guid="0c42:a103:00ab:cdee")),
            why={"a": f"device {OTHER} of 0c:42:a1:03:ab:cd and 0c42:a103:00ab:cdef is lost"},
        )
    )
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["uuid-1", "uuid-2", "uuid-1"]
    assert [device["guid"] for device in found["rdma"]] == ["guid-1", "guid-2"]
    assert found["why"]["a"] == "device uuid-2 of mac-1 and guid-1 is lost"
    assert found["label"] == "host-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "no route from gpu-node17 to gpu-node17.corp.example:2375",
            "no route from host-1 to host-1:2375",
        ),
        ("10.1.2.3:4791 and 10.1.2.3, 10.1.2.30", "ip-1:4791 and ip-1, ip-2"),
        ("[2001:db8::17]:80 fe80::1%eth0", "[ip-1]:80 ip-2%eth0"),
        ("127.0.0.1:80 ::1 0.0.0.0", "127.0.0.1:80 ::1 0.0.0.0"),
        ("/home/alice/x of alice, not malice", "/home/user-1/x of user-1, not malice"),
        ("/home/bob/.cache /root/.cache", "/home/user-1/.cache /root/.cache"),
        ("/data/people/alice/x, /data/people", "/home/user-1/x, /data/people"),
        ("tcp://build7.corp.example:2375/v1", "tcp://host-2:2375/v1"),
        (
            "HTTPConnectionPool(host='build7', port=2375)",
            "HTTPConnectionPool(host='host-2', port=2375)",
        ),
        (f"container {'0a' * 32} at 0000:1b:00.0", "container id-1 at 0000:1b:00.0"),
        ("Xid 79 at 0000:1b:00.0 12:30:45 version 550.54.14", None),
        ("al and root", None),
    ],
)
def test_free_text_loses_names_and_addresses(text: str, expected: str | None) -> None:
    found = scrubbed(Facts(label="gpu-node17", why={"a": text}))
    assert found["why"]["a"] == (text if expected is None else expected)


def test_vocabulary_is_kept_even_where_a_host_is_called_so() -> None:
    names = Names(frozenset({"debian"}), frozenset({"docker"}), frozenset())
    facts = Facts(
        label="debian",
        os=Os(distro="debian", kernel="6.1.0-18", cmdline="iommu=pt"),
        driver=Driver(version="550.54.14"),
        container=Container(engines=(Engine(name="docker", version="20.10.5.1"),)),
        spaces=Spaces(cache=Space(path="/home/docker/c")),
        tdstack=Installed(path="/srv/debian/stack", key="ab" * 32),
    )
    found = scrubbed(facts, names)
    assert found["os"]["distro"] == "debian"
    assert found["container"]["engines"][0] == {"name": "docker", "version": "20.10.5.1"}
    assert found["tdstack"] == {"path": "/srv/host-1/stack", "key": "ab" * 32}
    assert found["spaces"]["cache"]["path"] == "/home/user-1/c"


# Fields whose words are the hardware's, the kernel's or our own: no name of a host or user.
VOCABULARY = frozenset(
    {
        *("schema", "recorded", "tool", "distro", "distro_version", "kernel", "arch", "glibc"),
        *("python", "version", "library", "cuda", "kind", "nvml", "name", "filesystem", "storage"),
        *("transparent_hugepages", "cgroup_driver", "driver", "toolkit_version", "toolkit_mode"),
        *("family", "interface", "source", "where", "state", "triton", "torch", "key", "verify"),
        *("driver_floor", "error", "capability", "pci", "compute_mode", "fabric_state", "nvlink"),
        *("fabric_status", "remote", "remote_pci", "read", "write", "atomics", "topology"),
        *("device", "manager_version", "unit", "iommu", "board", "firmware", "physical", "layer"),
        *("netdev", "bootstrap_interface", "bootstrap_family", "devices", "runtimes", "families"),
        *("archs", "throttle", "fabric_health", "libraries"),
    }
)


def test_every_field_of_words_is_free_text_or_vocabulary() -> None:
    seen: set[type] = set()

    def walk(kind: Any) -> set[str]:
        if not is_dataclass(kind) or kind in seen:
            return set()
        seen.add(kind)  # type: ignore[arg-type]
        found = set()
        for name, hint in get_type_hints(kind).items():
            parts = [hint, *get_args(hint), *(i for a in get_args(hint) for i in get_args(a))]
            if str in parts:
                found.add(name)
            for part in parts:
                found |= walk(part)
        return found

    words = walk(Facts)
    assert {"cmdline", "uuid", "path"} <= words
    assert words - FREE - set(NAMED) - VOCABULARY == set()


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    facts = Facts(label="x", gpus=(Gpu(index=0, memory=1),), why={"rdma": "«kein Zugriff»"})
    write_record(facts, tmp_path / "host.json", Names())
    assert read_record(tmp_path / "host.json") == replace(facts, label="host-1")
    assert os.listdir(tmp_path) == ["host.json"]
    assert "«kein" in (tmp_path / "host.json").read_text("utf-8")


def test_a_second_recording_of_a_record_changes_nothing() -> None:
    once = scrubbed(Facts(label="gpu-node17", why={"a": "/home/alice 10.1.2.3 gpu-node17"}))
    assert scrub(once, NAMES)["why"] == once["why"]


def test_text_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    write_record(Facts(why={"a": "x\udcffy"}), tmp_path / "host.json", Names())
    assert "x" in read_record(tmp_path / "host.json").why["a"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_record(Facts(), tmp_path / "taken", Names())
    assert os.listdir(tmp_path) == ["taken"]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[]", "without a schema"),
        (b"3", "without a schema"),
        (b'{"gpus": []}', "without a schema"),
        (b'{"schema": "2.0"}', "'2.0'"),
        (b'{"schema": null}', "None"),
        (b'{"schema": ' + b"9" * 5000 + b"}", ""),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, got: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_record(file)
    assert got in caught.value.got
    assert caught.value.remedy
    for place in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UsageError):
            read_record(place)


def test_this_hosts_names_are_found_without_asking_a_server() -> None:
    names = names_here()
    assert records.host_name() in names.hosts
    assert os.path.expanduser("~") in names.homes


def test_this_host_is_recorded_without_its_name(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    # An environment without a single package, as on a bare machine.
    venv.create(tmp_path / "bare", symlinks=True)
    bare = str(tmp_path / "bare/bin/python")
    command = [bare, "-m", "tdstack.doctor", "--record", str(file)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/somebody", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    # Judged too, told in plain lines.
    assert ended.returncode == exit_code(checks(read_record(file))), ended.stderr
    assert "recorded: here.json" in ended.stderr
    assert re.search(r"^\d+ checks: ", ended.stderr, re.MULTILINE)
    assert "━" not in ended.stderr
    text = file.read_text("utf-8")
    assert "somebody" not in text
    data = json.loads(text)
    assert data["label"] == "host-1"
    facts = load(data)
    assert facts.notes == ()
    assert facts.os.python == "{}.{}.{}".format(*sys.version_info[:3])
    assert facts.limits.nofile_soft
    assert facts.spaces.tmp.size
    assert facts.driver.nvml == "no-package"
    assert {probe.state for probe in facts.probes or ()} <= {"ok", "partial"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_probes_and_writes_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "pynvml.py").write_text("import time\ntime.sleep(60)\n")
    file = tmp_path / "here.json"
    environment = dict(os.environ) | {"PYTHONPATH": f"{ROOT}:{slow}"}
    process = subprocess.Popen(
        [sys.executable, "-S", "-m", "tdstack.doctor", "--record", str(file)],
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in err
    assert not file.exists()
    assert [place for place in Path("/proc").glob("[0-9]*/environ") if marked(place, slow)] == []


def marked(place: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in place.read_bytes()
    except OSError:
        return False
