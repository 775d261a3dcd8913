"""`invoke compile`: the kernels ahead of time, without an engine and without a GPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tdstack.assemble.bundle import MANIFEST, read_bundle
from tdstack.assemble.compiler import check_manifest, ptxas_of
from tdstack.assemble.cubins import cubins_wheel
from tdstack.compiler.environment import Compiler, compiler_of, make_environment
from tdstack.compiler.host import Host, compiler_stack, refuse_wheel_of_stock
from tdstack.compiler.job import compile_job
from tdstack.compiler.publish import check_target, publish_bundle, publish_file
from tdstack.compiler.report import CompileReport, require_checked, show
from tdstack.compiler.run import check_bundle, run_compiler
from tdstack.console import emit_json, megabytes, say, warn
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.stack import Request, Stack
from tdstack.tags import line_tag
from tdstack.variants import variant_names
from tdstack.workspace import Workspace


def compile_verb(
    workspace: Workspace,
    request: Request,
    source: ForkSource,
    *,
    out: Path,
    jobs: int,
    as_json: bool,
    dry: bool,
    variants: tuple[str, ...] = (),
) -> CompileReport | None:
    """Compile the kernels of a CUDA line into a bundle and two wheels below `out`.

    `variants` names what to compile of each architecture; none: all that dispatch can choose.
    Raises: UsageError, HostError as compiler_stack does; CheckFailed when a kernel does not
    compile, or, with all files in place, does not pass the checks; IntegrityError for bytes that
    are not the lock's.
    """
    begin = time.monotonic()
    if jobs < 0:
        raise UsageError("not a number of processes", where=f"--jobs {jobs}", expected="1 or more")
    host = Host.here()
    stack = _stack(workspace, host, request, source)
    compiler = compiler_of(stack, host, workspace.root, workspace.store)
    target = out / "cubins" / line_tag(stack.cuda)
    check_target(target)
    for note in stack.notes:
        warn(note)
    names = variant_names(workspace.root, stack.archs)
    chosen = {a: [n for n in names[a] if not variants or n in variants] for a in stack.archs}
    counts = {arch: len(own) for arch, own in chosen.items()}
    if dry:
        _show_dry(workspace, stack, compiler, counts, target, as_json=as_json)
        return None
    if not compiler.made:
        workspace.fetch(compiler.files)
        make_environment(compiler, host, workspace.root, workspace.store)
    with tempfile.TemporaryDirectory(prefix="compile-", dir=workspace.store.work()) as scratch:
        kernels, job = compile_job(workspace, stack, Path(scratch), jobs, variants)
        say(f"compiling {sum(counts.values())} cubins: {', '.join(counts)}")
        told = run_compiler(compiler, job, Path(scratch), lambda line: say(f"  {line}"))
        bundle = read_bundle(job.out)
        manifest = json.loads((job.out / MANIFEST).read_text())
        check_manifest(manifest, stack, counts, str(compiler.folder))
        checked = check_bundle(compiler, job)
        cubins = cubins_wheel(job.out, stack.cuda, workspace.root, Path(scratch), workspace.store)
        publish_bundle(bundle, job.out, target)
        wheels = tuple(_publish(workspace, file, out) for file in (kernels, cubins))
    report = CompileReport(
        cuda=stack.cuda,
        triton=stack.flavour,
        version=bundle.version,
        ptxas=ptxas_of(stack),
        archs=tuple(checked["bundles"][0]["archs"]),
        findings=tuple(checked["findings"]),
        compiled=told["compiled"],
        reused=told["reused"],
        seconds=round(time.monotonic() - begin, 2),
        bundle=str(target),
        wheels=wheels,
    )
    show(report)
    require_checked(report)
    if as_json:
        emit_json(report.as_dict())
    return report


def _stack(workspace: Workspace, host: Host, request: Request, source: ForkSource) -> Stack:
    refuse_wheel_of_stock(request, source)
    lock = load_lock(workspace.root)[0]
    return compiler_stack(lock, host, request, lambda: workspace.fork(source, host.python))


def _publish(workspace: Workspace, file: LockedFile, out: Path) -> Mapping[str, object]:
    path = out / file.name
    publish_file(workspace.store.path(file), path)
    return {"path": str(path), "sha256": file.sha256, "size": file.size}


def _show_dry(
    workspace: Workspace,
    stack: Stack,
    compiler: Compiler,
    counts: Mapping[str, int],
    target: Path,
    *,
    as_json: bool,
) -> None:
    absent = [] if compiler.made else [f for f in compiler.files if not workspace.store.has(f)]
    if as_json:
        plan = {
            "schema": 1,
            "cuda": stack.cuda,
            "triton": stack.flavour,
            "cubins": dict(counts),
            "compiler": [f.model_dump() for f in compiler.files],
            "fetch_bytes": sum(f.size for f in absent),
            "bundle": str(target),
        }
        emit_json(plan)
    names = ", ".join(f.name for f in compiler.files)
    say(f"dry run: the compiler is made of {names}")
    say(f"  {len(absent)} files to fetch, {megabytes(sum(f.size for f in absent))}")
    for arch, count in counts.items():
        say(f"  {arch}: {count} cubins")
    say(f"  they would go to {target}")
