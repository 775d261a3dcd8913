"""Checks of cubins and bundles, on made ones and on compiled ones."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from bundles import ARCHS as COMPILED_ARCHS
from bundles import SELECTED, Compiled, needs_triton, run_module, variants_of
from made_cubins import instructions, maker_for, parameters

import gemm_allreduce
from gemm_allreduce.arguments import ARGUMENTS, POINTERS
from gemm_allreduce.check import main
from gemm_allreduce.checks import check_cubin, check_size, expected_traffic
from gemm_allreduce.compiler import Cubin, make_cubin, multimem_forms, plan_job
from gemm_allreduce.dispatch import ARCHS, reachable_variants, rules
from gemm_allreduce.limits import (
    NO_MULTIMEM,
    SHARED_LIMITS,
    ctas_per_sm,
    limits,
    parse_limits,
)
from gemm_allreduce.manifest import write_bundle
from gemm_allreduce.toolchain import Ptxas, Triton
from gemm_allreduce.variants import Tile, Variant

PTXAS = Ptxas("/somewhere/ptxas", "12.8.93", "ab" * 32)
TRITON = Triton("3.4.0", "3.4.0+dist.01234567", True, "cd" * 32)
VARIANT = SELECTED[2]
"""Two-shot with split, 4 ranks."""


def made(variant: Variant, arch: str, shared: int = 4096, **changes: Any) -> Cubin:
    """Return a cubin that passes, but for what is changed in it."""
    maker = maker_for(variant, arch)
    for name, value in changes.items():
        setattr(maker, name, value)
    return make_cubin(plan_job(variant, arch, TRITON, PTXAS), maker.cubin(), shared)


def checks_of(cubin: Cubin, variant: Variant = VARIANT) -> dict[str, str]:
    """Return what was found, by the name of the check."""
    return {f.check: str(f) for f in check_cubin(variant, cubin.record, cubin.data)}


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_right_passes(arch: str) -> None:
    reachable = reachable_variants(arch)
    forms = [] if arch in NO_MULTIMEM else multimem_forms(reachable)
    for variant in (*reachable, *forms):
        assert checks_of(made(variant, arch), variant) == {}


def counted(
    changes: dict[tuple[str, int], int], arch: str = "sm_90", variant: Variant = VARIANT
) -> bytes:
    """Return code of a variant with other numbers of some accesses."""
    traffic = expected_traffic(variant)
    counts = {
        ("bulk load", 0) if variant.tile.bulk else ("copy", 16): 6,
        ("load", 16): traffic.loads,
        ("store", 4): traffic.words,
        ("store", 16): traffic.stores,
    }
    return instructions(int(arch[3:]), counts | changes)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("load", 16): 15}, "loads of 16 bytes a thread.*at least 16, got 15"),
        ({("store", 16): 23}, "stores of 16 bytes a thread.*at least 24, got 23"),
        ({("store", 4): 25}, "stores below 16 bytes.*at most 24, got 25"),
        ({("store", 8): 1}, "stores below 16 bytes.*at most 24, got 25"),
        ({("store", 2): 1, ("store", 4): 0}, "stores below 4 bytes.*at most 0, got 1"),
        ({("load", 2): 2}, "loads below 4 bytes: at most one of bias.*got 2"),
        ({("load", 1): 1}, "loads below 2 bytes.*at most 0, got 1"),
        ({("copy", 4): 1}, "asynchronous copies below 16 bytes.*at most 0, got 1"),
        ({("copy", 8): 1}, "asynchronous copies below 16 bytes.*at most 0, got 1"),
        ({("copy", 16): 0}, "asynchronous copies of x and weight.*some, got none"),
        ({("generic", 4): 1}, "memory of an unknown kind.*at most 0, got 1"),
        ({("bulk load", 0): 1}, "bulk loads.*at most 0, got 1"),
        ({("bulk", 0): 1}, "bulk copies, which no flag.*at most 0, got 1"),
    ],
)
def test_narrow_accesses_are_found(
    arch: str, changes: dict[tuple[str, int], int], message: str
) -> None:
    cubin = made(VARIANT, arch, code=counted(changes, arch))
    found = [str(f) for f in check_cubin(VARIANT, cubin.record, cubin.data)]
    assert any(re.search(message, sentence) for sentence in found), found
    assert all("(width)" in sentence for sentence in found)


BULK = SELECTED[3]
"""Two-shot without split, 2 ranks, x and weight by bulk copies."""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("bulk load", 0): 0}, "bulk copies of x and weight to shared memory.*some, got none"),
        ({("bulk load", 0): 0, ("copy", 16): 6}, "bulk copies of x and weight.*some, got none"),
        ({("bulk", 0): 1}, "bulk copies, which no flag.*at most 0, got 1"),
    ],
)
def test_bulk_loads_are_wanted_where_the_tile_says_so_and_no_other_bulk_copy(
    changes: dict[tuple[str, int], int], message: str
) -> None:
    assert BULK.tile.bulk and not VARIANT.tile.bulk
    for given, wanted in (({}, ""), (changes, message)):
        cubin = made(BULK, "sm_90", code=counted(given, variant=BULK))
        found = [str(f) for f in check_cubin(BULK, cubin.record, cubin.data)]
        assert any(re.search(wanted, sentence) for sentence in found) == bool(wanted), found


@pytest.mark.parametrize(
    ("variant", "traffic"),
    [
        # 16 x 64 elements: one piece for each of 128 threads; each of 8 partials is read, sent,
        # emptied.
        (Variant("one_shot", "bf16", "bf16", 8, Tile(16, 64, 128, 4, 4)), (8, 17, 12)),
        # The same for 256 threads: 8 bytes each, from and to each rank, and into y.
        (Variant("one_shot", "bf16", "bf16", 8, Tile(16, 64, 128, 4, 8)), (0, 0, 12 + 17)),
        # Without flags: sent 8 bytes at a time, 2 to each of 8 ranks; all are emptied.
        (Variant("lamport", "bf16", "bf16", 8, Tile(16, 64, 128, 4, 4)), (8, 9, 12 + 16)),
        (Variant("lamport", "bf16", "bf16", 8, Tile(16, 64, 128, 4, 8)), (0, 0, 12 + 8 + 9)),
        # 128 x 256: 16 pieces for each of 256 threads, of which 2 (4096 elements) in the loop.
        (Variant("two_shot", "bf16", "bf16", 8, Tile(128, 256, 64, 4, 8, True)), (32, 48, 24)),
        (Variant("direct", "bf16", "bf16", 1, Tile(128, 256, 64, 4, 8, True)), (0, 16, 0)),
        # A unit of 8 x 64 elements: 8 bytes for each of 128 threads, to each of 8 ranks.
        (Variant("two_shot", "bf16", "bf16", 8, Tile(64, 64, 128, 3, 4), 8), (4, 8, 24 + 8)),
    ],
)
def test_expected_traffic(variant: Variant, traffic: tuple[int, int, int]) -> None:
    expected = expected_traffic(variant)
    assert (expected.loads, expected.stores, expected.words) == traffic


def test_what_differs_from_the_record_is_found() -> None:
    cubin = made(VARIANT, "sm_90")
    for name, check in (
        ("arch", "arch"),
        ("entry", "entry"),
        ("num_warps", "threads"),
        ("registers", "registers"),
        ("local_bytes", "local"),
        ("cooperative", "cooperative"),
        ("scratch", "parameters"),
    ):
        other: Any = {"arch": "sm_100", "entry": "other", "cooperative": False}.get(name, 0)
        wrong = Cubin(replace(cubin.record, **{name: other}), cubin.data)
        if name == "local_bytes":
            wrong = Cubin(replace(cubin.record, local_bytes=8), cubin.data)
        assert set(checks_of(wrong)) == {check}, name


def test_what_the_kernel_itself_has_wrong_is_found() -> None:
    general = maker_for(VARIANT, "sm_90").general
    sizes = [8 if name in POINTERS else 4 for name in ARGUMENTS]
    threads = maker_for(VARIANT, "sm_90").own[-16:]
    spilled = general[:-4] + (100_000).to_bytes(4, "little")
    assert "at most" in checks_of(made(VARIANT, "sm_90", general=spilled))["local"]
    swapped = parameters([*sizes[:8], 4, *sizes[9:], 8]) + threads
    assert "status_ptr" in checks_of(made(VARIANT, "sm_90", own=swapped))["parameters"]
    last = parameters([*sizes, 4]) + threads
    assert "the last ones" in checks_of(made(VARIANT, "sm_90", own=last))["parameters"]
    renamed = made(VARIANT, "sm_90", name="gemm_allreduce_one_shot")
    assert "expected gemm_allreduce_two_shot" in checks_of(renamed)["entry"]
    local = counted({("local", 4): 3})
    assert "without a stack frame" in checks_of(made(VARIANT, "sm_90", code=local))["local"]
    bad = made(VARIANT, "sm_90")
    assert set(checks_of(Cubin(bad.record, bad.data[:500]))) == {"cubin"}


def test_static_shared_memory_is_found() -> None:
    maker = maker_for(VARIANT, "sm_90")
    maker.shared = 1024 + 64
    cubin = make_cubin(plan_job(VARIANT, "sm_90", TRITON, PTXAS), maker.cubin(), 4096)
    assert "expected 0, got 64" in checks_of(cubin)["shared"]


# ------------------------------------------------------------------ limits


def test_limits_are_for_every_architecture() -> None:
    assert {arch: limit // 1024 for arch, limit in SHARED_LIMITS.items()} == {
        "sm_80": 163,
        "sm_86": 99,
        "sm_89": 99,
        "sm_90": 227,
        "sm_100": 227,
        "sm_103": 227,
        "sm_120": 99,
        "sm_121": 99,
    }
    assert NO_MULTIMEM == ("sm_80", "sm_86", "sm_89")


@pytest.mark.parametrize(
    ("warps", "ctas", "registers"),
    [(4, 1, 255), (8, 1, 255), (8, 2, 128), (4, 3, 168), (16, 1, 128)],
)
def test_registers_let_the_ctas_be_resident(warps: int, ctas: int, registers: int) -> None:
    assert limits().registers_of_thread(warps, ctas) == registers
    assert registers * 32 * warps * ctas <= 65536


def test_residency_is_that_of_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = tuple(replace(rule, ctas_per_sm=4) for rule in rules())
    monkeypatch.setattr("gemm_allreduce.limits.rules", lambda: crowded)
    assert ctas_per_sm(VARIANT) == 4
    assert ctas_per_sm(multimem_forms([VARIANT])[0]) == 4
    found = checks_of(made(VARIANT, "sm_90", 100_000))
    assert "4 x 4 warps" in found.get("registers", "4 x 4 warps")
    assert "with 4 on a multiprocessor" in found["shared"]


def test_a_spill_is_allowed_by_name_only() -> None:
    table = tomllib.loads(
        resources.files("gemm_allreduce").joinpath("limits.toml").read_text("utf-8")
    )
    table["spill"] = [{"names": "two_shot_*", "bytes": 40, "reason": "so"}]
    own = parse_limits(table)
    assert own.local_bytes(VARIANT.name) == 40
    assert own.local_bytes(SELECTED[0].name) == 0
    names = {variant.name for arch in ARCHS for variant in reachable_variants(arch)}
    for spill in limits().spills:
        assert spill.reason and 0 < spill.bytes <= 512
        assert any(fnmatchcase(name, spill.names) for name in names), spill


def test_a_table_for_other_architectures_is_refused() -> None:
    with pytest.raises(ValueError, match="limits are for sm_90, expected sm_80, sm_86"):
        arch = {"shared": 1, "threads": 1, "multimem": True, "bundle_bytes": 1}
        parse_limits({"arch": {"sm_90": arch}, "registers": 65536, "reserved": 1024})


def test_size_has_a_budget() -> None:
    budget = limits().archs["sm_90"].bundle_bytes
    assert check_size("sm_90", budget) == []
    (finding,) = check_size("sm_90", budget + 1)
    assert (finding.check, finding.code) == ("size", 1)


def test_the_budget_leaves_multimem_forms_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, form = made(VARIANT, "sm_90"), made(multimem_forms([VARIANT])[0], "sm_90")
    write_bundle(tmp_path, "", TRITON, [plain, form])
    table = replace(limits(), archs={"sm_90": replace(limits().archs["sm_90"], bundle_bytes=1)})
    monkeypatch.setattr("gemm_allreduce.checks.limits", lambda: table)
    code, document = report(capsys, "--dir", str(tmp_path))
    assert [(f["check"], f["got"]) for f in document["findings"]] == [
        ("size", str(plain.record.size))
    ]
    assert (code, document["bundles"][0]["archs"][0]["bytes"]) == (
        1,
        plain.record.size + form.record.size,
    )


# ------------------------------------------------------------------ the command


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A made bundle: all variants of sm_90, one of sm_80."""
    cubins = [made(variants_of("sm_80")[0], "sm_80")]
    cubins += [made(variant, "sm_90") for variant in reachable_variants("sm_90")]
    write_bundle(tmp_path / "bundle", "12.8", TRITON, cubins)
    return tmp_path / "bundle"


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["exit_code"], document["ok"]) == (code, code == 0)
    return code, document


