"""Lock -> stack -> plan: golden plans, purity, what moves a key, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tdstack.errors import IntegrityError, UsageError
from tdstack.fork.model import ForkWheel
from tdstack.lock.io import load_lock
from tdstack.lock.model import Lock, LockedFile, Platform
from tdstack.plan import LABEL, Layer, Plan, make_plan
from tdstack.stack import (
    GLIBC_OF_OTHER_BASES,
    LAYER_ORDER,
    TORCH_VARIANTS,
    Request,
    best_wheel,
    make_stack,
)
from tests.triton_wheels import a_fork

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
LOCK, _ = load_lock(ROOT)
OTHER_BASE = "ubuntu:24.04@sha256:" + "0" * 64
TARGETS = [
    (cuda, torch)
    for cuda in sorted(LOCK.lines)
    for torch in TORCH_VARIANTS
    if any((c.set, c.torch) == (LOCK.lines[cuda].set, torch) for c in LOCK.closures)
]


def _plan(root: Path = ROOT, lock: Lock = LOCK, **wishes: Any) -> Plan:
    return make_plan(make_stack(lock, Request(**{"triton": "stock", **wishes})), root)


def _keys(plan: Plan) -> dict[str, str]:
    return {layer.name: layer.key for layer in plan.layers}


def _moved(before: Plan, after: Plan) -> list[str]:
    old, new = _keys(before), _keys(after)
    assert list(old) == list(new)
    return [name for name in old if old[name] != new[name]]


def _from(layer: str) -> list[str]:
    names: list[str] = list(LAYER_ORDER)
    return names[names.index(layer) :]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of everything that a plan reads."""
    for name in ("images", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", ".*", "dist", "build")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


# ------------------------------------------------------------------------------ golden plans


def _without_keys(plan: Plan) -> Any:
    """Return the plan as data without keys: those move with every edit of a recipe."""
    data: Any = json.loads(json.dumps(plan.as_dict()))
    # Their number moves with the dispatch table; tests/test_archs.py counts them.
    assert list(data.pop("cubins")) == list(plan.stack.archs)
    for shown, layer in zip(data["layers"], plan.layers, strict=True):
        assert shown.pop("key") == layer.key
        assert shown.pop("parent") == layer.parent
        assert shown.pop("ref") == layer.ref
        assert shown["labels"].pop(f"{LABEL}.key") == layer.key
        assert shown["labels"].pop(f"{LABEL}.parent", None) == layer.parent
        shown["tags"] = [tag.replace(layer.key[:12], "KEY") for tag in shown["tags"]]
    return data


@pytest.mark.parametrize(("cuda", "torch"), TARGETS)
def test_the_stock_plan_of_a_line_is_the_golden_one(cuda: str, torch: str) -> None:
    """After a wanted change: TDSTACK_GOLDEN=write pytest tests/test_stack_and_plan.py."""
    found = json.dumps(_without_keys(_plan(cuda=cuda, torch=torch)), indent=1, sort_keys=True)
    path = GOLDEN / f"plan-{cuda}-{torch}.json"
    if os.environ.get("TDSTACK_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(found + "\n")
    assert json.loads(found) == json.loads(path.read_text())


def test_every_golden_plan_belongs_to_a_target_of_the_lock() -> None:
    expected = {f"plan-{cuda}-{torch}.json" for cuda, torch in TARGETS}
    assert {path.name for path in GOLDEN.iterdir()} == expected


# ------------------------------------------------------------------------------------ purity


def _forbidden(*arguments: object, **options: object) -> NoReturn:
    raise AssertionError("the outside was touched")


@pytest.mark.parametrize(("cuda", "torch"), TARGETS)
def test_two_plans_of_one_request_are_equal(cuda: str, torch: str, checkout: Path) -> None:
    fresh, _ = load_lock(ROOT)
    assert _plan(checkout, cuda=cuda, torch=torch) == _plan(checkout, fresh, cuda=cuda, torch=torch)


def test_keys_do_not_depend_on_where_the_checkout_lies(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "deeper"
    elsewhere.mkdir(parents=True)
    for name in ("images", "kernels"):
        shutil.copytree(checkout / name, elsewhere / name)
    assert _keys(_plan(checkout)) == _keys(_plan(elsewhere))


@pytest.mark.parametrize("triton", ["stock", "distributed"])
def test_planning_opens_no_socket_and_runs_no_program(
    monkeypatch: pytest.MonkeyPatch, triton: str
) -> None:
    expected = _keys(_plan(triton=triton))
    monkeypatch.setattr(socket, "socket", _forbidden)
    monkeypatch.setattr(subprocess, "Popen", _forbidden)
    monkeypatch.setattr(os, "system", _forbidden)
    with pytest.raises(AssertionError, match="outside"):
        subprocess.run(["true"], check=False)
    with pytest.raises(AssertionError, match="outside"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    lock, _ = load_lock(ROOT)
    assert _keys(_plan(lock=lock, triton=triton)) == expected


# -------------------------------------------------------------------------------------- keys


def _with_other_hash(lock: Lock, file: LockedFile) -> Lock:
    def other(known: LockedFile) -> LockedFile:
        turned = known.sha256[::-1]
        assert turned != known.sha256
        return known.model_copy(update={"sha256": turned}) if known == file else known

    packages = {ref: [other(f) for f in files] for ref, files in lock.packages.items()}
    assert packages != lock.packages
    return lock.model_copy(update={"packages": packages})


def _layers_with_packages() -> list[str]:
    return [layer.name for layer in _plan().layers if layer.packages]


@pytest.mark.parametrize("name", _layers_with_packages())
def test_another_hash_of_a_package_moves_its_layer_and_those_above_and_none_below(
    name: str, checkout: Path
) -> None:
    before = _plan(checkout)
    layer = next(layer for layer in before.layers if layer.name == name)
    for package in layer.packages:
        assert package.file is not None
        after = _plan(checkout, _with_other_hash(LOCK, package.file))
        assert _moved(before, after) == _from(name), package.name


def test_every_layer_but_the_kernels_has_a_package_whose_hash_is_tried() -> None:
    assert _layers_with_packages() == list(LAYER_ORDER[:-1])


def test_another_root_file_system_moves_every_key(checkout: Path) -> None:
    rootfs = LOCK.rootfs[0]
    tar = rootfs.tar.model_copy(update={"sha256": "0" * 64})
    moved = LOCK.model_copy(
        update={"rootfs": [rootfs.model_copy(update={"tar": tar}), *LOCK.rootfs[1:]]}
    )
    assert _moved(_plan(checkout), _plan(checkout, moved)) == list(LAYER_ORDER)


def test_another_list_of_archs_moves_the_kernels_only(checkout: Path) -> None:
    line = LOCK.lines["12.4"].model_copy(update={"archs": ["sm_90"]})
    moved = LOCK.model_copy(update={"lines": {**LOCK.lines, "12.4": line}})
    assert _moved(_plan(checkout), _plan(checkout, moved)) == ["kernels"]


def test_another_driver_floor_moves_cuda_and_kernels_only(checkout: Path) -> None:
    line = LOCK.lines["12.4"].model_copy(update={"driver_floor": "999.0"})
    moved = LOCK.model_copy(update={"lines": {**LOCK.lines, "12.4": line}})
    assert _moved(_plan(checkout), _plan(checkout, moved)) == ["cuda", "kernels"]


@pytest.mark.parametrize("name", LAYER_ORDER)
def test_another_recipe_moves_its_layer_and_those_above_and_none_below(
    name: str, checkout: Path
) -> None:
    before = _plan(checkout)
    recipe = checkout / "images" / name / "recipe.toml"
    recipe.write_text(recipe.read_text() + "\n# a remark\n")
    assert _moved(before, _plan(checkout)) == _from(name)


def _edit_a_source(folder: Path) -> None:
    path = folder / "src" / "gemm_allreduce" / "__init__.py"
    path.write_text(path.read_text() + "\n")


def _add_a_source(folder: Path) -> None:
    (folder / "src" / "gemm_allreduce" / "another.py").write_text("")


def _mark_a_source_executable(folder: Path) -> None:
    (folder / "pyproject.toml").chmod(0o755)


def _rename_a_source(folder: Path) -> None:
    (folder / "README.md").rename(folder / "READ.md")


@pytest.mark.parametrize(
    "change", [_edit_a_source, _add_a_source, _mark_a_source_executable, _rename_a_source]
)
def test_touching_the_kernels_moves_the_kernels_key_only(
    checkout: Path, change: Callable[[Path], None]
) -> None:
    before = _plan(checkout)
    change(checkout / "kernels")
    assert _moved(before, _plan(checkout)) == ["kernels"]


@pytest.mark.parametrize(
    "path",
    [
        "kernels/tests/test_new.py",
        "kernels/src/gemm_allreduce/__pycache__/layout.cpython-311.pyc",
        "kernels/.ruff_cache/CACHEDIR.TAG",
        "images/README.md",
    ],
)
def test_files_that_are_no_sources_move_no_key(checkout: Path, path: str) -> None:
    before = _plan(checkout)
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("something else")
    assert _moved(before, _plan(checkout)) == []


def test_lines_12_4_and_12_8_share_every_layer_up_to_triton() -> None:
    assert _moved(_plan(cuda="12.4"), _plan(cuda="12.8")) == ["cuda", "kernels"]


@pytest.mark.parametrize("cuda", ["12.4", "12.6", "12.8", "12.9"])
def test_stock_and_distributed_share_base_torch_and_nvshmem(cuda: str) -> None:
    moved = _moved(_plan(cuda=cuda), _plan(cuda=cuda, triton="distributed"))
    assert moved == ["triton", "cuda", "kernels"]


def test_every_layer_names_the_key_of_the_layer_below_as_its_parent() -> None:
    layers = _plan().layers
    below: list[Layer | None] = [None, *layers]
    assert [layer.parent for layer in layers] == [b.key if b else None for b in below[:-1]]
    assert len({layer.key for layer in layers}) == len(LAYER_ORDER)


def test_a_plan_without_torch_has_no_torch_layer() -> None:
    plan = _plan(torch="none")
    assert [layer.name for layer in plan.layers] == [n for n in LAYER_ORDER if n != "torch"]
    assert not [p for p in plan.stack.all_packages() if p.name == "torch"]


def test_the_files_of_a_plan_are_its_wheels_and_its_debian_packages() -> None:
    plan = _plan()
    assert plan.stack.rootfs is not None
    names = [file.name for file in plan.files]
    assert len(names) == len(set(names))
    assert sum(name.endswith(".whl") for name in names) == len([*plan.stack.all_packages()])
    assert sum(name.endswith(".deb") for name in names) == len(plan.stack.rootfs.packages)


# ----------------------------------------------------------------------------------- refusals


def _refused(**wishes: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make_stack(LOCK, Request(**{"triton": "stock", **wishes}))
    assert int(caught.value.code) == 2
    return caught.value


@pytest.mark.parametrize("cuda", ["12.40", "13", "abc", "", "12.4 ", "cu124"])
def test_an_unknown_line_is_refused_naming_the_valid_ones(cuda: str) -> None:
    error = _refused(cuda=cuda)
    assert error.expected == "12.4, 12.6, 12.8, 12.9, 13.0"
    assert repr(cuda) in error.what


def test_valid_lines_are_named_in_the_order_of_their_numbers() -> None:
    more = LOCK.model_copy(update={"lines": {**LOCK.lines, "12.10": LOCK.lines["12.9"]}})
    with pytest.raises(UsageError) as caught:
        make_stack(more, Request(cuda="11.8"))
    assert caught.value.expected == "12.4, 12.6, 12.8, 12.9, 12.10, 13.0"


def test_13_0_with_triton_distributed_is_refused_with_a_remedy() -> None:
    error = _refused(cuda="13.0", triton="distributed")
    assert "--triton stock" in error.remedy
    assert "CUDA 13" in error.expected


def test_13_0_with_stock_triton_says_that_it_is_experimental() -> None:
    plan = _plan(cuda="13.0")
    assert plan.as_dict()["experimental"] == LOCK.lines["13.0"].experimental
    assert plan.final.labels[f"{LABEL}.experimental"] == LOCK.lines["13.0"].experimental


@pytest.mark.parametrize("cuda", ["12.4", "12.6", "12.8", "12.9"])
@pytest.mark.parametrize("torch", ["cuda", "none"])
def test_arm64_with_stock_triton_is_refused_because_it_has_no_wheel(cuda: str, torch: str) -> None:
    error = _refused(cuda=cuda, torch=torch, platform="linux/arm64", base=OTHER_BASE)
    assert "triton==3.4.0 has no wheel" in error.what
    assert "--triton distributed" in error.remedy


def test_arm64_on_the_rootfs_is_refused_naming_the_platforms_that_have_one() -> None:
    error = _refused(platform="linux/arm64")
    assert error.expected == "linux/amd64"
    assert "--base" in error.remedy


def test_arm64_with_the_fork_is_a_stack_of_arm_wheels() -> None:
    fork = a_fork("cp312-cp312-linux_aarch64")
    request = Request(platform="linux/arm64", base=OTHER_BASE, fork=fork)
    names = [p.file.name for p in make_stack(LOCK, request).all_packages() if p.file]
    assert not [name for name in names if "x86_64" in name]
    assert [name for name in names if "aarch64" in name]


def test_a_python_that_no_rootfs_has_is_refused_with_a_remedy() -> None:
    error = _refused(python="3.12")
    assert "3.12" in error.what
    assert error.expected == "bookworm has Python 3.11, trixie has Python 3.13"
    assert "--base" in error.remedy


@pytest.mark.parametrize(
    ("wish", "suite"),
    [
        ({}, "bookworm"),
        ({"python": "3.11"}, "bookworm"),
        ({"python": "3.13"}, "trixie"),
        ({"base": "rootfs:bookworm"}, "bookworm"),
        ({"base": "rootfs:trixie"}, "trixie"),
    ],
)
def test_the_first_rootfs_that_has_the_python_is_the_base(wish: dict[str, Any], suite: str) -> None:
    stack = make_stack(LOCK, Request(triton="stock", **wish))
    assert stack.rootfs is not None
    assert (stack.rootfs.suite, stack.python) == (suite, stack.rootfs.python)
    assert stack.interpreter == f"/usr/bin/python{stack.python}"


@pytest.mark.parametrize(
    ("fork", "suite"),
    [
        (a_fork("cp311-cp311-linux_x86_64", glibc="2.36"), "bookworm"),
        (a_fork("cp313-cp313-linux_x86_64"), "trixie"),
        # Its tag promises 2.28, its library needs more than bookworm has.
        (a_fork("cp313-cp313-manylinux_2_28_x86_64", glibc="2.38"), "trixie"),
    ],
)
def test_the_first_rootfs_that_the_fork_runs_on_is_the_base(fork: ForkWheel, suite: str) -> None:
    stack = make_stack(LOCK, Request(fork=fork))
    assert stack.rootfs is not None
    assert stack.rootfs.suite == suite
    told = [note for note in stack.notes if note.startswith("base: trixie")]
    assert bool(told) == (suite == "trixie")


@pytest.mark.parametrize(
    ("fork", "needs"),
    [
        (a_fork("cp312-cp312-manylinux_2_28_x86_64", glibc="2.38"), "Python 3.12"),
        (a_fork("cp311-cp311-linux_x86_64", glibc="2.38"), "glibc 2.38"),
        (a_fork("cp313-cp313-linux_x86_64", glibc="2.42"), "glibc 2.42"),
    ],
)
def test_a_fork_that_no_rootfs_runs_is_refused_with_what_it_needs(
    fork: ForkWheel, needs: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        make_stack(LOCK, Request(fork=fork))
    assert needs in caught.value.got
    assert "--base REF@sha256" in caught.value.remedy


def test_an_unknown_rootfs_is_refused_naming_those_there_are() -> None:
    assert _refused(base="rootfs:sid").expected == "rootfs:bookworm, rootfs:trixie"


def test_python_3_13_on_another_base_is_a_stack() -> None:
    stack = make_stack(LOCK, Request(triton="stock", python="3.13", base=OTHER_BASE))
    assert stack.python == "3.13"


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"triton": "stok"}, "distributed, stock"),
        ({"torch": "gpu"}, "cuda, cpu, none"),
        ({"platform": "linux/riscv64"}, "linux/amd64, linux/arm64"),
    ],
)
def test_an_unknown_value_is_refused_naming_the_valid_ones(
    wish: dict[str, str], named: str
) -> None:
    error = _refused(**wish)
    assert error.expected == named
    assert error.where == f"--{next(iter(wish))}"


def test_a_torch_variant_that_the_set_lacks_is_refused() -> None:
    assert "cu13" in _refused(cuda="13.0", torch="cpu").what


def test_a_python_that_the_lock_lacks_is_refused_naming_those_it_holds() -> None:
    error = _refused(python="3.9", base=OTHER_BASE)
    assert "--python 3.12 --platform linux/amd64" in error.expected


@pytest.mark.parametrize(
    "tag",
    [
        "cp312-cp312-linux_x86_64",
        "cp311-cp311-linux_aarch64",
        "cp311-cp311-manylinux_2_39_x86_64",
        "cp311-cp311-musllinux_1_2_x86_64",
    ],
)
def test_a_fork_wheel_for_another_target_is_refused(tag: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        make_stack(LOCK, Request(fork=a_fork(tag)))
    assert "Python 3.11, linux/amd64, glibc 2.36" in caught.value.expected
    assert tag.split("-")[0] in caught.value.what
    assert tag in caught.value.got
    assert f"--python 3.{tag[3:5]}" in caught.value.remedy


def test_a_fork_of_another_triton_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        make_stack(LOCK, Request(fork=a_fork("cp311-cp311-linux_x86_64", "3.3.0+dist.0a")))
    assert (caught.value.expected, caught.value.got) == ("3.4.0", "3.3.0+dist.0a")


# ------------------------------------------------------------------------------------- wheels


def _best(names: list[str], python: str = "3.11", glibc: str = "2.36") -> str:
    files = [LockedFile(name=name, sha256="0" * 64, size=1) for name in names]
    chosen = {
        best_wheel("x==1", listed, python, "linux/amd64", glibc).name
        for listed in (files, files[::-1])
    }
    assert len(chosen) == 1, "the order of the files decided"
    return chosen.pop()


def test_the_wheel_of_the_very_python_wins_over_abi3_and_py3() -> None:
    own = "x-1-cp311-cp311-manylinux_2_17_x86_64.whl"
    stable = "x-1-cp38-abi3-manylinux_2_28_x86_64.whl"
    pure = "x-1-py3-none-any.whl"
    assert _best([pure, stable, own]) == own
    assert _best([pure, stable]) == stable
    assert _best([pure, stable, own], python="3.12") == stable


def test_the_newest_manylinux_that_the_glibc_allows_wins() -> None:
    stem = "x-1-cp311-cp311-manylinux"
    names = [f"{stem}{v}_x86_64.whl" for v in ("2014", "_2_17", "_2_28", "_2_34", "_2_39")]
    assert _best(names, glibc="2.36") == f"{stem}_2_34_x86_64.whl"
    assert _best(names, glibc="2.31") == f"{stem}_2_28_x86_64.whl"
    assert _best(names, glibc="2.39") == f"{stem}_2_39_x86_64.whl"
    assert _best(names[:1], glibc="2.17") == names[0]


def test_a_wheel_with_several_tags_counts_by_its_best_one() -> None:
    both = "x-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_28_x86_64.whl"
    middle = "x-1-cp311-cp311-manylinux_2_24_x86_64.whl"
    assert _best([both, middle]) == both


@pytest.mark.parametrize(
    "name",
    [
        "x-1-cp312-cp312-manylinux_2_17_x86_64.whl",
        "x-1-cp311-cp311-manylinux_2_17_aarch64.whl",
        "x-1-cp311-cp311-musllinux_1_2_x86_64.whl",
        "x-1-cp311-cp311-manylinux_2_40_x86_64.whl",
        "x-1-cp311-cp311t-manylinux_2_17_x86_64.whl",
        "x-1-cp311-cp311-win_amd64.whl",
    ],
)
def test_a_wheel_that_cannot_run_on_the_target_is_never_chosen(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        _best([name])
    assert name in caught.value.got


def test_every_reference_of_every_closure_has_a_wheel_for_its_target() -> None:
    count = 0
    for closure in LOCK.closures:
        machine = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}[closure.platform]
        target = (closure.platform, closure.python)
        own = {r.glibc for r in LOCK.rootfs if (r.platform, r.python) == target}
        floors = {GLIBC_OF_OTHER_BASES} | own
        for ref in [ref for refs in closure.layers.values() for ref in refs]:
            for glibc in floors:
                wheel = best_wheel(ref, LOCK.packages[ref], closure.python, closure.platform, glibc)
                assert wheel.name.endswith((f"{machine}.whl", "-any.whl")), wheel.name
                count += 1
    assert count > 500


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_every_line_has_a_toolkit_wheel_on_every_platform(platform: Platform) -> None:
    for name, line in LOCK.lines.items():
        for ref in line.toolkit[platform]:
            wheel = best_wheel(ref, LOCK.packages[ref], "3.11", platform, GLIBC_OF_OTHER_BASES)
            assert wheel.name.startswith("nvidia_cuda_nvcc"), name


def test_the_locked_set_has_one_wheel_per_package_and_one_triton() -> None:
    for cuda, torch in TARGETS:
        stack = make_stack(LOCK, Request(cuda=cuda, torch=torch, triton="stock"))
        names = [package.name for package in stack.all_packages()]
        assert len(names) == len(set(names)), (cuda, torch)
        assert [p.name for p in stack.packages["triton"]].count("triton") == 1
