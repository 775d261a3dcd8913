"""Verbs for environments, kernels and the project itself."""

from __future__ import annotations

import os
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from tdstack import console
from tdstack.cli.verb import helps, verb
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.stack import Request
from tdstack.workspace import Workspace


@verb
@helps(
    prefix="the folder of the install; with --layer that of any Python environment",
    python="of this host: 3.11, or the path of an interpreter (default: one that the lock has)",
    cpython="a stand-alone CPython to bring along: FILE, or FILE#sha256=HEX",
    layer="triton: only put Triton-distributed into an environment that is there already",
    rollback="switch back to the version that was in use before, or to --version",
    version="with --rollback: the key, or its beginning, of the version to use",
)
def install(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    arch: list[str] | None = None,
    prefix: str = "",
    python: str = "",
    cpython: str = "",
    layer: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    rollback: bool = False,
    version: str = "",
    json: bool = False,
    dry: bool = False,
) -> None:
    """Install all layers below a folder, or Triton-distributed into an environment."""
    source = ForkSource(wheel, incomplete)
    if layer:
        from tdstack.fork_verbs import install_verb

        if layer != "triton":
            raise UsageError(
                "only one layer can be installed by itself",
                where=f"--layer {layer}",
                expected="triton; or leave it out to install all layers",
            )
        if rollback or version or python or cpython:
            raise UsageError(
                "an environment of others is only given another Triton",
                where="--layer triton",
                expected="--prefix, --wheel, --wheelhouse, --incomplete, --json, --dry alone",
            )
        install_verb(Workspace.here(wheelhouse), prefix, source, as_json=json, dry=dry)
        return
    from tdstack.prefix.verbs import install_prefix, rollback_prefix

    if rollback:
        rollback_prefix(prefix, version, as_json=json, dry=dry)
        return
    if version:
        raise UsageError("only --rollback takes a version that is there", where="--version")
    workspace = Workspace.here(wheelhouse)
    request = Request(cuda, triton, torch, archs=tuple(arch or ()))
    install_prefix(
        workspace,
        prefix,
        workspace.request(request, cpython),
        source,
        python=python,
        as_json=json,
        dry=dry,
    )


@verb
@helps(
    prefix="the folder that `invoke install` made",
    version="the key, or its beginning, of the version to remove",
    all="remove all versions, and everything else that an install made",
)
def uninstall(
    c: Context,
    prefix: str = "",
    version: str = "",
    all: bool = False,
    json: bool = False,
    dry: bool = False,
) -> None:
    """Remove a version of a prefix, or all of it; asks nothing."""
    from tdstack.prefix.verbs import uninstall_prefix

    uninstall_prefix(prefix, version, everything=all, as_json=json, dry=dry)


@verb
@helps(
    out="the folder that gets the bundle and the wheels (default: dist/ of the checkout)",
    jobs="number of compilers at a time (default: the CPUs that this process may use)",
)
def compile(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    arch: list[str] | None = None,
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    out: str = "",
    jobs: int = 0,
    json: bool = False,
    dry: bool = False,
) -> None:
    """Compile the kernels ahead of time into wheels, without an engine or a GPU."""
    from tdstack.compile_verb import compile_verb

    workspace = Workspace.here(wheelhouse)
    compile_verb(
        workspace,
        Request(cuda, triton, archs=tuple(arch or ())),
        ForkSource(wheel, incomplete),
        out=Path(out).expanduser().absolute() if out else workspace.root / "dist",
        jobs=jobs,
        as_json=json,
        dry=dry,
    )


@verb
@helps(
    cuda="judge for this CUDA line: 12.4, 12.6, 12.8, 12.9, 13.0 (default: say which can run)",
    record="write this host's facts to FILE, without what names it or its people",
    facts="judge the host that FILE records instead of this one",
    prefix="also look at this prefix of `invoke install`",
    limit="seconds for each question to the host (default: 15 to 90)",
)
def doctor(
    c: Context,
    cuda: str = "",
    record: str = "",
    facts: str = "",
    prefix: str = "",
    limit: float = 0.0,
    json: bool = False,
    dry: bool = False,
) -> None:
    """Say what this host has and lacks for the stack, and what to do about it."""
    from tdstack.doctor.verb import Options
    from tdstack.doctor.verb import doctor as run

    if code := run(Options(cuda, record, facts, prefix, limit, dry), as_json=json):
        raise Exit(code=code)