def test_a_whole_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = report(capsys, "--dir", str(bundle), "--shape", "16,8192,14784,8,sm_90")
    assert (code, document["findings"]) == (0, [])
    (found,) = document["bundles"]
    assert (found["cuda"], found["triton"], found["current"]) == ("12.8", TRITON.distribution, True)
    count = len(reachable_variants("sm_90"))
    a, b = found["archs"]
    assert (a["arch"], a["cubins"], a["variants"]) == ("sm_80", 1, len(reachable_variants("sm_80")))
    assert (b["arch"], b["cubins"], b["variants"], b["ptxas"]) == (
        "sm_90",
        count,
        count,
        ["12.8.93"],
    )
    assert b["bytes"] == sum(p.stat().st_size for p in (bundle / "sm_90").iterdir())
    selected = document["selected"]
    assert selected["variant"] == SELECTED[0].name
    assert selected["bundles"][str(bundle)]["file"] == f"sm_90/{SELECTED[0].name}.cubin"
    assert main(["--dir", str(bundle)]) == 0
    assert f"sm_90   {count} of {count} cubins" in capsys.readouterr().out


def test_changed_and_missing_bytes_are_integrity(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, missing = sorted((bundle / "sm_90").iterdir())[:2]
    changed.write_bytes(changed.read_bytes() + b"\0")
    missing.unlink()
    code, document = report(capsys, "--dir", str(bundle))
    assert code == 4
    assert [(f["check"], f["variant"], f["code"]) for f in document["findings"]] == [
        ("hash", path.stem, 4) for path in sorted((changed, missing), key=lambda p: _order(p.stem))
    ]


def _order(name: str) -> int:
    return [variant.name for variant in reachable_variants("sm_90")].index(name)


def test_a_damaged_manifest_is_integrity(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    code, document = report(capsys, "--dir", str(bundle))
    assert code == 4
    assert document["findings"][0]["check"] == "manifest"


def test_other_sources_are_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    document["sources"] = "0" * 64
    manifest.write_text(json.dumps(document))
    code, found = report(capsys, "--dir", str(bundle))
    assert code == 1
    assert [f["check"] for f in found["findings"]] == ["sources"]


def test_a_name_that_dispatch_never_chooses_is_told(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    document["cubins"][0]["name"] = "three_shot"
    manifest.write_text(json.dumps(document))
    code, found = report(capsys, "--dir", str(bundle))
    assert (code, [f["check"] for f in found["findings"]]) == (1, ["variant"])


def test_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GEMM_AR_CUBINS", raising=False)
    code, document = report(capsys, "--dir", str(tmp_path))
    assert (code, document["findings"][0]["check"]) == (3, "bundle")
    monkeypatch.setattr("gemm_allreduce.check.installed_bundles", lambda: [])
    code, document = report(capsys)
    assert code == 3 and "gemm-allreduce-cubins" in document["findings"][0]["expected"]


def test_which_bundles_are_looked_at(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = bundle.with_name("second")
    shutil.copytree(bundle, second)
    monkeypatch.delenv("GEMM_AR_CUBINS", raising=False)
    monkeypatch.setattr("gemm_allreduce.check.installed_bundles", lambda: [bundle, second])
    folders = [found["folder"] for found in report(capsys)[1]["bundles"]]
    assert folders == [str(bundle), str(second)]
    monkeypatch.setenv("GEMM_AR_CUBINS", str(second))
    assert [found["folder"] for found in report(capsys)[1]["bundles"]] == [str(second)]


def test_a_shape_that_no_bundle_serves(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = report(capsys, "--dir", str(bundle), "--shape", "16,8192,1024,8,sm_100")
    assert code == 1
    (finding,) = document["findings"]
    assert (finding["check"], finding["arch"]) == ("shape", "sm_100")
    assert "not for sm_100" in finding["got"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("16,8192,1024,8", "expected M,N,K,W,ARCH"),
        ("16,8192,1024,8,sm_70", "unknown architecture 'sm_70'"),
        ("0,8192,1024,8,sm_90", "tokens must be at least 1"),
        ("a,8192,1024,8,sm_90", "invalid literal"),
    ],
)
def test_usage(shape: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--shape", shape])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@needs_triton
def test_what_was_compiled_passes(compiled: Compiled) -> None:
    done = run_module("check", "--dir", compiled.out, "--json", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr + done.stdout
    (found,) = json.loads(done.stdout)["bundles"]
    assert [arch["arch"] for arch in found["archs"]] == list(COMPILED_ARCHS)
    assert found["version"] == gemm_allreduce.__version__
