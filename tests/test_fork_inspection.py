"""What is found in a wheel of Triton-distributed, and how the verbs end because of it."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdstack.errors import ExitCode, IntegrityError
from tdstack.fork.acquire import take_file
from tdstack.fork.facts import read_facts
from tdstack.fork.inspection import EXPECTED, Inspection, inspect, of_the_builder
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock
from tdstack.plan import slice_of
from tdstack.stack import BaseFacts, Request, make_stack
from tdstack.verify.triton.fork import LIBRARY
from tdstack.wheelhouse.store import Store, sha256_of
from tests.conftest import ROOT
from tests.odd_wheels import odd_wheel, patch_headers
from tests.test_cli import Ended, invoke
from tests.triton_wheels import FORK_FILES, STOCK_FILES, TAG, TRAP_FILES, elf, library

PINNED = load_lock(ROOT)[0].triton_distributed
# A file less, which triton_dist.language imports.
INCOMPLETE: dict[str, bytes | str | None] = {"triton_dist/language/core.py": None}
WHOLE = ["name", "fingerprint", "whole", "base", "python", "machine", "glibc", "packages"]
Make = Callable[[Path], Path]


def look(wheel: Path, *, incomplete: bool = False) -> Inspection:
    return inspect(read_facts(wheel), PINNED.base_version, incomplete=incomplete)


def finding(found: Inspection, check: str) -> str:
    (text,) = [f.detail for f in found.findings if f.check == check]
    return text


# ------------------------------------------------------------------------------ what is taken


def test_a_whole_fork_is_accepted_and_every_finding_is_ok(tmp_path: Path) -> None:
    wheel = odd_wheel(tmp_path)
    found = look(wheel)
    assert [f.check for f in found.findings] == WHOLE
    assert all(f.ok for f in found.findings)
    found.require()
    assert found.as_dict() == {
        "schema": 1,
        "file": wheel.name,
        "sha256": sha256_of(wheel),
        "size": wheel.stat().st_size,
        "version": "3.4.0",
        "library": "distributed",
        "python": "3.11",
        "glibc": "2.2.5",
        "glibcxx": "",
        "machine": "x86_64",
        "tags": ["cp311-cp311-linux_x86_64"],
        "packages": ["triton", "triton_dist"],
        "missing": [],
        "requires": [],
        "provenance": {},
        "accepted": True,
        "findings": [
            {
                "check": f.check,
                "ok": True,
                "detail": f.detail,
                "remedy": "",
                "code": 0,
                "symptom": "",
            }
            for f in found.findings
        ],
    }
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


TAKEN: dict[str, Make] = {
    "named triton": lambda at: odd_wheel(
        at, name="triton", metadata="Name: triton\nVersion: 3.4.0\n"
    ),
    "with a local version": lambda at: odd_wheel(
        at, version="3.4.0+git1512a81", metadata="Name: Triton_Dist\nVersion: 3.4.0+git1512a81\n"
    ),
    "folders of their own": lambda at: odd_wheel(at, folders=True),
    "zip64": lambda at: odd_wheel(at, zip64=True),
    "stored": lambda at: odd_wheel(at, compression=zipfile.ZIP_STORED),
    "bzip2": lambda at: odd_wheel(at, compression=zipfile.ZIP_BZIP2),
    "lzma": lambda at: odd_wheel(at, compression=zipfile.ZIP_LZMA),
    "RECORD with sha512": lambda at: odd_wheel(
        at, {"triton/x.py": ""}, record=lambda lines: [
            line if not line.startswith("triton/x.py") else "triton/x.py,sha512=z4PhNX7vuL3xVChQ1m2"
            "AB9Yg5AULVxXcg_SpIdNs6c5H0NE8XYXysP-DGNKHfuwvY7kxvUdBeoGlODJ6-SfaPg,0"
            for line in lines
        ],
    ),
    "a vendored dist-info": lambda at: odd_wheel(at, {"triton/_vendor/x-1.dist-info/METADATA": ""}),
    "a name with a comma": lambda at: odd_wheel(at, {"triton_dist/a, b.py": ""}),
    "a file that RECORD does not name": lambda at: odd_wheel(
        at, record=lambda lines: [n for n in lines if "gemm" not in n]
    ),
    "METADATA in another encoding": lambda at: odd_wheel(
        at, {"{info}/METADATA": b"Name: triton-dist\nVersion: 3.4.0\n" +
             b"Author: J\xfcrgen\nRequires-Dist: \xfc\n"}
    ),
    "CRLF": lambda at: odd_wheel(
        at, {"{info}/METADATA": "Name: triton-dist\r\nVersion: 3.4.0\r\n\r\nName: x\r\n"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_what_is_unusual_and_sound_is_taken(make: Make, tmp_path: Path, store: Store) -> None:
    wheel = make(tmp_path)
    assert look(wheel).refused == ()
    taken = take_file(wheel, store, PINNED)
    with zipfile.ZipFile(store.path(taken.file)) as new, zipfile.ZipFile(wheel) as old:
        assert new.testzip() is None
        assert new.read(LIBRARY) == old.read(LIBRARY)
        assert len(new.namelist()) == len([n for n in old.namelist() if n[-1] != "/"]) + 1
    again = look(_named(taken.file.name, store.path(taken.file), tmp_path / "again"))
    assert again.refused == ()
    assert finding(again, "whole") == "every file has the bytes that RECORD says"


def _named(name: str, content: Path, folder: Path) -> Path:
    folder.mkdir()
    (folder / name).write_bytes(content.read_bytes())
    return folder / name


def test_a_file_that_record_does_not_name_is_noted(tmp_path: Path) -> None:
    wheel = odd_wheel(tmp_path, record=lambda lines: [n for n in lines if "gemm" not in n])
    text = finding(look(wheel), "whole")
    assert text == "RECORD does not name triton_dist/kernels/nvidia/gemm.py; it will"


# ---------------------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[Make, str, str]] = {
    "stock": (
        lambda at: odd_wheel(
            at, {LIBRARY: library(fork=False)}, name="triton",
            metadata="Name: triton\nVersion: 3.4.0\n"
        ), "fingerprint", "is stock Triton",
    ),
    "stock called triton_dist": (
        lambda at: odd_wheel(at, {LIBRARY: library(fork=False)}), "fingerprint", "is stock Triton",
    ),
    "stock with the label": (
        lambda at: odd_wheel(
            at, {LIBRARY: library(fork=False)}, name="triton", version="3.4.0+dist.01234abc",
            metadata="Name: triton\nVersion: 3.4.0+dist.01234abc\n",
        ), "fingerprint", "is stock Triton",
    ),
    "stock called torch": (
        lambda at: odd_wheel(
            at, {LIBRARY: library(fork=False)}, name="torch",
            metadata="Name: torch\nVersion: 3.4.0\n"
        ), "name", "is not Triton-distributed by its name",
    ),
    "the index's trap": (
        lambda at: odd_wheel(
            at, {**dict.fromkeys(FORK_FILES), **TRAP_FILES}, version="0.0.0", tag="py3-none-any",
            metadata="Name: triton-dist\nVersion: 0.0.0\n",
        ), "fingerprint", "like the index's triton-dist 0.0.0",
    ),
    "an older base": (
        lambda at: odd_wheel(
            at, version="3.3.1", metadata="Name: triton-dist\nVersion: 3.3.1\n"
        ), "base", "is Triton 3.3.1, and torch pins 3.4.0",
    ),
    "a post release": (
        lambda at: odd_wheel(
            at, version="3.4.0.post1", metadata="Name: triton-dist\nVersion: 3.4.0.post1\n"
        ), "base", "is Triton 3.4.0.post1",
    ),
    "tags of another Python": (
        lambda at: odd_wheel(at, tag="cp312-cp312-linux_x86_64"),
        "python", "is tagged cp312, but compiled for Python 3.11",
    ),
    "tags of any Python": (
        lambda at: odd_wheel(at, tag="py3-none-any"), "python", "compiled for Python 3.11",
    ),
    "another machine's library": (
        lambda at: odd_wheel(at, {LIBRARY: _of_machine(183)}),
        "machine", "is tagged linux_x86_64, but compiled for aarch64",
    ),
    "one library of another machine": (
        lambda at: odd_wheel(at, {"triton/_C/libproton.so": _of_machine(183)}),
        "machine", "compiled for aarch64 and x86_64",
    ),
    "missing package": (
        lambda at: odd_wheel(at, INCOMPLETE),
        "packages", "lacks triton_dist.language.core, which triton_dist.language imports",
    ),
    "library cut short": (
        lambda at: odd_wheel(at, {LIBRARY: library()[:9000] + b"distributed.get_rank"}),
        "whole", f"cut short: {LIBRARY}",
    ),
    "program cut short": (
        lambda at: odd_wheel(at, {"triton/backends/nvidia/bin/ptxas": elf()[:9000]}),
        "whole", "cut short: triton/backends/nvidia/bin/ptxas",
    ),
    "bytes unlike RECORD": (
        lambda at: odd_wheel(at, record=lambda lines: [
            line.replace("sha256=", "sha256=x") if "gemm" in line else line for line in lines
        ]), "whole", "other bytes than its RECORD says: triton_dist/kernels/nvidia/gemm.py",
    ),
    "RECORD with md5": (
        lambda at: odd_wheel(at, record=lambda lines: [
            line.replace("sha256=", "md5=") if "gemm" in line else line for line in lines
        ]), "whole", "other bytes than its RECORD says",
    ),
    "a file less than RECORD": (
        lambda at: odd_wheel(at, record=lambda lines: [*lines, "triton_dist/tma.py,,"]),
        "whole", "lacks files that its RECORD names: triton_dist/tma.py",
    ),
    "no WHEEL": (
        lambda at: odd_wheel(at, {"{info}/WHEEL": None}), "whole", "has no triton_dist-3.4.0",
    ),
    "another name in METADATA": (
        lambda at: odd_wheel(at, metadata="Name: triton\nVersion: 3.4.0\n"),
        "name", "is called triton 3.4.0 in its metadata",
    ),
    "another version in METADATA": (
        lambda at: odd_wheel(at, metadata="Name: triton-dist\nVersion: 3.4.1\n"),
        "name", "is called triton-dist 3.4.1 in its metadata",
    ),
    "another local version in METADATA": (
        lambda at: odd_wheel(
            at, version="3.4.0+gitabc", metadata="Name: triton-dist\nVersion: 3.4.0+gitdef\n"
        ), "name", "is called triton-dist 3.4.0+gitdef",
    ),
    "no version in METADATA": (
        lambda at: odd_wheel(at, metadata="Name: triton-dist\n"), "name", "is called triton-dist ",
    ),
    "nonsense in METADATA": (
        lambda at: odd_wheel(at, {"{info}/METADATA": b"\xff\xfe\0Name\0"}), "name", "is called",
    ),
    "label without provenance": (
        lambda at: _labelled(at, None), "label", "carries the label +dist.",
    ),
    "label with an empty provenance": (
        lambda at: _labelled(at, ""), "label", "carries the label +dist.",
    ),
    "label with half a provenance": (
        lambda at: _labelled(at, "file: x.whl\nsize: 1\n"), "label", "carries the label",
    ),
    "label with nonsense for a provenance": (
        lambda at: _labelled(at, "file: x.whl\nsha256: 01234abc\nsize: many\n"),
        "label", "carries the label",
    ),
    "label of another wheel": (
        lambda at: _labelled(at, f"file: x.whl\nsha256: {'9' * 64}\nsize: 1\n"),
        "label", "carries the label",
    ),
    "label on triton_dist": (
        lambda at: odd_wheel(
            at, {"{info}/PROVENANCE": f"file: x.whl\nsha256: {'9' * 64}\nsize: 1\n"},
            version="3.4.0+dist.99999999",
            metadata="Name: triton-dist\nVersion: 3.4.0+dist.99999999\n",
        ), "label", "carries the label",
    ),
    "absolute name": (
        lambda at: odd_wheel(at, {"/etc/cron.d/x": ""}), "whole", "leads out of it: /etc/cron.d/x",
    ),
    "name that leads out": (
        lambda at: odd_wheel(at, {"triton/../../x.py": ""}), "whole", "leads out of it",
    ),
    "name with backslashes": (
        lambda at: odd_wheel(at, {"triton\\x.py": ""}), "whole", "leads out of it",
    ),
    "symbolic link": (
        lambda at: odd_wheel(at, {"triton/x.h": "/etc/passwd"}, links=["triton/x.h"]),
        "whole", "holds links, which installers write as text: triton/x.h",
    ),
    "a name twice": (
        lambda at: _silently(lambda: odd_wheel(at, repeat=["triton/__init__.py"])),
        "whole", "holds a file twice: triton/__init__.py",
    ),
}  # fmt: skip


def _of_machine(number: int) -> bytes:
    data = bytearray(library())
    struct.pack_into("<H", data, 18, number)
    return bytes(data)


def _labelled(at: Path, provenance: str | None) -> Path:
    return odd_wheel(
        at, {"{info}/PROVENANCE": provenance}, name="triton", version="3.4.0+dist.01234abc",
        metadata="Name: triton\nVersion: 3.4.0+dist.01234abc\n",
    )  # fmt: skip


def _silently(make: Callable[[], Path]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


@pytest.mark.parametrize(("make", "check", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wheel_that_is_not_what_is_needed_is_refused_with_the_finding(
    make: Make, check: str, words: str, tmp_path: Path, store: Store
) -> None:
    wheel = make(tmp_path)
    found = look(wheel)
    assert found.refused[0].check == check
    assert words in found.refused[0].detail
    assert found.as_dict()["accepted"] is False
    with pytest.raises(IntegrityError) as caught:
        take_file(wheel, store, PINNED)
    error = caught.value
    assert (error.where, error.code) == (f"--wheel: {check}", ExitCode.INTEGRITY)
    assert wheel.name in error.what
    assert words in error.what
    assert error.expected == EXPECTED[check]
    assert error.remedy
    assert error.details == found.as_dict()
    assert list((store.root / "blobs").iterdir()) == []


UNREADABLE: dict[str, tuple[Make, str]] = {
    "cut short": (lambda at: _cut(odd_wheel(at), 0.7), "not a zip file"),
    "empty": (lambda at: _cut(odd_wheel(at), 0.0), "not a zip file"),
    "text": (lambda at: _filled(odd_wheel(at), b"<html>Not found</html>"), "not a zip file"),
    "no METADATA": (
        lambda at: odd_wheel(at, {"{info}/METADATA": None}), "METADATA",
    ),
    "no RECORD": (lambda at: odd_wheel(at, {"{info}/RECORD": None}), "RECORD"),
    "no dist-info": (
        lambda at: odd_wheel(at, dict.fromkeys(
            ["{info}/METADATA", "{info}/RECORD", "{info}/WHEEL", "{info}/entry_points.txt"]
        )), "0 dist-info folders",
    ),
    "two dist-infos": (
        lambda at: odd_wheel(at, {"triton-3.4.0.dist-info/METADATA": "Name: triton\n"}),
        "2 dist-info folders",
    ),
    "encrypted": (lambda at: patch_headers(odd_wheel(at), LIBRARY, flags=1), "encrypted"),
    "zstd": (lambda at: patch_headers(odd_wheel(at), LIBRARY, method=93), "compression"),
    "unknown compression": (
        lambda at: patch_headers(odd_wheel(at), LIBRARY, method=77), "compression",
    ),
    "deflated said to be lzma": (
        lambda at: patch_headers(odd_wheel(at), LIBRARY, method=zipfile.ZIP_LZMA), "",
    ),
    "deflated said to be bzip2": (
        lambda at: patch_headers(odd_wheel(at), LIBRARY, method=zipfile.ZIP_BZIP2), "",
    ),
    "damaged deflate": (lambda at: _damaged(at, zipfile.ZIP_DEFLATED), ""),
    "damaged bzip2": (lambda at: _damaged(at, zipfile.ZIP_BZIP2), ""),
    "damaged lzma": (lambda at: _damaged(at, zipfile.ZIP_LZMA), ""),
    "damaged, not compressed": (lambda at: _damaged(at, zipfile.ZIP_STORED), "CRC"),
    "a name that is not UTF-8": (
        lambda at: _replaced(
            odd_wheel(at, {"triton/\u00fc.py": ""}), "\u00fc".encode(), b"\xff\xff"
        ),
        "utf-8",
    ),
    "a RECORD of one endless line": (
        lambda at: odd_wheel(at, {"{info}/RECORD": '"' + "x" * 200_000}), "field limit",
    ),
}  # fmt: skip


def _damaged(at: Path, compression: int) -> Path:
    wheel = odd_wheel(at, compression=compression)
    with zipfile.ZipFile(wheel) as archive:
        member = archive.getinfo(LIBRARY)
    # Past the local header (30 bytes and the name) and what each compression begins with.
    begin = member.header_offset + 30 + len(LIBRARY) + 16
    data = bytearray(wheel.read_bytes())
    data[begin : begin + 64] = b"\xff" * 64
    return _filled(wheel, bytes(data))


def _cut(wheel: Path, share: float) -> Path:
    return _filled(wheel, wheel.read_bytes()[: int(wheel.stat().st_size * share)])


def _filled(wheel: Path, data: bytes) -> Path:
    wheel.write_bytes(data)
    return wheel


def _replaced(wheel: Path, old: bytes, new: bytes) -> Path:
    return _filled(wheel, wheel.read_bytes().replace(old, new))


@pytest.mark.parametrize(("make", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_no_whole_wheel_ends_in_our_error(
    make: Make, words: str, tmp_path: Path
) -> None:
    wheel = make(tmp_path)
    with pytest.raises(IntegrityError, match="is not a whole wheel") as caught:
        read_facts(wheel)
    assert words.lower() in caught.value.got.lower()
    assert caught.value.got
    assert "sha256" in caught.value.remedy


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    damage=st.dictionaries(st.integers(0, 1 << 20), st.integers(0, 255), min_size=1, max_size=6),
    tail=st.booleans(),
)
def test_a_damaged_wheel_is_read_or_refused(
    tmp_path: Path, damage: dict[int, int], tail: bool
) -> None:
    wheel = tmp_path / f"good/triton_dist-3.4.0-{TAG}.whl"
    if not wheel.exists():
        odd_wheel(wheel.parent)
    data = bytearray(wheel.read_bytes())
    with zipfile.ZipFile(wheel) as archive:
        start = archive.start_dir if tail else 0
    for place, value in damage.items():
        data[start + place % (len(data) - start)] = value
    bad = tmp_path / wheel.name
    bad.write_bytes(bytes(data))
    try:
        found = look(bad)
    except IntegrityError as error:
        assert error.got
    else:
        assert json.dumps(found.as_dict())


# ------------------------------------------------------------------- what depends on the base


def _needing_238(at: Path, python: str = "3.11") -> Path:
    cp = f"cp{python.replace('.', '')}"
    return odd_wheel(
        at, {LIBRARY: library(python=python, glibc="2.38")}, tag=f"{cp}-{cp}-manylinux_2_28_x86_64"
    )


def test_a_tag_that_lies_about_glibc_is_noted_and_judged_by_the_base(
    tmp_path: Path, store: Store, lock: Lock
) -> None:
    wheel = _needing_238(tmp_path)
    found = look(wheel)
    assert found.refused == ()
    assert finding(found, "glibc") == "needs glibc 2.38; its tag promises 2.28 and lies"
    fork = take_file(wheel, store, PINNED)
    assert fork.source.glibc == "2.38"
    with pytest.raises(IntegrityError, match="does not run on this base") as caught:
        make_stack(lock, Request(fork=fork))  # the rootfs has glibc 2.36
    assert "2.38" in caught.value.got
    for glibc, fits in (("2.37", False), ("2.38", True), ("2.41", True)):
        facts = BaseFacts("/usr/bin/python3.12", glibc)
        other = replace(fork, source=fork.source.model_copy(update={"python": "3.12"}))
        other = replace(other, file=fork.file.model_copy(
            update={"name": fork.file.name.replace("cp311", "cp312")}
        ))  # fmt: skip
        request = Request(fork=other, base=f"x@sha256:{'0' * 64}", python="3.12", base_facts=facts)
        if fits:
            assert make_stack(lock, request).fork == other
        else:
            with pytest.raises(IntegrityError, match="does not run on this base"):
                make_stack(lock, request)


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("manylinux1_x86_64", "its tag promises 2.5 and lies"),
        ("manylinux2014_x86_64", "its tag promises 2.17 and lies"),
        ("manylinux_2_17_x86_64.manylinux2014_x86_64", "its tag promises 2.17 and lies"),
        ("manylinux_2_27_x86_64.manylinux_2_28_x86_64", "its tag promises 2.27 and lies"),
        ("manylinux_2_38_x86_64", "needs glibc 2.38"),
        ("linux_x86_64", "needs glibc 2.38"),
    ],
)
def test_what_each_tag_promises(tmp_path: Path, tag: str, words: str) -> None:
    wheel = odd_wheel(tmp_path, {LIBRARY: library(glibc="2.38")}, tag=f"cp311-cp311-{tag}")
    text = finding(look(wheel), "glibc")
    assert text.endswith(words)
    assert ("lies" in text) == ("lies" in words)


def test_the_strictest_library_of_the_compiler_counts_and_its_programs_do_not(
    tmp_path: Path,
) -> None:
    more = {
        "triton/_C/libproton.so": library(glibc="2.31"),
        "triton/backends/nvidia/bin/ptxas": library(glibc="2.39"),
    }
    for backwards in (False, True):
        wheel = odd_wheel(tmp_path / str(backwards), more, backwards=backwards)
        assert look(wheel).as_dict()["glibc"] == "2.31"


# ------------------------------------------------------------------------- missing packages


def test_an_incomplete_wheel_is_taken_only_when_asked_and_the_manifest_says_so(
    tmp_path: Path, store: Store, lock: Lock
) -> None:
    wheel = odd_wheel(tmp_path, INCOMPLETE)
    assert "--incomplete" in look(wheel).refused[0].remedy
    taken = look(wheel, incomplete=True)
    assert taken.refused == ()
    assert "lacks triton_dist.language.core" in finding(taken, "packages")
    assert "--incomplete" in finding(taken, "packages")
    fork = take_file(wheel, store, PINNED, incomplete=True)
    assert not fork.complete
    with pytest.raises(IntegrityError, match="lacks triton_dist"):
        take_file(wheel, store, PINNED)  # what was taken once is not taken for good
    whole = take_file(odd_wheel(tmp_path / "whole"), store, PINNED, incomplete=True)
    for one, complete in ((fork, False), (whole, True)):
        told = slice_of(make_stack(lock, Request(fork=one)))["fork"]
        assert isinstance(told, dict)
        assert told["complete"] is complete
        assert told["sha256"] == one.source.sha256


def test_what_nobody_imports_may_be_missing(tmp_path: Path) -> None:
    extra = {"triton_dist/tools/compile.py": "import triton_dist.tools.gone\n"}
    found = look(odd_wheel(tmp_path, extra))
    assert found.refused == ()
    assert "not on the way of what the stack imports: triton_dist.tools.gone" in finding(
        found, "packages"
    )


# --------------------------------------------------------------- requirements of the builder

BUILDERS = ["nvidia-nvshmem-cu12==3.6.5", "nvidia-cuda-nvcc-cu12", "cuda.core==0.2.0",
            "cuda-python>=12", "nvshmem4py-cu12==0.1.2", "Cython", "cython>=3"]  # fmt: skip
OTHERS = ["setuptools>=40.8.0", "packaging", "importlib-metadata; python_version < '3.10'",
          "cudagraphs", "nvidiatools", "cythonize", "numpy; extra == 'tests'"]  # fmt: skip


@pytest.mark.parametrize("requirement", BUILDERS)
def test_a_requirement_of_the_builder(requirement: str) -> None:
    assert of_the_builder(requirement)


@pytest.mark.parametrize("requirement", OTHERS)
def test_a_requirement_of_the_fork(requirement: str) -> None:
    assert not of_the_builder(requirement)


def test_the_builders_requirements_are_left_out_and_named(tmp_path: Path, store: Store) -> None:
    asked = "".join(f"Requires-Dist: {r}\n" for r in [*BUILDERS, *OTHERS])
    wheel = odd_wheel(tmp_path, metadata=f"Name: triton-dist\nVersion: 3.4.0\n{asked}")
    text = finding(look(wheel), "requires")
    assert all(r in text for r in BUILDERS)
    fork = take_file(wheel, store, PINNED)
    with zipfile.ZipFile(store.path(fork.file)) as archive:
        info = f"triton-{fork.version}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        provenance = archive.read(f"{info}/PROVENANCE").decode()
    assert [n for n in metadata.splitlines() if n.startswith("Requires-Dist")] == [
        f"Requires-Dist: {r}" for r in OTHERS
    ]
    assert f"left-out: {', '.join(BUILDERS)}\n" in provenance


# ------------------------------------------------------------------------ by the command line


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def run(cache: str, *words: str) -> Ended:
    return invoke(ROOT, *words, TDSTACK_CACHE=cache)


def test_verify_of_a_good_wheel_exits_0_with_json_alone_on_stdout(
    tmp_path: Path, cache: str
) -> None:
    wheel = odd_wheel(tmp_path)
    ended = run(cache, "verify", f"--wheel={wheel}", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == look(wheel).as_dict()
    for check in WHOLE:
        assert check in ended.err
    plain = run(cache, "verify", f"--wheel={wheel}")
    assert (plain.code, plain.out) == (0, "")


@pytest.mark.parametrize(
    "case", ["stock called triton_dist", "the index's trap", "an older base", "missing package",
             "label with half a provenance", "a name twice"],
)  # fmt: skip
def test_verify_of_a_refused_wheel_exits_4_with_the_finding_in_words_and_json(
    tmp_path: Path, cache: str, case: str
) -> None:
    make, check, words = REFUSED[case]
    ended = run(cache, "verify", f"--wheel={make(tmp_path)}", "--json")
    assert ended.code == ExitCode.INTEGRITY
    report = json.loads(ended.out)
    assert report["exit_code"] == 4
    assert report["where"] == f"--wheel: {check}"
    assert words in report["what"]
    assert report["details"]["accepted"] is False
    assert words in ended.err.replace("\n", " ")
    assert "FAIL" in ended.err


@pytest.mark.parametrize("case", ["cut short", "encrypted", "zstd", "two dist-infos"])
def test_verify_of_an_unreadable_wheel_exits_4_with_one_json_object(
    tmp_path: Path, cache: str, case: str
) -> None:
    make, words = UNREADABLE[case]
    ended = run(cache, "verify", f"--wheel={make(tmp_path)}", "--json")
    assert ended.code == ExitCode.INTEGRITY
    assert words in json.loads(ended.out)["got"]


@pytest.mark.parametrize(
    "source",
    ["nowhere.whl", "~nobody-of-this-name/x.whl", "http://[half", "https://h/x.whl",
     "https://h/x.whl#sha256=12", "https://h/x.zip#sha256=" + "0" * 64],
)  # fmt: skip
def test_a_source_that_names_no_wheel_exits_2(cache: str, source: str) -> None:
    ended = run(cache, "verify", f"--wheel={source}", "--json")
    assert ended.code == ExitCode.USAGE
    assert "--wheel" in json.loads(ended.out)["where"]


def test_plan_fetch_and_build_take_a_good_wheel(tmp_path: Path, cache: str) -> None:
    wheel = odd_wheel(tmp_path)
    version = f"3.4.0+dist.{sha256_of(wheel)[:8]}"
    planned = run(cache, "plan", f"--wheel={wheel}", "--torch=none", "--json")
    assert planned.code == 0, planned.err
    packages = [p for layer in json.loads(planned.out)["layers"] for p in layer["packages"]]
    assert {p["version"] for p in packages if p["name"].startswith("triton")} == {version}
    dry = run(cache, "build", f"--wheel={wheel}", "--torch=none", "--dry")
    assert (dry.code, dry.out) == (0, ""), dry.err
    assert f"triton {version}" in dry.err
    counted = run(cache, "fetch", f"--wheel={wheel}", "--torch=none", "--dry", "--json")
    assert counted.code == 0, counted.err
    told = json.loads(counted.out)
    assert 0 < told["missing"] <= told["files"] - 2, "the fork and its alias are there"


@pytest.mark.parametrize("verb", [["plan"], ["fetch", "--dry"], ["build", "--dry"]])
def test_plan_fetch_and_build_refuse_stock_with_exit_code_4(
    tmp_path: Path, cache: str, verb: list[str]
) -> None:
    make, _, words = REFUSED["stock called triton_dist"]
    ended = run(cache, *verb, f"--wheel={make(tmp_path)}", "--json")
    assert ended.code == ExitCode.INTEGRITY
    assert words in json.loads(ended.out)["what"]


def test_plan_refuses_a_wheel_for_a_newer_glibc_and_takes_it_for_another_base(
    tmp_path: Path, cache: str
) -> None:
    refused = run(cache, "plan", f"--wheel={_needing_238(tmp_path)}", "--json")
    assert refused.code == ExitCode.INTEGRITY
    assert "glibc 2.36" in json.loads(refused.out)["expected"]
    wheel = _needing_238(tmp_path / "312", "3.12")
    base = f"--base=127.0.0.1:9/x@sha256:{'0' * 64}"
    taken = run(cache, "plan", f"--wheel={wheel}", base, "--python=3.12")
    assert taken.code == 0, taken.err
    assert "needs glibc 2.38" in taken.err


def test_plan_takes_an_incomplete_wheel_only_when_asked(tmp_path: Path, cache: str) -> None:
    wheel = odd_wheel(tmp_path, INCOMPLETE)
    assert run(cache, "plan", f"--wheel={wheel}").code == ExitCode.INTEGRITY
    assert run(cache, "plan", f"--wheel={wheel}", "--incomplete").code == 0


def test_stock_files_are_no_fork_under_any_name(tmp_path: Path) -> None:
    for name in ("triton", "triton_dist"):
        wheel = odd_wheel(
            tmp_path / name, {**dict.fromkeys(FORK_FILES), **STOCK_FILES}, name=name,
            metadata=f"Name: {name}\nVersion: 3.4.0\n",
        )  # fmt: skip
        assert [f.check for f in look(wheel).refused] == ["fingerprint"]


def test_a_member_whose_name_was_cut_to_nothing_is_refused(tmp_path: Path) -> None:
    wheel = odd_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    data[data.rindex(b"triton/__init__.py")] = 0  # in the directory at the end
    wheel.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="not a whole wheel") as caught:
        read_facts(wheel)
    assert "a member has no name" in caught.value.got
