"""NVSHMEM in an environment: what is decided of what was found, and what is found."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tdstack.lock.model import Lock
from tdstack.stack import best_wheel
from tdstack.verify.environment import Answer, Environment
from tdstack.verify.finding import Finding
from tdstack.verify.nvshmem import facts as nvshmem_facts
from tdstack.verify.nvshmem.checks import check_nvshmem, compatible, judge
from tdstack.verify.nvshmem.facts import (
    DEVICE,
    FOLDER,
    Bitcode,
    Facts,
    Library,
    Pointed,
    Wheel,
    host_version,
)
from tdstack.workspace import Workspace
from tests.bitstreams import device_bitcode

if TYPE_CHECKING:
    from tests.conftest import MakeWheel

LIB = Path("/env/site/nvidia/nvshmem/lib")
SITE = Path("/env/site")
HOST = "libnvshmem_host.so.3"
SPLIT = "device library version does not match host library"
NO_BITCODE = "FileNotFoundError: libnvshmem_device.bc"
NOT_LOADED = "Failed to dlopen libnvshmem_host.so.3"
NO_BINDINGS = "No module named cuda.bindings.cynvvm, cannot import bindings"


def wheel(name: str, version: str, site: Path = SITE, **groups: tuple[str, ...]) -> Wheel:
    return Wheel(name, version, site, **groups)


def bitcode(version: str, path: Path = LIB / DEVICE, problem: str = "") -> Bitcode:
    return Bitcode(path, version, problem)


CU12 = wheel("nvidia-nvshmem-cu12", "3.6.5", own=(HOST, DEVICE))
CU13 = wheel("nvidia-nvshmem-cu13", "3.4.5", foreign=(HOST, DEVICE))
PY12 = wheel("nvshmem4py-cu12", "0.3.0")
PY13 = wheel("nvshmem4py-cu13", "0.3.0")
LIBRARY = Library(LIB / HOST, "3.6.5", "aa")
RIGHT = Facts(
    wheels=(CU12,),
    bindings=(PY12,),
    host=LIBRARY,
    device=bitcode("3.6.5"),
    torch="2.8.0",
    told=Answer(0, "3.6.5\n", ""),
)
ARCHES = tuple(bitcode("3.7.0", LIB / f"libnvshmem_device_sm_{a}.bc") for a in (80, 90))
SYSTEM = Library(Path(f"/usr/lib/{HOST}"), "3.4.5", "bb")
OTHER = Bitcode(Path(f"/opt/nvshmem/lib/{DEVICE}"), "3.4.5")

LONG = """Traceback (most recent call last):
  File "<string>", line 1, in <module>
KeyError: 'first'

During handling of the above exception, another exception occurred:

cuda.pathfinder.DynamicLibNotFoundError: Failure finding "libnvshmem_host.so": none
  listdir("/env/site/nvidia/nvshmem/lib"):
    nvshmem_transport_ucx.so.5
