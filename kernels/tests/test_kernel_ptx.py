"""What Tritons make of the kernels: order and width of accesses, registers, spills. No GPU.

The rules are in ptx_lint.py; ptx_cases.py compiles. This file runs them with every Triton that is
locked here and with the one that is installed, and checks that the rules can be broken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from locked_tritons import IndexUnreachableError, folder_of, installed_version, locked_versions
from ptx_cases import ARCHS, KINDS, expected_of, kinds_of, variant_of
from ptx_lint import EMPTY, Expected, lint

import gemm_allreduce
from gemm_allreduce.arguments import ARGUMENTS

SOURCES = Path(gemm_allreduce.__file__).resolve().parent.parent
CASES = Path(__file__).resolve().with_name("ptx_cases.py")
INSTALLED = installed_version()
VERSIONS = list(dict.fromkeys([*locked_versions(), *([INSTALLED] if INSTALLED else [])]))
CONTROL_VERSION = "3.4.0"
"""Emits no barrier of its own before a release, and deletes atomics that are not used."""

Report = dict[str, Any]


@cache
def locate(version: str) -> Path | Exception:
    """Ask the index once for a version, not once for each test."""
    try:
        return folder_of(version)
    except (IndexUnreachableError, RuntimeError) as error:
        return error


def run_cases(version: str, out: Path, sources: Path, *options: str) -> Report:
    """Run ptx_cases.py with a Triton; skip where that cannot be had, except in CI."""
    path = [str(sources)]
    if version != INSTALLED:
        folder = locate(version)
        if isinstance(folder, IndexUnreachableError) and not os.environ.get("CI"):
            pytest.skip(str(folder))
        if isinstance(folder, Exception):
            pytest.fail(str(folder))
        path.insert(0, str(folder))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TRITON_")
    }
    environment |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, str(CASES), str(out), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report: Report = json.loads(done.stdout)
    assert report["triton"] == version
    assert report["sources"] == str(sources)
    return report


@pytest.fixture(scope="session")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Report]]:
    """Compile everything with a version, once; return the folder and the report."""

    @cache
    def compiled(version: str) -> tuple[Path, Report]:
        out = tmp_path_factory.mktemp(f"ptx-{version}")
        return out, run_cases(version, out, SOURCES)

    return compiled


STEMS = [f"{arch}.{kind}" for arch in ARCHS for kind in kinds_of(arch)]
COMPILED = [(version, stem) for version in VERSIONS for stem in STEMS]


@pytest.mark.parametrize(("version", "stem"), COMPILED)
def test_order_and_width(
    version: str, stem: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    result = ptx(version)[1]["results"][stem]
    assert result["lint"] == [], result["variant"]


@pytest.mark.parametrize(("version", "stem"), COMPILED)
def test_cubins_keep_the_limits(
    version: str, stem: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    """Registers, spills, and the width of accesses in the machine code."""
    assert ptx(version)[1]["results"][stem]["findings"] == []


@pytest.mark.parametrize(("version", "stem"), COMPILED)
def test_cubins_are_read_as_the_tools_of_nvidia_read_them(
    version: str, stem: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    for ours, theirs in ptx(version)[1]["results"][stem]["differences"].values():
        assert ours == theirs


# ------------------------------------------------------------------ sources that must be refused

POLL = '"ld.acquire.sys.global.b32 $0, [$1];"'
CONTROLS = {
    "no barrier before the release": (
        "    tl.debug_barrier()\n    # One atomic for all flags",
        "    # One atomic for all flags",
        r"no barrier immediately before the release",
    ),
    "polls that a compiler may merge": (
        "[flags.to(tl.int64)],\n            dtype=tl.int32,\n            is_pure=False",
        "[flags.to(tl.int64)],\n            dtype=tl.int32,\n            is_pure=True",
        r"1 acquires, .* has 4",
    ),
    "a release for the GPU only": (
        '+ epoch, sem="release", scope="sys"',
        '+ epoch, sem="release", scope="gpu"',
        r"release not at system scope: .*\.gpu\.",
    ),
    "an acquire for the GPU only": (
        POLL,
        POLL.replace("sys", "gpu"),
        r"acquire not at system scope: .*\.gpu\.",
    ),
    "polls that acquire nothing": (
        POLL,
        POLL.replace("acquire", "relaxed"),
        r"a tile is read without an acquire before it",
    ),
    "fewer flags polled than there are threads": (
        "_POLLERS = tl.constexpr(256)",
        "_POLLERS = tl.constexpr(2)",
        r"2 acquires, the source has 4",
    ),
    "no barrier before arriving": (
        "    tl.debug_barrier()\n    count_in(",
        "    count_in(",
        r"no barrier before arriving",
    ),
    "an arrival that is waited for": (
        '+ share, sem="relaxed", scope="gpu")',
        '+ share, sem="acq_rel", scope="gpu")',
        r"the counter is not added to relaxed",
    ),
    "no hint how heaps are aligned": (
        "return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)",
        "return address.to(tl.pointer_type(dtype))",
        r"2 bytes at a time, (ld|st) of heap",
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_lint_finds(name: str, tmp_path: Path) -> None:
    old, new, finding = CONTROLS[name]
    sources = tmp_path / "src"
    shutil.copytree(SOURCES / "gemm_allreduce", sources / "gemm_allreduce")
    device = sources / "gemm_allreduce" / "device.py"
    text = device.read_text()
    assert text.count(old) == 1, "the source has changed: change this control too"
    device.write_text(text.replace(old, new))
    options = ("--arch", "sm_90", "--kind", "one_shot_two_ranks")
    report = run_cases(CONTROL_VERSION, tmp_path / "out", sources, *options)
    found = report["results"]["sm_90.one_shot_two_ranks"]["lint"]
    assert re.search(finding, "\n".join(found)), found
    widths = report["results"]["sm_90.one_shot_two_ranks"]["findings"]
    assert any("(width)" in sentence for sentence in widths) == ("aligned" in name), widths


# ------------------------------------------------------------------ PTX that must be refused

BARRIER = r"bar\.sync \t0;"
NO_BARRIER = r"(?:(?!bar\.sync)[\s\S])*?"  # what lies between two barriers
RELEASE = r"(@%p\d+ atom\.global\.sys\.release\S+ .*)"
ARRIVAL = r"(@%p\d+ atom\.global\.gpu\.relaxed\.add\.u64 .*)"
ACQUIRE = r"ld\.acquire\.sys\.global\.b32"
END = r"(\tret;)"
NO_RELEASE_BARRIER = "no barrier immediately before the release"

MUTATIONS = {
    "a barrier of some warps": (
        rf"{BARRIER}({NO_BARRIER}{RELEASE})",
        r"bar.sync 1, 64;\1",
        NO_RELEASE_BARRIER,
    ),
    "a conditional barrier": (
        rf"{BARRIER}({NO_BARRIER}{RELEASE})",
        r"@%p1 bar.sync 0;\1",
        NO_RELEASE_BARRIER,
    ),
    "a label before the release": (RELEASE, r"$L_new:\n\1", NO_RELEASE_BARRIER),
    "a store behind the barrier": (
        RELEASE,
        r"st.global.v4.b32 [ HEAP ], { %r1, %r1, %r1, %r1 };\n\1",
        NO_RELEASE_BARRIER,
    ),
    "a second release": (RELEASE, r"bar.sync 0;\n\1\nbar.sync 0;\n\1", "^3 releases"),
    "no barrier behind an acquire": (
        rf"({ACQUIRE}.*)",
        r"\1\nld.global.b64 { %rd1 }, [ TABLE ];",
        "no barrier between the acquire",
    ),
    "a tile read behind a first look": (
        rf"({ACQUIRE}{NO_BARRIER}{BARRIER})",
        r"\1\nld.global.v4.b32 { %r1, %r1, %r1, %r1 }, [ HEAP ];\n"
        r"ld.acquire.sys.global.b32 %r1, [ HEAP ];\nbar.sync \t0;",
        "tiles are read behind 5 acquires",
    ),
    "a tile read before the waits": (
        RELEASE,
        r"\1\nld.global.v4.b32 { %r1, %r1, %r1, %r1 }, [ HEAP ];",
        "a tile is read without an acquire before it",
    ),
    "a tile read again at the end": (
        ARRIVAL,
        r"ld.global.v4.b32 { %r1, %r1, %r1, %r1 }, [ HEAP ];\n\1",
        "a tile is read without an acquire before it",
    ),
    "a poll for the GPU only": (
        r"ld\.acquire\.sys",
        "ld.acquire.gpu",
        "acquire not at system scope",
    ),
    "a poll that acquires nothing": (ACQUIRE, "ld.relaxed.sys.global.b32", "^3 acquires"),
    "no barrier before arriving": (
        rf"{BARRIER}({NO_BARRIER}{ARRIVAL})",
        r"\1",
        "no barrier before arriving",
    ),
    "an arrival that is ordered": (
        r"(atom\.global\.gpu)\.relaxed(\.add\.u64)",
        r"\1.acq_rel\2",
        "not added to relaxed",
    ),
    "a launch counted twice": (ARRIVAL, r"\1\n\1", "^2 64-bit additions"),
    "the counter read twice": (
        r"(ld\.volatile\.global\.b64 .*)",
        r"\1\n\1",
        "2 words, volatile ld of heap, 8 bytes, the source has 1",
    ),
    "a word stored twice": (
        r"(@%p\d+ st\.global\.b32 .*)",
        r"\1\n\1",
        "words, st of heap, the source has 10",
    ),
    "a bulk copy out of shared memory": (
        END,
        r"cp.async.bulk.global.shared::cta.bulk_group [ HEAP ], [ %r1 ], 64;\n\1",
        "unknown access",
    ),
    "a bulk store by a descriptor": (
        END,
        r"cp.async.bulk.tensor.2d.global.shared::cta.bulk_group "
        r"[ %rd1, { %r1, %r1 } ], [ %r1 ];\n\1",
        "unknown access",
    ),
    "a descriptor of the heap": (
        r"(tensormap\.replace\.tile\.global_address\.\S+ \[.*?\]), %rd\d+;",
        r"\1, HEAP;",
        "descriptors of heap, weight_ptr, expected x_ptr, weight_ptr",
    ),
    "a descriptor in the heap": (
        r"(cp_fenceproxy\.\S+) \[ %rd\d+",
        r"\1 [ HEAP",
        "a descriptor in heap, expected parameter 25",
    ),
    "no fence behind a descriptor": (
        r"@%p\d+ fence\.proxy\.tensormap::generic\.acquire.*",
        "",
        "no fence behind the descriptor",
    ),
    "no barrier behind a descriptor": (
        r"(fence\.proxy\.tensormap::generic\.acquire[^;]*;\s+//[^\n]*\n\s*)bar\.sync \t0;",
        r"\1cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        r"[%r1], [%rd1, {%r1, %r1}], [%r1];",
        "no barrier between the descriptor",
    ),
    "x read without its descriptor": (
        END,
        "ld.param.b64 %rd9999, [x_param_0];\n"
        r"ld.global.v4.b32 { %r1, %r1, %r1, %r1 }, [ %rd9999 ];\n\1",
        "x_ptr is read without its descriptor",
    ),
    "an early start": (
        RELEASE,
        r"griddepcontrol.wait;\n\1",
        "1 times griddepcontrol.wait, the source has 0",
    ),
    "weights asked for ahead": (
        END,
        "ld.param.b64 %rd9999, [x_param_1];\n"
        r"cp.async.bulk.prefetch.L2.global [%rd9999], %r1;\n\1",
        "asked for ahead, the source does not",
    ),
    "a multicast store": (END, r"multimem.st.relaxed.sys.global.b32 [ HEAP ], %r1;\n\1", "unknown"),
    "generic addresses": (r"st\.global\.v4\.b32", "st.v4.b32", "unknown access"),
    "a volatile load of 2 bytes": (END, r"ld.volatile.global.b16 %rs1, [ HEAP ];\n\1", "unknown"),
    "local memory": (END, r"st.local.b32 [ %rd1 ], %r1;\n\1", "local memory"),
    "narrow halves of a tile": (
        r"st\.global\.v4\.b32 (\[.*?\]), \{ (%r\d+).*",
        r"st.global.b16 \1, { \2 };",
        "2 bytes at a time, st of heap",
    ),
    "a scale where there is none": (
        END,
        "ld.param.b64 %rd9999, [x_param_5];\n"
        r"ld.global.b32 { %r1 }, [ %rd9999 ];\n\1",
        "a scale is read, the source reads none",
    ),
    "a pointer out of nowhere": (
        END,
        r"mov.u64 %rd9999, 4096;\nld.global.b32 { %r1 }, [ %rd9999 ];\n\1",
        "4 bytes at a time, ld of unknown pointer",
    ),
}
"""Pattern, replacement and finding: what no source asks for, but a compiler could do."""


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_lint_refuses(name: str, ptx: Callable[[str], tuple[Path, Report]]) -> None:
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.two_shot.ptx").read_text()
    expected = expected_of(variant_of("two_shot", "sm_90"))
    assert lint(text, expected, list(ARGUMENTS)) == []
    pattern, replacement, finding = MUTATIONS[name]
    heap = re.search(r"st\.global\.v4\.b32 \[ (%rd\d+)", text)
    table = re.search(r"ld\.global\.b64 \{ %rd\d+ \}, \[ (%rd\d+)", text)
    assert heap is not None and table is not None
    replacement = replacement.replace("HEAP", heap[1]).replace("TABLE", table[1])
    changed, count = re.subn(pattern, replacement, text, count=1)
    assert count == 1
    found = lint(changed, expected, list(ARGUMENTS))
    assert any(re.search(finding, sentence) for sentence in found), found


CELL_MUTATIONS = {
    "a send for the GPU only": (r"st\.relaxed\.sys", "st.relaxed.gpu", "7 sends, the source has 8"),
    "a send that is not strong": (r"st\.relaxed\.sys\.", "st.", "7 sends, the source has 8"),
    "a look that is not strong": (
        r"ld\.volatile(\.global\.v2\.b32)",
        r"ld\1",
        "8 looks, the source has 9",
    ),
    "a look elsewhere": (
        r"(ld\.volatile\.global\.v2\.b32 .*\[) %rd\d+",
        r"\1 %rd9999",
        "cells in unknown pointer",
    ),
    "emptied while others look": (
        r"(@%p\d+ ld\.volatile\.global\.v2\.b32 .*)",
        r"\1\nst.global.v2.b32 [ HEAP ], { EMPTY, EMPTY };",
        "no barrier between a read",
    ),
    "a cell that is not emptied": (
        r"(st\.global\.v2\.b32 .*\{) EMPTY, EMPTY",
        r"\1 %r1, %r2",
        "7 stores that empty, the source has 8",
    ),
}


@pytest.mark.parametrize("name", CELL_MUTATIONS)
def test_the_lint_refuses_of_lamport(name: str, ptx: Callable[[str], tuple[Path, Report]]) -> None:
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.lamport.ptx").read_text()
    expected = expected_of(variant_of("lamport", "sm_90"))
    assert lint(text, expected, list(ARGUMENTS)) == []
    heap = re.search(r"@there st\.relaxed\.sys\.global\.v2\.b32 \[(%rd\d+)", text)
    empty = re.search(rf"mov\.b32\s+(%r\d+), {EMPTY};", text)
    assert heap is not None and empty is not None
    pattern, replacement, finding = CELL_MUTATIONS[name]
    pattern = pattern.replace("EMPTY", empty[1])
    replacement = replacement.replace("HEAP", heap[1]).replace("EMPTY", empty[1])
    changed, count = re.subn(pattern, replacement, text, count=1)
    assert count == 1
    found = lint(changed, expected, list(ARGUMENTS))
    assert any(re.search(finding, sentence) for sentence in found), found


def test_a_narrow_copy_is_refused(ptx: Callable[[str], tuple[Path, Report]]) -> None:
    """In a kernel whose x and weight do not come by bulk copies."""
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.direct.ptx").read_text()
    expected = expected_of(variant_of("direct", "sm_90"))
    assert lint(text, expected, list(ARGUMENTS)) == []
    pattern = r"(cp\.async\.c)g(.*), 0x10,"
    changed, count = re.subn(pattern, r"\1a\2, 0x4,", text, count=1)
    assert count == 1
    (found,) = lint(changed, expected, list(ARGUMENTS))
    assert "4 bytes at a time" in found


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%r1], [%rd1, {%r1, %r1}], [%r1];",
            "a bulk copy, the source has none",
        ),
        ("ld.global.b32 { %r1 }, [ HEAP ];", "4 bytes at a time, ld of heap"),
        ("ld.volatile.global.b32 { %r1 }, [ HEAP ];", "1 words, volatile ld of heap, 4 bytes"),
        ("st.global.v4.b32 [ HEAP ], { %r1, %r1, %r1, %r1 };", "the heap is used"),
        ("ld.acquire.sys.global.b32 %r1, [ HEAP ];", "1 acquires, the source has 0"),
    ],
)
def test_the_lint_refuses_of_direct(
    change: str, finding: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.direct.ptx").read_text()
    counter = re.search(r"add\.u64 %rd\d+, \[ (%rd\d+)", text)
    assert counter is not None
    changed = re.sub(END, rf"{change.replace('HEAP', counter[1])}\n\1", text, count=1)
    found = lint(changed, expected_of(variant_of("direct", "sm_90")), list(ARGUMENTS))
    assert any(re.search(finding, sentence) for sentence in found), found


WAIT = r"griddepcontrol\.wait;"

EARLY_MUTATIONS = {
    "no wait for the kernel before": (WAIT, "", "0 times griddepcontrol.wait"),
    "a wait of some threads": (WAIT, "@%p1 griddepcontrol.wait;", "only some threads"),
    "the next kernel started first": (
        rf"({WAIT}[\s\S]*?)griddepcontrol\.launch_dependents;",
        r"griddepcontrol.launch_dependents;\n\1",
        "before the kernel before it has ended: .*launch_dependents",
    ),
    "the next kernel started by some": (
        r"griddepcontrol\.launch_dependents;",
        "@%p1 griddepcontrol.launch_dependents;",
        "only some threads",
    ),
    "a tile read before the wait": (
        rf"({WAIT})",
        r"ld.global.v4.b32 { %r1, %r1, %r1, %r1 }, [ HEAP ];\n\1",
        "before the kernel before it has ended: .*ld.global",
    ),
    "x asked for ahead": (
        rf"({WAIT})",
        "ld.param.b64 %rd9999, [x_param_0];\n"
        r"cp.async.bulk.prefetch.L2.global [%rd9999], %r1;\n\1",
        "x_ptr is asked for ahead",
    ),
}
"""The same for what only an early kernel has."""


@pytest.mark.parametrize("name", EARLY_MUTATIONS)
def test_the_lint_refuses_of_an_early_start(
    name: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.two_shot_early.ptx").read_text()
    expected = expected_of(variant_of("two_shot_early", "sm_90"))
    assert lint(text, expected, list(ARGUMENTS)) == []
    pattern, replacement, finding = EARLY_MUTATIONS[name]
    heap = re.search(r"st\.global\.v4\.b32 \[ (%rd\d+)", text)
    assert heap is not None
    changed, count = re.subn(pattern, replacement.replace("HEAP", heap[1]), text, count=1)
    assert count == 1
    found = lint(changed, expected, list(ARGUMENTS))
    assert any(re.search(finding, sentence) for sentence in found), found


FENCE = r"fence\.proxy\.alias;"
SUM = r"@keep multimem\.ld_reduce\.relaxed\.sys\.global\.add\.acc::f32\.v4\.bf16x2"
SEND = r"@keep multimem\.st\.relaxed\.sys\.global\.v4\.bf16x2"

MULTIMEM_MUTATIONS = {
    "no proxy fence before a sum": (rf"{FENCE}([\s\S]*?{SUM})", r"\1", "no proxy fence between"),
    "no proxy fence behind a store": (
        rf"({SEND}(?:(?!multimem)[\s\S])*?){FENCE}",
        r"\1",
        "no proxy fence between: .*multimem.st.*release",
    ),
    "a fence that some threads skip": (FENCE, "@%p1 fence.proxy.alias;", "no proxy fence between"),
    "no barrier between the store and the release": (
        rf"({SEND}{NO_BARRIER}){BARRIER}({NO_BARRIER}{RELEASE})",
        r"\1\2",
        NO_RELEASE_BARRIER,
    ),
    "no barrier behind an acquire": MUTATIONS["no barrier behind an acquire"],
    "a sum before the waits": (
        RELEASE,
        r"\1\n@keep multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.bf16x2 "
        r"{ %r1, %r1, %r1, %r1 }, [ HEAP ];",
        "a tile is read without an acquire before it: .*multimem.ld_reduce",
    ),
    "half a piece": (SUM, lambda m: m[0].replace("v4", "v2"), "not a piece of bf16"),
    "a sum of another type": (SUM, lambda m: m[0].replace("bf16", "f16"), "not a piece of bf16"),
    "a sum that is rounded at every step": (
        SUM,
        lambda m: m[0].replace(".acc::f32", ""),
        "15 times multimem.ld_reduce",
    ),
    "a store for the GPU only": (
        SEND,
        lambda m: m[0].replace("sys", "gpu"),
        "15 times multimem.st",
    ),
    "a sum that two threads read": (rf"({SUM}.*)", r"\1\n\1", "17 times multimem.ld_reduce"),
    "a reduction in the heaps": (
        END,
        r"multimem.red.relaxed.sys.global.add.v4.bf16x2 [ HEAP ], { %r1, %r1, %r1, %r1 };\n\1",
        "unknown access",
    ),
}
"""The same for what only the multimem form has."""


@pytest.mark.parametrize("name", MULTIMEM_MUTATIONS)
def test_the_lint_refuses_of_multimem(name: str, ptx: Callable[[str], tuple[Path, Report]]) -> None:
    text = (ptx(CONTROL_VERSION)[0] / "sm_90.two_shot_multimem.ptx").read_text()
    expected = expected_of(variant_of("two_shot_multimem", "sm_90"))
    assert lint(text, expected, list(ARGUMENTS)) == []
    pattern, replacement, finding = MULTIMEM_MUTATIONS[name]
    heap = re.search(r"st\.global\.v4\.b32 \[ (%rd\d+)", text)
    table = re.search(r"ld\.global\.b64 \{ %rd\d+ \}, \[ (%rd\d+)", text)
    assert heap is not None and table is not None
    if isinstance(replacement, str):
        replacement = replacement.replace("HEAP", heap[1]).replace("TABLE", table[1])
    changed, count = re.subn(pattern, replacement, text, count=1)
    assert count == 1
    found = lint(changed, expected, list(ARGUMENTS))
    assert any(re.search(finding, sentence) for sentence in found), found


@pytest.mark.parametrize(("version", "stem"), COMPILED)
def test_only_the_multimem_form_has_multimem(
    version: str, stem: str, ptx: Callable[[str], tuple[Path, Report]]
) -> None:
    text = (ptx(version)[0] / f"{stem}.ptx").read_text()
    element = "f16x2" if stem.endswith("fp16") else "bf16x2"
    wanted = {f"ld_reduce.relaxed.sys.global.add.acc::f32.v4.{element}"}
    wanted |= {f"st.relaxed.sys.global.v4.{element}"}
    found = set(re.findall(r"multimem\.(\S+)", text))
    assert found == (wanted if "multimem" in stem else set())


@pytest.mark.parametrize("text", ["", ".version 8.4\n", "nothing of the kind"])
def test_no_ptx_is_no_clean_ptx(text: str) -> None:
    with pytest.raises(ValueError, match="no kernel"):
        lint(text, Expected(1, 1, 128, False, 2), list(ARGUMENTS))


def test_kinds_are_what_their_names_say() -> None:
    for kind in KINDS:
        variant = variant_of(kind, "sm_90")
        assert kind.startswith(variant.algorithm)
        assert (variant.split > 1) == ("split" in kind)
        assert variant.scaled == ("8" in kind)
        assert variant.multimem == ("multimem" in kind)
        assert (variant.early > 0) == ("early" in kind)
        assert (variant.dtype == "fp16") == ("fp16" in kind)
