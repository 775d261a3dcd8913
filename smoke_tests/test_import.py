"""The tier import: what is installed is one set, whole, and can be imported. Needs no GPU."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smoke_tests.programs import compiler, run, verified
from smoke_tests.recording import Found
from smoke_tests.report import installed_version
from tdstack.verify.triton.fork import LABEL, LIBRARY, library_of

TIER = "import"
KERNELS = ("device", "direct", "cells", "jit", "lamport", "multimem", "one_shot", "two_shot")
"""Modules that import Triton."""
LAYERS = ("custom_op", "linear")
"""Modules that import torch."""
INTEGRATIONS = {"gemm_allreduce.integrations.transformers": ("torch", "transformers")}
"""Modules for packages that an environment need not have, and what they import."""
TRITON = ("triton", "triton-dist", "pytorch-triton")

Findings = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def findings() -> Findings:
    """What tdstack-verify finds in this environment."""
    listed: Findings = verified(Path(sys.prefix))["findings"]
    return listed


def _of(findings: Findings, *starts: str) -> Findings:
    return [f for f in findings if str(f["check"]).startswith(starts)]


def _judge(findings: Findings, found: Found) -> None:
    wrong = [f"{f['check']}: {f['detail']}; {f['remedy']}" for f in findings if not f["ok"]]
    assert not wrong, "\n".join(wrong)
    found.detail = "; ".join(f"{f['check']}: {f['detail']}" for f in findings)


def test_exactly_one_triton_owns_its_files(findings: Findings, found: Found) -> None:
    """Stock or Triton-distributed, whole, and not one over the other."""
    chosen = _of(findings, "triton")
    assert chosen, "tdstack-verify says nothing of Triton"
    _judge(chosen, found)


def test_exactly_one_nvshmem_and_all_of_one_version(findings: Findings, found: Found) -> None:
    """Host library, device bitcode, wheel, bindings and torch."""
    chosen = _of(findings, "nvshmem")
    assert chosen, "tdstack-verify says nothing of NVSHMEM"
    _judge(chosen, found)


def test_every_installed_package_of_the_stack_imports(findings: Findings, found: Found) -> None:
    """Each in a process of its own."""
    _judge(_of(findings, "import "), found)


def test_requirements_and_files_are_as_recorded(findings: Findings, found: Found) -> None:
    """In an image also the packages, files and cubins of its manifest."""
    rest = [f for f in findings if f not in _of(findings, "triton", "nvshmem", "import ")]
    assert rest, "tdstack-verify says nothing of requirements"
    _judge(rest, found)


def test_every_module_of_the_kernels_package_imports(found: Found) -> None:
    """Those that need Triton or torch too, where it is installed."""
    spec = importlib.util.find_spec("gemm_allreduce")
    assert spec is not None, "gemm_allreduce is not installed"
    assert spec.submodule_search_locations, "gemm_allreduce is no package"
    there = sorted(
        module.name
        for module in pkgutil.walk_packages(spec.submodule_search_locations, "gemm_allreduce.")
    )
    left: tuple[str, ...] = KERNELS if importlib.util.find_spec("triton") is None else ()
    left += LAYERS if importlib.util.find_spec("torch") is None else ()
    names = [
        name
        for name in there
        if name.split(".")[1] not in left
        and all(map(importlib.util.find_spec, INTEGRATIONS.get(name, ())))
    ]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = run(compiler(["-c", code, *names]))
    assert done.returncode == 0, done.stderr.strip()[-2000:]
    found.detail = f"{len(names)} modules, of {spec.origin}"


def test_triton_has_the_fingerprint_of_what_it_is_called(found: Found) -> None:
    """The version alone does not tell the fork: it is 3.4.0 on both."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        found.detail = "no Triton is installed: only cubins can run"
        return
    library = library_of(Path(spec.origin).parent.parent / LIBRARY)
    label = installed_version(*TRITON) or ""
    assert library != "none", f"{LIBRARY} is missing or empty"
    of_its_own = fits(library, label, installed_version)
    assert of_its_own, f"the library is {library}, but it is called {label}"
    found.detail = f"{library}, version {label}"


def fits(library: str, label: str, installed: Callable[[str], str | None]) -> bool:
    """Whether whose library it is goes with its version and its distribution's name. Pure."""
    named = LABEL in label or bool(installed("triton-dist"))
    return named == (library == "distributed")
