"""Can an environment's interpreter import what it is for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from . import gpuless as stub
from .environment import Answer, Environment, ask
from .finding import DOCS, Finding, failed, passed
from .symptoms import explain, plain

DONE = "imported"
# Importing what is left of an uninstalled package succeeds: it has a folder, but no contents.
MEMBERS = {"triton": "jit"}


def modules_of(
    names: Iterable[str], torch: bool, fork: bool, complete: bool = True
) -> tuple[str, ...]:
    """Return the modules that an environment with these distributions must be able to import.

    `complete` says whether the fork has every package that its own code imports. Pure.
    """
    there = set(names)
    modules = ["triton"] if "triton" in there else []
    modules += ["torch"] if torch else []
    modules += ["nvshmem.core"] if any(n.startswith("nvshmem4py") for n in there) else []
    modules += ["cuda.core"] if "cuda-core" in there else []
    modules += ["gemm_allreduce"] if "gemm-allreduce" in there else []
    # It imports torch and nvshmem4py; without them it is not meant to be used.
    if fork and complete and torch and "nvshmem.core" in modules:
        modules += ["triton_dist.language", "triton_dist.layers.nvidia"]
    return tuple(modules)


def check_imports(
    environment: Environment, modules: Iterable[str], gpuless: bool, launcher: Path
) -> Iterator[Finding]:
    """Import each module in a process of its own; yield one finding for each.

    With `gpuless`, through the launcher gpuless.py at `launcher`: on a host without a GPU its
    stub answers what the module asks at import, on any other host it changes nothing.
    """
    for module in modules:
        code = f"import {module}\n"
        if module in MEMBERS:
            code += f"{module}.{MEMBERS[module]}\n"
        code += f"print('\\n{DONE}')"
        if gpuless:
            answer = ask([str(environment.python), str(launcher), "-c", code])
        else:
            answer = environment.run(code)
        yield _finding(f"import {module}", answer, proven=not (gpuless and _asks_more(module)))


def _asks_more(module: str) -> bool:
    # The stub answers what was seen to be asked; a newer triton_dist may ask more at import.
    return module.split(".")[0] == "triton_dist"


def _finding(check: str, answer: Answer, *, proven: bool) -> Finding:
    # A module that ends the process with status 0 was not imported.
    if answer.status == 0 and answer.out.splitlines()[-1:] == [DONE]:
        return passed(check, DONE)
    own = stub.NOTE.split("{", maxsplit=1)[0]
    lines = [line for line in answer.err.splitlines() if not line.startswith(own)]
    answer = replace(answer, err="\n".join(lines))
    # The last line is the error itself; it can follow from one that is told of above it.
    known = explain(answer.last_line) or explain(answer.err)
    if known is None and not proven and "ModuleNotFoundError" not in answer.last_line:
        return passed(check, f"not decided without a GPU: {answer.last_line}")
    if known is None:
        return failed(check, answer.last_line, f"see {DOCS}")
    detail = f"{answer.last_line} ({plain(known.cause)})"
    return failed(check, detail, plain(known.fix), symptom=known.symptom)