"""


def of(findings: list[Finding], check: str) -> Finding:
    (found,) = [f for f in findings if f.check == check]
    return found


def test_the_set_that_is_shipped_passes() -> None:
    findings = list(judge(RIGHT, "3.6.5"))
    assert [f.check for f in findings if not f.ok] == []
    assert {f.check for f in findings} == {
        "nvshmem-wheel",
        "nvshmem-host",
        "nvshmem-device",
        "nvshmem-copies",
        "nvshmem4py",
        "nvshmem4py-import",
        "nvshmem-torch",
        "nvshmem-expected",
    }
    assert "nvshmem-expected" not in {f.check for f in judge(RIGHT, None)}


@dataclass(frozen=True)
class Case:
    """Facts, the checks that must fail and no others, and what one of them must say."""

    facts: Facts
    failing: set[str]
    says: str = ""
    symptom: str = ""
    code: int = 1


CASES: dict[str, Case] = {
    "no wheel owns the files": Case(
        replace(RIGHT, wheels=()), {"nvshmem-wheel"}, "no distribution"
    ),
    "cu12 and cu13, cu12 last": Case(
        replace(RIGHT, wheels=(CU12, CU13)),
        {"nvshmem-wheel", "nvshmem-expected"},
        "nvidia-nvshmem-cu12 3.6.5 and nvidia-nvshmem-cu13 3.4.5: they own the same files, and the"
        " last one installed wins; whole on disk: nvidia-nvshmem-cu12 3.6.5",
        SPLIT,
    ),
    "cu12 and cu13, mixed": Case(
        replace(
            RIGHT,
            wheels=(
                replace(CU12, own=(HOST,), foreign=(DEVICE,)),
                replace(CU13, own=(DEVICE,), foreign=(HOST,)),
            ),
        ),
        {"nvshmem-wheel", "nvshmem-expected"},
        f"a mixture: {HOST} of nvidia-nvshmem-cu12 3.6.5; {DEVICE} of nvidia-nvshmem-cu13 3.4.5",
        SPLIT,
    ),
    "cu12 and cu13, neither": Case(
        replace(RIGHT, wheels=(replace(CU12, own=(), foreign=(HOST,)), CU13)),
        {"nvshmem-wheel", "nvshmem-expected"},
        "none of theirs",
        SPLIT,
    ),
    "cu12 and cu13, no RECORD": Case(
        replace(RIGHT, wheels=(replace(CU12, own=()), replace(CU13, foreign=()))),
        {"nvshmem-wheel", "nvshmem-expected"},
        "no RECORD tells",
        SPLIT,
    ),
    "the same in two sites": Case(
        replace(RIGHT, wheels=(CU12, replace(CU12, site=Path("/user/site"), version="3.4.5"))),
        {"nvshmem-wheel", "nvshmem-expected"},
        "nvidia-nvshmem-cu12 3.4.5 in /user/site: the first folder on sys.path wins",
        SPLIT,
    ),
    "bytes that the wheel did not bring": Case(
        replace(RIGHT, wheels=(replace(CU12, own=(DEVICE,), foreign=(HOST,)),)),
        {"nvshmem-wheel"},
        f"other bytes than its RECORD lists in {HOST}",
        SPLIT,
        4,
    ),
    "its own file is gone": Case(
        replace(RIGHT, wheels=(replace(CU12, own=(HOST,), missing=(DEVICE,)),), device=None),
        {"nvshmem-wheel", "nvshmem-device"},
        f"{DEVICE} of its RECORD is not there",
    ),
    "no host library": Case(
        replace(RIGHT, host=None), {"nvshmem-host"}, "no libnvshmem_host.so.3", NOT_LOADED
    ),
    "a host library that tells nothing": Case(
        replace(RIGHT, host=replace(LIBRARY, version="")), {"nvshmem-host"}, "tells no version"
    ),
    "host library of another version than the wheel": Case(
        replace(RIGHT, host=replace(LIBRARY, version="3.7.0"), told=Answer(0, "3.7.0", "")),
        {"nvshmem-host", "nvshmem-device", "nvshmem-expected"},
        "libnvshmem_host.so.3 says 3.7.0, its wheel is nvidia-nvshmem-cu12 3.6.5",
        SPLIT,
    ),
    "no bitcode": Case(replace(RIGHT, device=None), {"nvshmem-device"}, f"no {DEVICE}", NO_BITCODE),
    "bitcode per architecture": Case(
        replace(RIGHT, device=None, arches=ARCHES),
        {"nvshmem-device"},
        "as since 3.7: libnvshmem_device_sm_80.bc 3.7.0, libnvshmem_device_sm_90.bc 3.7.0",
        NO_BITCODE,
    ),
    "bitcode that cannot be read": Case(
        replace(RIGHT, device=bitcode("", problem="it is cut short")),
        {"nvshmem-device"},
        f"{DEVICE}: it is cut short",
    ),
    "an older minor runs, and is not what was installed": Case(
        replace(RIGHT, device=bitcode("3.4.5")), {"nvshmem-device"}, "it would run"
    ),
    "another patch runs, and is not what was installed": Case(
        replace(RIGHT, device=bitcode("3.6.6")), {"nvshmem-device"}, "it would run"
    ),
    "a newer minor does not run": Case(
        replace(RIGHT, device=bitcode("3.7.0")),
        {"nvshmem-device"},
        f"{DEVICE} says 3.7.0, the host library 3.6.5",
        SPLIT,
    ),
    "another major does not run": Case(
        replace(RIGHT, device=bitcode("2.6.5")), {"nvshmem-device"}, "says 2.6.5", SPLIT
    ),
    "a variable points to newer bitcode": Case(
        replace(
            RIGHT, pointed=(Pointed("NVSHMEM_HOME", "/opt/n", replace(OTHER, version="3.7.0")),)
        ),
        {"nvshmem-variables"},
        "NVSHMEM_HOME=/opt/n: its bitcode says 3.7.0, the host library 3.6.5",
        SPLIT,
    ),
    "a variable points to nothing": Case(
        replace(RIGHT, pointed=(Pointed("NVSHMEM_LIBDEVICE_PATH", "/gone", None),)),
        {"nvshmem-variables"},
        f"NVSHMEM_LIBDEVICE_PATH=/gone has no {DEVICE}",
        NO_BITCODE,
    ),
    "a variable points to nonsense": Case(
        replace(
            RIGHT, pointed=(Pointed("NVSHMEM_HOME", "/x", bitcode("", OTHER.path, "no bits")),)
        ),
        {"nvshmem-variables"},
        "NVSHMEM_HOME=/x: no bits",
    ),
    "a second host library": Case(
        replace(RIGHT, copies=(SYSTEM,)),
        {"nvshmem-copies"},
        f"the environment's is 3.6.5, others: /usr/lib/{HOST} (3.4.5)",
        SPLIT,
    ),
    "a second host library, same version, other bytes": Case(
        replace(RIGHT, copies=(replace(SYSTEM, version="3.6.5"),)),
        {"nvshmem-copies"},
        f"/usr/lib/{HOST} (3.6.5)",
        SPLIT,
    ),
    "a second host library of no version": Case(
        replace(RIGHT, copies=(replace(SYSTEM, version="", sha256="aa"),)),
        {"nvshmem-copies"},
        "version unknown",
        SPLIT,
    ),
    "nvshmem4py of the other CUDA": Case(
        replace(RIGHT, bindings=(PY13,)),
        {"nvshmem4py"},
        "nvshmem4py-cu13 0.3.0 beside nvidia-nvshmem-cu12 3.6.5",
    ),
    "nvshmem4py twice": Case(
        replace(RIGHT, bindings=(PY12, PY13)), {"nvshmem4py"}, "the same files"
    ),
    "nvshmem4py cannot load the library": Case(
        replace(RIGHT, told=Answer(1, "", f"Traceback\nOSError: {NOT_LOADED}\n")),
        {"nvshmem4py-import"},
        f"OSError: {NOT_LOADED}",
        NOT_LOADED,
    ),
    "nvshmem4py beside old bindings": Case(
        replace(
            RIGHT,
            told=Answer(
                1, "", "Traceback\nModuleNotFoundError: No module named 'cuda.bindings.cynvvm'\n"
            ),
        ),
        {"nvshmem4py-import"},
        "ModuleNotFoundError: No module named 'cuda.bindings.cynvvm'",
        NO_BINDINGS,
    ),
    "nvshmem4py beside bindings of 12.9.0": Case(
        replace(RIGHT, told=Answer(1, "", "ImportError: No module named 'cuda.bindings.utils'")),
        {"nvshmem4py-import"},
        "cuda.bindings.utils",
        NO_BINDINGS,
    ),
    "nvshmem4py misses the library at length": Case(
        replace(RIGHT, told=Answer(1, "", LONG)),
        {"nvshmem4py-import"},
        'cuda.pathfinder.DynamicLibNotFoundError: Failure finding "libnvshmem_host.so": none',
        NOT_LOADED,
    ),
    "nvshmem4py beside other old bindings": Case(
        replace(RIGHT, told=Answer(1, "", "ImportError: cannot import bindings")),
        {"nvshmem4py-import"},
        "cannot import bindings",
        NO_BINDINGS,
    ),
    "nvshmem4py fails in a new way": Case(
        replace(RIGHT, told=Answer(1, "", "Traceback\nValueError: new\n")),
        {"nvshmem4py-import"},
        "ValueError: new",
    ),
    "nvshmem4py dies after its answer": Case(
        replace(RIGHT, told=Answer(139, "3.6.5", "")), {"nvshmem4py-import"}, "exit status 139"
    ),
    "nvshmem4py says nothing": Case(
        replace(RIGHT, told=Answer(0, "None", "")), {"nvshmem4py-import"}, "exit status 0"
    ),
    "nvshmem4py loads another one": Case(
        replace(RIGHT, told=Answer(0, "3.4.5", "")),
        {"nvshmem4py-import"},
        "it loads NVSHMEM 3.4.5, the environment's is 3.6.5",
        SPLIT,
    ),
    "torch pins another version": Case(
        replace(
            RIGHT, torch="2.9.1", pins=("nvidia-nvshmem-cu12==3.3.20; platform_system == 'Linux'",)
        ),
        {"nvshmem-torch"},
        "torch 2.9.1 pins nvidia-nvshmem-cu12 3.3.20, installed is nvidia-nvshmem-cu12 3.6.5",
    ),
    "torch pins another CUDA": Case(
        replace(RIGHT, torch="2.11.0", pins=("nvidia-nvshmem-cu13 (==3.6.5)",)),
        {"nvshmem-torch"},
        "pins nvidia-nvshmem-cu13 3.6.5",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_fails_alone_and_says_so(name: str) -> None:
    case = CASES[name]
    findings = [f for f in judge(case.facts, "3.6.5") if not f.ok]
    assert {f.check for f in findings} == case.failing
    first = findings[0]
    assert case.says in first.detail
    assert (first.symptom, first.code) == (case.symptom, case.code)
    assert all(f.remedy for f in findings)


PASSING: dict[str, tuple[Facts, str, str]] = {
    "a copy with the same bytes": (
        replace(RIGHT, copies=(replace(SYSTEM, version="3.6.5", sha256="aa"),)),
        "nvshmem-copies",
        f"the same bytes also as /usr/lib/{HOST}",
    ),
    "a variable that names the environment's own": (
        replace(RIGHT, pointed=(Pointed("NVSHMEM_HOME", "/x", RIGHT.device),)),
        "nvshmem-variables",
        "NVSHMEM_HOME is the environment's own",
    ),
    "a variable that names older bitcode": (
        replace(RIGHT, pointed=(Pointed("NVSHMEM_HOME", "/opt/n", OTHER),)),
        "nvshmem-variables",
        "NVSHMEM_HOME=/opt/n: its bitcode says 3.4.5, the host library 3.6.5",
    ),
    "no nvshmem4py": (replace(RIGHT, bindings=(), told=None), "nvshmem4py", "not installed"),
    "torch pins what is there": (
        replace(RIGHT, pins=('nvidia_nvshmem_cu12 ==3.6.5 ; platform_machine == "x86_64"',)),
        "nvshmem-torch",
        "pins nvidia-nvshmem-cu12 3.6.5, which is there",
    ),
    "torch pins for an extra": (
        replace(RIGHT, pins=("nvidia-nvshmem-cu12==1.0; extra == 'old'",)),
        "nvshmem-torch",
        "torch 2.8.0 leaves NVSHMEM unpinned",
    ),
    "torch asks for a range": (
        replace(RIGHT, pins=("nvidia-nvshmem-cu12<4,>=3",)),
        "nvshmem-torch",
        "asks for nvidia-nvshmem-cu12<4,>=3, which is not compared",
    ),
    "no torch and no host library's word": (replace(RIGHT, torch=""), "nvshmem-host", "says 3.6.5"),
    "a wheel's post release": (
        replace(RIGHT, wheels=(replace(CU12, version="3.6.5.post1"),)),
        "nvshmem-host",
        "says 3.6.5",
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_right_passes_and_says_so(name: str) -> None:
    facts, check, says = PASSING[name]
    findings = list(judge(facts, "3.6.5"))
    assert [f for f in findings if not f.ok] == []
    assert says in of(findings, check).detail


def test_a_library_that_is_not_there_is_no_matter_of_paths() -> None:
    facts = replace(RIGHT, told=Answer(1, "", LONG))
    assert "LD_LIBRARY_PATH" in of(list(judge(facts, None)), "nvshmem4py-import").remedy
    gone = of(list(judge(replace(facts, host=None), None)), "nvshmem4py-import")
    assert gone.remedy == "install NVSHMEM again: the library itself is not there"


def test_the_expected_version_is_compared() -> None:
    finding = of(list(judge(RIGHT, "3.4.5")), "nvshmem-expected")
    assert not finding.ok
    assert finding.detail == "expected is 3.4.5, there is 3.6.5"
    nameless = replace(RIGHT, wheels=(), host=None)
    assert "no version" in of(list(judge(nameless, "3.4.5")), "nvshmem-expected").detail


@pytest.mark.parametrize(
    ("facts", "expected", "detail"),
    [
        (Facts(), None, ""),
        (Facts(copies=(SYSTEM,)), None, ""),
        (Facts(torch="2.8.0"), None, ""),
        (Facts(), "3.6.5", "version 3.6.5 was expected"),
        (Facts(bindings=(PY12,)), None, "nvshmem4py-cu12 0.3.0"),
        (Facts(bindings=(PY12,), copies=(SYSTEM,)), "3.4.5", f"outside of it: /usr/lib/{HOST}"),
    ],
)
def test_without_nvshmem_there_is_one_finding(
    facts: Facts, expected: str | None, detail: str
) -> None:
    (finding,) = judge(facts, expected)
    assert finding.check == "nvshmem"
    assert finding.detail.startswith("no NVSHMEM is installed")
    assert finding.ok == (not detail)
    assert detail in finding.detail
    if not finding.ok:
        line = "cu12" if facts.bindings else "cuNN"
        assert finding.remedy == f"install nvidia-nvshmem-{line}=={expected or '3.6.5'}"


@pytest.mark.parametrize(
    ("device", "host", "runs"),
    [
        ("3.6.5", "3.6.5", True),
        ("3.6.9", "3.6.5", True),
        ("3.4.5", "3.6.5", True),
        ("3.7.0", "3.6.5", False),
        ("2.9.0", "3.6.5", False),
        ("4.0.0", "3.6.5", False),
        ("3.9.0", "3.10.0", True),
    ],
)
def test_the_rule_at_run_time(device: str, host: str, runs: bool) -> None:
    assert compatible(device, host) is runs


# Looking: environments of small files.


def host_library(version: str) -> bytes:
    """Something like a host library: its version stands behind a text that begins as it does."""
    texts = b"NVSHMEM version in CUmodule or CUlibrary\0NVSHMEM v%s\0" % version.encode()
    return b"\x7fELF" + bytes(5000) + texts + bytes(range(256))


class Tree:
    """A prefix with a site; wheels are unpacked into it as pip does, over what is there."""

    def __init__(self, folder: Path, make_wheel: MakeWheel) -> None:
        self.folder, self.make_wheel = folder, make_wheel
        self.site = folder / "env/lib/python3/site-packages"
        self.site.mkdir(parents=True)
        python = folder / "env/bin/python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nPYTHONPATH={self.site} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.environment = Environment(
            folder / "env", python, "3.11", (self.site,), python.parent, "2.36"
        )

    def install(
        self,
        name: str,
        version: str,
        files: Mapping[str, bytes | str] = {},
        site: Path | None = None,
    ) -> None:
        wheel = self.make_wheel(self.folder / "wheels", name, version, files)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site or self.site)

    def nvshmem(
        self, name: str, version: str, site: Path | None = None, others: Sequence[str] = ()
    ) -> None:
        files: dict[str, bytes | str] = {
            **dict.fromkeys(others, "something"),
            f"{FOLDER}/{HOST}": host_library(version),
            f"{FOLDER}/{DEVICE}": device_bitcode(version),
        }
        self.install(name, version, files, site)

    def nvshmem4py(self, name: str, code: str) -> None:
        self.install(name, "0.3.0", {"nvshmem/core/__init__.py": code, "nvshmem/__init__.py": ""})

    def failing(
        self, expected: str | None = None, variables: Mapping[str, str] = {}
    ) -> dict[str, Finding]:
        findings = check_nvshmem(self.environment, expected, variables)
        return {f.check: f for f in findings if not f.ok}


def loads(version: str) -> str:
    """An nvshmem.core that has loaded `version`."""
    return (
        "import types\ndef get_version():\n"
        f"    return types.SimpleNamespace(libnvshmem_version='{version}')\n"
    )


@pytest.fixture
def tree(tmp_path: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """An empty environment, on a system that holds nothing else."""
    monkeypatch.setattr(nvshmem_facts, "ROOT", tmp_path / "system")
    monkeypatch.setattr(nvshmem_facts, "loader_cache", list)
    return Tree(tmp_path, make_wheel)


def test_a_whole_set_is_found_and_passes(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    tree.nvshmem4py("nvshmem4py-cu12", loads("3.6.5"))
    requires = "".join(f"Requires-Dist: {r}\n" for r in ("nvidia-nvshmem-cu12==3.6.5", "sympy==1"))
    metadata = f"Name: torch\nVersion: 2.8.0\n{requires}"
    tree.install("torch", "2.8.0", {"{info}/METADATA": metadata})
    findings = list(check_nvshmem(tree.environment, "3.6.5", {}))
    assert [f for f in findings if not f.ok] == []
    details = {f.check: f.detail for f in findings}
    assert details["nvshmem-wheel"] == "exactly one, nvidia-nvshmem-cu12 3.6.5"
    assert details["nvshmem-host"] == f"{HOST} says 3.6.5"
    assert details["nvshmem-device"] == f"{DEVICE} says 3.6.5, as the host library does"
    assert details["nvshmem4py-import"] == "it loads NVSHMEM 3.6.5"
    pinned = "torch 2.8.0 pins nvidia-nvshmem-cu12 3.6.5, which is there"
    assert details["nvshmem-torch"] == pinned


def test_what_else_a_wheel_brings_may_be_gone(tree: Tree) -> None:
    # Images drop static libraries; headers are another check's business.
    others = ("lib/libnvshmem_device.a", "include/nvshmem.h", "examples/one.bc")
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5", others=[f"nvidia/nvshmem/{o}" for o in others])
    assert tree.failing("3.6.5") == {}
    for other in others:
        (tree.site / "nvidia/nvshmem" / other).unlink()
    assert tree.failing("3.6.5") == {}


def test_nothing_is_found_in_nothing(tree: Tree) -> None:
    assert nvshmem_facts.gather(tree.environment, {}) == Facts()
    assert tree.failing() == {}
    assert set(tree.failing("3.6.5")) == {"nvshmem"}
    tree.nvshmem4py("nvshmem4py-cu12", "")
    assert set(tree.failing()) == {"nvshmem"}


@pytest.mark.parametrize(("first", "last"), [("cu12", "cu13"), ("cu13", "cu12")])
def test_of_two_wheels_the_one_on_disk_is_named(tree: Tree, first: str, last: str) -> None:
    for line in (first, last):
        tree.nvshmem(f"nvidia-nvshmem-{line}", "3.6.5" if line == "cu12" else "3.4.5")
    failing = tree.failing()
    version = "3.6.5" if last == "cu12" else "3.4.5"
    assert set(failing) == {"nvshmem-wheel"}
    assert failing["nvshmem-wheel"].detail.endswith(
        f"whole on disk: nvidia-nvshmem-{last} {version}"
    )


def test_the_first_site_is_the_one_that_counts(tree: Tree) -> None:
    user = tree.folder / "user"
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    tree.nvshmem("nvidia-nvshmem-cu12", "3.4.5", user)
    tree.environment = replace(tree.environment, sites=(user, tree.site))
    failing = tree.failing("3.4.5")
    assert set(failing) == {"nvshmem-wheel", "nvshmem-copies", "nvshmem-expected"}
    own = "the environment's is 3.4.5, others: "
    assert failing["nvshmem-copies"].detail == f"{own}{tree.site / FOLDER / HOST} (3.6.5)"


def test_one_wheels_files_under_anothers_record(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu13", "3.4.5")
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    shutil.rmtree(tree.site / "nvidia_nvshmem_cu12-3.6.5.dist-info")
    failing = tree.failing()
    assert set(failing) == {"nvshmem-wheel", "nvshmem-host"}
    assert failing["nvshmem-wheel"].code == 4
    assert f"in {HOST}, {DEVICE}" in failing["nvshmem-wheel"].detail


def test_rotten_and_missing_files(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    device = tree.site / FOLDER / DEVICE
    device.write_bytes(device.read_bytes()[:-8])
    failing = tree.failing()
    assert set(failing) == {"nvshmem-wheel", "nvshmem-device"}
    assert "cut short" in failing["nvshmem-device"].detail
    device.unlink()
    assert tree.failing()["nvshmem-device"].symptom == NO_BITCODE
    (tree.site / FOLDER / HOST).write_bytes(b"")
    assert "tells no version" in tree.failing()["nvshmem-host"].detail
    (tree.site / FOLDER / HOST).unlink()
    assert tree.failing()["nvshmem-host"].symptom == NOT_LOADED


def test_bitcode_per_architecture_is_named(tree: Tree) -> None:
    files: dict[str, bytes | str] = {f"{FOLDER}/{HOST}": host_library("3.7.0")}
    for arch in (80, 90):
        files[f"{FOLDER}/libnvshmem_device_sm_{arch}.bc"] = device_bitcode("3.7.0")
    tree.install("nvidia-nvshmem-cu12", "3.7.0", files)
    failing = tree.failing()
    assert set(failing) == {"nvshmem-device"}
    assert "libnvshmem_device_sm_80.bc 3.7.0" in failing["nvshmem-device"].detail
    assert "3.6.5 or older" in failing["nvshmem-device"].remedy


def elsewhere(folder: Path, version: str) -> Path:
    """Put another NVSHMEM's library and bitcode into a folder."""
    folder.mkdir(parents=True)
    (folder / HOST).write_bytes(host_library(version))
    (folder / DEVICE).write_bytes(device_bitcode(version))
    return folder


