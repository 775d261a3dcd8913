"""`invoke compile`: the kernels ahead of time, without an engine and without a GPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tdstack.assemble.bundle import MANIFEST, Bundle, read_bundle
from tdstack.assemble.compiler import check_manifest
from tdstack.assemble.cubins import cubins_wheel
from tdstack.assemble.kernels import kernels_wheel
from tdstack.assemble.unpack import unpack_wheel
from tdstack.compiler.environment import Compiler, compiler_of, make_environment
from tdstack.compiler.host import Host, compiler_stack
from tdstack.compiler.publish import check_target, publish_bundle, publish_file
from tdstack.compiler.run import CompileJob, run_compiler
from tdstack.console import emit_json, megabytes, say, table, warn
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.stack import Request, Stack
from tdstack.tags import line_tag
from tdstack.variants import variant_names
from tdstack.workspace import Workspace


@dataclass(frozen=True)
class ArchReport:
    """The cubins of one architecture; `size` is theirs, in bytes."""

    arch: str
    cubins: int
    size: int


@dataclass(frozen=True)
class CompileReport:
    """What was compiled, and the files that came of it.

    `compiled` and `reused` count cubins; `bundle` is a folder; of `wheels` each has path, sha256
    and size in bytes.
    """

    cuda: str
    triton: str
    version: str
    ptxas: str
    archs: tuple[ArchReport, ...]
    compiled: int
    reused: int
    seconds: float
    bundle: str
    wheels: tuple[Mapping[str, object], ...]

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON-ready data (docs/compile.md)."""
        return {"schema": 1, **asdict(self)}


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
    compile; IntegrityError for bytes that are not the lock's.
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
    with tempfile.TemporaryDirectory(prefix="compile-", dir=workspace.store.work()) as name:
        scratch = Path(name)
        own = kernels_wheel(workspace.root, scratch, workspace.store)
        # What the wheel installs is what is compiled, whatever becomes of the checkout meanwhile.
        sources = scratch / "sources"
        unpack_wheel(workspace.store.path(own), own.name, sources, "", lambda _: False)
        say(f"compiling {sum(counts.values())} cubins: {', '.join(counts)}")
        made = scratch / "bundle"
        job = CompileJob(
            stack.cuda, stack.archs, sources, made, workspace.store.cubins(), jobs, variants
        )
        told = run_compiler(compiler, job, scratch, lambda line: say(f"  {line}"))
        bundle = read_bundle(made)
        manifest = json.loads((made / MANIFEST).read_text())
        check_manifest(manifest, stack, counts, str(compiler.folder))
        cubins = cubins_wheel(made, stack.cuda, workspace.root, scratch, workspace.store)
        publish_bundle(bundle, made, target)
        wheels = tuple(_publish(workspace, file, out) for file in (own, cubins))
    report = CompileReport(
        cuda=stack.cuda,
        triton=stack.flavour,
        version=bundle.version,
        ptxas=manifest["cubins"][0]["ptxas"],
        archs=_archs(bundle, stack),
        compiled=int(told["compiled"]),
        reused=int(told["reused"]),
        seconds=round(time.monotonic() - begin, 2),
        bundle=str(target),
        wheels=wheels,
    )
    if as_json:
        emit_json(report.as_dict())
    _show(report)
    return report


def _stack(workspace: Workspace, host: Host, request: Request, source: ForkSource) -> Stack:
    if source.wheel and request.triton == "stock":
        raise UsageError(
            "the stock release is not what the wheel is",
            where="--triton stock --wheel",
            remedy="leave one of them out",
        )
    lock = load_lock(workspace.root)[0]
    return compiler_stack(lock, host, request, lambda: workspace.fork(source, host.python))


def _publish(workspace: Workspace, file: LockedFile, out: Path) -> Mapping[str, object]:
    path = out / file.name
    publish_file(workspace.store.path(file), path)
    return {"path": str(path), "sha256": file.sha256, "size": file.size}


def _archs(bundle: Bundle, stack: Stack) -> tuple[ArchReport, ...]:
    sizes = {arch: [c.size for c in bundle.cubins if c.arch == arch] for arch in stack.archs}
    return tuple(ArchReport(arch, len(own), sum(own)) for arch, own in sizes.items())


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


def _show(report: CompileReport) -> None:
    rows = [[a.arch, str(a.cubins), megabytes(a.size)] for a in report.archs]
    title = f"CUDA {report.cuda}, Triton {report.triton}, ptxas {report.ptxas}, "
    title += f"gemm-allreduce {report.version}"
    table(title, ["arch", "cubins", "size"], rows)
    say(f"{report.compiled} compiled, {report.reused} reused, {report.seconds:.1f} s")
    for place in (report.bundle, *(str(wheel["path"]) for wheel in report.wheels)):
        say(f"  {place}")
