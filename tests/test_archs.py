"""--arch: an image for some of its line's architectures, told from a whole one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tdstack.errors import UsageError
from tdstack.lock.io import load_lock
from tdstack.plan import LABEL, REPOSITORY, Plan, make_plan, slice_of
from tdstack.recipe import load_recipe
from tdstack.stack import Request, make_stack
from tdstack.variants import ALIAS, variant_names
from tests.checkouts import TABLE, few_kernels
from tests.test_cli import invoke

ROOT = Path(__file__).resolve().parent.parent
LOCK, _ = load_lock(ROOT)
# What every registry takes as a tag.
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

ASKED = """
import json
from gemm_allreduce.dispatch import ARCHS, reachable_variants
print(json.dumps({arch: [v.name for v in reachable_variants(arch)] for arch in ARCHS}))
"""


@pytest.fixture(scope="module")
def reachable() -> dict[str, list[str]]:
    """What the kernels' package itself says, in a process of its own."""
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(
        command, cwd=ROOT / "kernels/src", capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def plan(*archs: str, root: Path = ROOT, **wishes: Any) -> Plan:
    request = Request(**{"triton": "stock", "archs": archs, **wishes})
    return make_plan(make_stack(LOCK, request), root)


def test_no_arch_means_all_of_the_line_and_so_do_all_of_them() -> None:
    whole = plan()
    assert whole.stack.archs == tuple(LOCK.lines["12.4"].archs)
    archs = whole.stack.archs
    assert plan(*archs) == plan(*reversed(archs)) == whole


def test_order_and_repetition_do_not_matter() -> None:
    one = plan("sm_80", "sm_90")
    assert plan("sm_90", "sm_80", "sm_90") == one
    assert one.stack.archs == ("sm_80", "sm_90")


def test_a_restricted_image_differs_in_its_kernels_layer_alone_and_says_so() -> None:
    whole, one = plan(), plan("sm_90")
    moved = [a.name for a, b in zip(whole.layers, one.layers, strict=True) if a.key != b.key]
    assert moved == ["kernels"]
    assert one.final.tags[1] == f"{REPOSITORY}:cu124-stock-sm_90"
    assert one.final.tags[0].endswith(f"py311-stock-sm_90-{one.final.key[:12]}")
    assert whole.final.tags[1] == f"{REPOSITORY}:cu124-stock"
    assert one.final.labels[f"{LABEL}.archs"] == "sm_90"
    assert whole.final.labels[f"{LABEL}.archs"] == "sm_80,sm_86,sm_89,sm_90"
    assert slice_of(one.stack)["archs"] == one.as_dict()["archs"] == ["sm_90"]
    assert one.lock_slice != whole.lock_slice
    assert one.stack.notes == (
        "kernels are compiled for sm_90 only; on sm_80, sm_86, sm_89 Triton compiles them at "
        "first use",
    )
    assert whole.stack.notes == ()


def test_every_restriction_of_the_largest_line_has_a_key_and_a_valid_tag_of_its_own() -> None:
    archs = LOCK.lines["12.9"].archs
    plans = [plan(*(a for a in archs if a != out), cuda="12.9", torch="cpu") for out in archs]
    plans += [plan(arch, cuda="12.9", torch="cpu") for arch in archs]
    plans.append(plan(cuda="12.9", torch="cpu"))
    assert len({p.final.key for p in plans}) == len(plans)
    for number in (0, 1):
        tags = [p.final.tags[number].removeprefix(f"{REPOSITORY}:") for p in plans]
        assert len(set(tags)) == len(tags)
        assert all(TAG.fullmatch(tag) for tag in tags)


@pytest.mark.parametrize(
    ("cuda", "arch", "remedy"),
    [
        ("12.4", "sm_100", "--cuda 12.8 or --cuda 12.9 or --cuda 13.0"),
        ("12.8", "sm_103", "--cuda 12.9 or --cuda 13.0"),
        ("12.4", "sm_70", ""),
        ("12.4", "90", ""),
        ("12.4", "sm_90,sm_80", ""),
        ("12.4", "", ""),
    ],
)
def test_an_arch_that_the_line_lacks_is_refused_naming_those_it_has(
    cuda: str, arch: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan("sm_90", arch, cuda=cuda)
    error = caught.value
    assert error.where == "--arch"
    assert error.expected == ", ".join(LOCK.lines[cuda].archs)
    assert arch in error.what
    assert remedy in error.remedy
    assert bool(error.remedy) == bool(remedy)


@pytest.mark.parametrize("verb", ["plan", "fetch", "build", "quickstart"])
def test_the_verbs_take_it_several_times_and_refuse_what_is_unknown(verb: str) -> None:
    ended = invoke(ROOT, verb, "--arch=sm_90", "--arch=sm_75", "--torch=none")
    assert ended.code == 2
    assert "sm_75" in ended.err
    assert "sm_80, sm_86, sm_89, sm_90" in ended.err


def test_a_plan_shows_the_archs_and_how_many_cubins_that_makes(
    reachable: dict[str, list[str]],
) -> None:
    options = ["plan", "--triton=stock", "--torch=none", "--arch=sm_90", "--arch=sm_80"]
    shown = invoke(ROOT, *options)
    assert shown.code == 0, shown.err
    counts = {arch: len(reachable[arch]) for arch in ("sm_80", "sm_90")}
    assert f"{sum(counts.values())} cubins" in shown.err
    assert f"sm_80 {counts['sm_80']}, sm_90 {counts['sm_90']}" in shown.err
    data = json.loads(invoke(ROOT, *options, "--json").out)
    assert (data["archs"], data["cubins"]) == (["sm_80", "sm_90"], counts)


@pytest.mark.parametrize("cuda", sorted(LOCK.lines))
def test_the_layers_budget_has_room_for_all_that_the_kernels_limits_allow(cuda: str) -> None:
    table = tomllib.loads((ROOT / "kernels/src/gemm_allreduce/limits.toml").read_text())
    cubins = sum(table["arch"][arch]["bundle_bytes"] for arch in LOCK.lines[cuda].archs)
    rest = 2_000_000  # sources, manifests, tdstack-verify, the tar's own blocks
    assert cubins + rest <= load_recipe(ROOT, "kernels").budget_mb * 1_000_000


def test_the_variants_are_those_of_the_dispatch_table(reachable: dict[str, list[str]]) -> None:
    assert len(reachable) >= 8
    assert variant_names(ROOT, reachable) == reachable
    assert not [name for name in sys.modules if name.startswith(ALIAS)]


def test_the_variants_are_those_of_the_checkout_that_is_asked(tmp_path: Path) -> None:
    copy = few_kernels(ROOT, tmp_path / "checkout")
    names = variant_names(copy, ["sm_80"])["sm_80"]
    assert names
    assert set(names) < set(variant_names(ROOT, ["sm_80"])["sm_80"])
    assert not list(copy.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dispatch.toml", "[[rule]]\nalgorithm = 'one_shot'", "rule 1 of the dispatch table"),
        ("dispatch.toml", "[[rule", "TOMLDecodeError"),
        ("dispatch.toml", "", "KeyError: 'rule'"),
        ("dispatch.py", "<<<<<<< HEAD", "SyntaxError"),
        ("variants.py", "from .nowhere import x", "gemm_allreduce.nowhere"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    copy = few_kernels(ROOT, tmp_path / "checkout")
    (copy / TABLE).with_name(name).write_text(text)
    with pytest.raises(UsageError) as caught:
        variant_names(copy, ["sm_90"])
    assert words in caught.value.got
    assert variant_names(ROOT, ["sm_90"])["sm_90"]


def test_an_arch_that_the_kernels_do_not_know_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        variant_names(ROOT, ["sm_90", "sm_75"])
    assert "sm_75" in caught.value.got