@pytest.mark.parametrize("value", ["lib", f"lib/{DEVICE}"])
def test_a_variable_that_points_elsewhere_is_followed(tree: Tree, value: str) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    elsewhere(tree.folder / "other/lib", "3.7.0")
    variables = {"NVSHMEM_LIBDEVICE_PATH": str(tree.folder / "other" / value)}
    failing = tree.failing(variables=variables)
    assert set(failing) == {"nvshmem-variables"}
    assert "says 3.7.0, the host library 3.6.5" in failing["nvshmem-variables"].detail
    own = {"NVSHMEM_LIBDEVICE_PATH": str(tree.site / FOLDER)}
    assert tree.failing(variables=own) == {}


def test_the_home_variable_brings_bitcode_and_library(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    elsewhere(tree.folder / "other/lib", "3.7.0")
    failing = tree.failing(variables={"NVSHMEM_HOME": str(tree.folder / "other")})
    assert set(failing) == {"nvshmem-variables", "nvshmem-copies"}
    assert "its bitcode says 3.7.0" in failing["nvshmem-variables"].detail


PLACES = {
    "the system's": "system/usr/lib",
    "Debian's": "system/usr/lib/x86_64-linux-gnu",
    "NVIDIA's package": "system/usr/lib/x86_64-linux-gnu/nvshmem/12",
    "the toolkit's": "system/usr/local/cuda-12.8/lib64",
    "an archive's": "system/usr/local/nvshmem_3.4/lib",
    "NVIDIA's folder": "system/opt/nvidia/nvshmem-3/lib",
    "the prefix's own": "env/lib",
    "another package's": "env/lib/python3/site-packages/torch/lib",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_second_library_is_found_wherever_it_lies(tree: Tree, place: str) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    folder = tree.folder / PLACES[place]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HOST).write_bytes(host_library("3.4.5"))
    (folder / "libnvshmem_host.so").symlink_to(HOST)
    failing = tree.failing()
    assert set(failing) == {"nvshmem-copies"}
    assert failing["nvshmem-copies"].detail.endswith(f"others: {folder / HOST} (3.4.5)")
    assert failing["nvshmem-copies"].symptom == SPLIT


def test_a_second_library_on_the_loaders_path(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    folder = elsewhere(tree.folder / "other", "3.4.5")
    found = tree.failing(variables={"LD_LIBRARY_PATH": f"/gone::{folder}"})
    assert set(found) == {"nvshmem-copies"}
    monkeypatch.setattr(nvshmem_facts, "loader_cache", lambda: [folder / HOST, folder / "gone"])
    assert tree.failing()["nvshmem-copies"].detail.endswith(f"others: {folder / HOST} (3.4.5)")


def test_the_same_library_again_is_no_second_one(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    elsewhere(tree.folder / "system/usr/lib", "3.6.5")
    (tree.folder / "link").symlink_to(tree.site / FOLDER)
    variables = {"LD_LIBRARY_PATH": str(tree.folder / "link")}
    findings = list(check_nvshmem(tree.environment, None, variables))
    assert [f for f in findings if not f.ok] == []
    noted = f"no second host library; the same bytes also as {tree.folder}/system/usr/lib/{HOST}"
    assert of(findings, "nvshmem-copies").detail == f"{noted} (3.6.5)"


def test_the_loaders_cache_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    out = (
        "2 libs found in cache `/etc/ld.so.cache'\n"
        "\tlibz.so.1 (libc6,x86-64) => /lib/libz.so.1\n"
        f"\t{HOST} (libc6,x86-64) => /usr/lib/{HOST}\n"
    )
    answers = {"ldconfig": Answer(126, "", "no such file"), "/sbin/ldconfig": Answer(0, out, "")}
    monkeypatch.setattr(nvshmem_facts, "ask", lambda command: answers[command[0]])
    assert nvshmem_facts.loader_cache() == [Path(f"/usr/lib/{HOST}")]


def test_nvshmem4pys_own_word_counts(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu12", "3.6.5")
    tree.nvshmem4py("nvshmem4py-cu12", loads("3.4.5"))
    assert set(tree.failing()) == {"nvshmem4py-import"}
    tree.nvshmem4py("nvshmem4py-cu12", "raise ImportError('cannot import bindings')")
    failing = tree.failing()
    assert failing["nvshmem4py-import"].detail == "ImportError: cannot import bindings"
    # The variables that its loader heeds reach it.
    code = f"import os\n{loads('3.6.5')}".replace("'3.6.5'", "os.environ['LD_LIBRARY_PATH']")
    tree.nvshmem4py("nvshmem4py-cu12", code)
    assert tree.failing(variables={"LD_LIBRARY_PATH": "3.6.5"}) == {}


def test_nvshmem4py_of_the_other_cuda_is_found(tree: Tree) -> None:
    tree.nvshmem("nvidia-nvshmem-cu13", "3.4.5")
    tree.nvshmem4py("nvshmem4py-cu12", loads("3.4.5"))
    failing = tree.failing()
    assert set(failing) == {"nvshmem4py"}
    assert failing["nvshmem4py"].remedy == "install nvshmem4py-cu13 in its place"


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (host_library("3.6.5"), "3.6.5"),
        (host_library("3.10.12"), "3.10.12"),
        (host_library("3.6.5")[4:], ""),
        (b"\x7fELF NVSHMEM version in CUmodule", ""),
        (b"", ""),
    ],
)
def test_a_host_librarys_version_is_read(tmp_path: Path, content: bytes, version: str) -> None:
    (tmp_path / HOST).write_bytes(content)
    assert host_version(tmp_path / HOST) == version
    assert host_version(tmp_path) == ""


@pytest.mark.engine
def test_the_wheel_of_the_lock_is_whole_and_of_one_version(lock: Lock, tree: Tree) -> None:
    ref = "nvidia-nvshmem-cu12==3.6.5"
    file = best_wheel(ref, lock.packages[ref], "3.12", "linux/amd64", "2.39")
    workspace = Workspace.here()
    workspace.fetch([file])
    with zipfile.ZipFile(workspace.store.path(file)) as archive:
        archive.extractall(tree.site)
    findings = list(check_nvshmem(tree.environment, "3.6.5", {}))
    assert [f for f in findings if not f.ok] == []
    assert len(findings) == 6