@verb
@helps(
    tier="import, compile, cpu, gpu, multi-gpu or multi-node, and those below (default: all "
    "that can run here)",
    ranks="number of ranks: 1, 2, 4, 8 (default: the tier's own)",
    self_test="plant faults instead, and see that every one is caught",
    kernels="on GPUs: cubins (nothing may be compiled), jit, or auto (default: cubins if some fit)",
    out="new folder for the report (default: a dated one in smoke-reports/)",
    label="name of this host in the report (default: its own)",
    limit="seconds for each step that waits for other ranks (default: each step's own)",
    image="run inside this image: REF, as `invoke build` made it",
    prefix="run on what `invoke install` made in this folder, with its Python",
    merge="run nothing: put recorded runs together, of files or folders; repeatable",
    compare="run nothing: what changed from one recorded run to another: --compare A --compare B",
)
def smoke(
    c: Context,
    tier: str = "",
    ranks: int = 0,
    self_test: bool = False,
    kernels: str = "auto",
    out: str = "",
    label: str = "",
    limit: float = 0.0,
    image: str = "",
    engine: str = "auto",
    merge: list[str] | None = None,
    compare: list[str] | None = None,
    json: bool = False,
    prefix: str = "",
) -> None:
    """Check this environment and the fused kernels: imports, compilation, ranks of every kind."""
    if merge or compare:
        from tdstack.smoke.look import compare_runs, merge_runs

        if merge and compare:
            raise UsageError("two questions at once", where="--merge, --compare", expected="one")
        found = merge_runs(merge, out) if merge else compare_runs(compare or [])
    else:
        from tdstack.smoke.run import Options
        from tdstack.smoke.run import smoke as run

        options = Options(tier, ranks, kernels, self_test, out, label, limit, image, engine, prefix)
        found = run(Workspace.here().root, options)
    if json:
        console.emit_json(found)


@verb
@helps(
    explain="print which kernel serves M,N,K,W,ARCH, for example 16,8192,1024,8,sm_90",
    launch="on a GPU: time first calls and launches, cubins against Triton",
    fused="on GPUs: time fused calls against the serial way",
    quick="with --fused: fewer M, fewer rounds",
    tune="on GPUs: time candidates, and write a dispatch table for this GPU",
    compare="run nothing: which calls lost speed, of two files of --fused: --compare A --compare B",
    out="new file for records or the table (default: fused.jsonl; with --tune dispatch.toml)",
)
def bench(
    c: Context,
    explain: str = "",
    launch: bool = False,
    fused: bool = False,
    quick: bool = False,
    tune: bool = False,
    compare: list[str] | None = None,
    out: str = "",
    json: bool = False,
) -> None:
    """Print what the dispatch table chooses, time launches or fused calls, tune, or compare."""
    from tdstack import bench as benches

    root = Workspace.here().root
    asked = {"--explain": explain, "--launch": launch, "--fused": fused, "--tune": tune}
    given = [name for name, value in (asked | {"--compare": compare}).items() if value]
    if len(given) > 1:
        raise UsageError("several questions at once", where=", ".join(given), expected="one")
    if not (launch or fused or tune or compare):
        benches.explain(root, explain)
        return
    if compare:
        from tdstack.bench_compare import compare_files

        report = compare_files(compare)
    elif tune:
        from tdstack.bench_tune import tune as run

        report = run(root, out=out or "dispatch.toml")
    elif launch:
        report = benches.launch(root)
    else:
        report = benches.fused(root, quick=quick, out=out or "fused.jsonl")
    if json:
        console.emit_json(report)


@verb
@helps(fix="let ruff mend what it can, and write the pages that are made from data")
def lint(c: Context, fix: bool = False) -> None:
    """Run every linter: Python, shell, YAML, the Ansible role, Dockerfiles, workflows."""
    from tdstack.lint import lint as run

    run(Workspace.here().root, fix=fix)


@task(help={"k": "only tests whose name matches"})
def test(c: Context, k: str = "") -> None:
    """Run pytest; its exit status is the verb's."""
    import pytest

    arguments = ["tests", "kernels/tests", "smoke_tests", "--self-test"]
    if k:
        arguments += ["-k", k]
    elif len(os.sched_getaffinity(0)) > 1:
        # Two, however many cores there are: tests/halves.py knows what may run at once.
        arguments += ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    raise Exit(code=1 if pytest.main(arguments) else 0)
