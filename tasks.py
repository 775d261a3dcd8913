"""Invoke verbs: parse, call tdstack, print. `invoke --list` shows them all."""

from __future__ import annotations

import errno
import functools
import inspect
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from tdstack import console, sglang, verbs
from tdstack.errors import HostError, TdstackError, UsageError
from tdstack.fork.model import ForkSource
from tdstack.stack import Request
from tdstack.workspace import Workspace

HELP = {
    "cuda": "CUDA line: 12.4, 12.6, 12.8, 12.9, 13.0 (experimental)",
    "triton": "distributed (default) or stock",
    "torch": "cuda (default), cpu or none",
    "platform": "linux/amd64 or linux/arm64",
    "arch": "compile kernels for this GPU architecture, such as sm_90; repeatable (default: all)",
    "python": "Python of the image (default: the base's)",
    "base": "rootfs (default), rootfs:SUITE, or an image as REF@sha256:...",
    "cpython": "a stand-alone CPython to be the image's Python: FILE, or FILE#sha256=HEX",
    "wheel": "a Triton-distributed wheel: FILE, or URL#sha256=HEX",
    "wheelhouse": "a folder or file that may supply any pinned file",
    "incomplete": "take a Triton-distributed wheel that lacks packages its own code imports",
    "prefix": "the folder of a Python environment, such as a venv",
    "engine": "auto (default), buildah or docker",
    "output": "also write the image to this file, as an OCI archive",
    "with_": "an optional layer: sglang (no CUDA line can hold it yet, and this says why)",
    "registry": "HOST[:PORT]/PATH of the images (default: $TDSTACK_REGISTRY)",
    "key": "public key(s) that must have signed: FILE[:FILE...] (default: $TDSTACK_KEY)",
    "json": "machine-readable result on stdout",
    "dry": "no side effects",
}


def verb(function: Callable[..., None]) -> Any:
    """Make a task of `function`: errors become messages and exit codes."""

    @functools.wraps(function)
    def wrapped(c: Context, *args: Any, **kwargs: Any) -> None:
        if "dry" in kwargs:
            kwargs["dry"] = kwargs["dry"] or bool(c.config.run.dry)
        tidy_up_when_ended()
        try:
            function(c, *args, **kwargs)
        except TdstackError as error:
            end_with(error, error, kwargs)
        except OSError as error:
            # Disks fill up and rights are missing wherever files are written.
            full = error.errno == errno.ENOSPC
            shown = HostError(
                "the disk is full" if full else "a file cannot be read or written",
                where=str(error.filename or ""),
                got=error.strerror or str(error),
                remedy="free some space and run the verb again; it resumes" if full else "",
            )
            end_with(shown, error, kwargs)
        except KeyboardInterrupt as error:
            console.say("interrupted; run the verb again, it resumes")
            raise Exit(code=130) from error

    names = function.__code__.co_varnames[1 : function.__code__.co_argcount]
    helps = {name: HELP[name] for name in names if name in HELP}
    iterable = [name for name in names if name in ("arch", "merge", "compare", "keep", "with_")]
    help_texts = {**helps, **getattr(function, "helps", {})}
    named = ["ref"] if "ref" in names and named_after(function.__name__) else []
    if named:
        # Only an argument without a default is taken from its place.
        given = inspect.signature(function)
        bare = [
            p.replace(default=None) if p.name in named else p for p in given.parameters.values()
        ]
        wrapped.__signature__ = given.replace(parameters=bare)  # type: ignore[attr-defined]
    # None: Invoke takes every argument without a default from its place.
    return task(help=help_texts, iterable=iterable, positional=named or None)(wrapped)


def named_after(word: str) -> bool:
    """Return whether the command line names something right after the verb `word`.

    Invoke has no positional argument that may be left out: it is one when it is there.
    """
    following = sys.argv[sys.argv.index(word) + 1 :] if word in sys.argv else []
    return bool(following) and not following[0].startswith("-")


def tidy_up_when_ended() -> None:
    """Make an end from outside (a scheduler's, a closed terminal) what a Ctrl-C is.

    Without this it would leave containers that go on, and what they write to.
    """

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one, and means it
            signal.signal(number, interrupt)


def end_with(error: TdstackError, cause: BaseException, options: dict[str, Any]) -> NoReturn:
    """End the verb with the error's message, as JSON too when asked, and its exit code."""
    console.show_error(error)
    if options.get("json"):
        console.emit_json(error.as_dict())
    raise Exit(code=int(error.code)) from cause


def helps(**texts: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Attach help for options that only one verb has."""

    def attach(function: Callable[..., None]) -> Callable[..., None]:
        function.helps = texts  # type: ignore[attr-defined]
        return function

    return attach


@verb
def plan(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    engine: str = "auto",
    with_: list[str] | None = None,
    registry: str = "",
    json: bool = False,
) -> None:
    """Show what a build would hold, and where each layer would come from."""
    workspace = Workspace.here(wheelhouse)
    sglang.refuse(workspace.root, with_ or (), as_json=json)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    request = workspace.request(asked, cpython)
    verbs.plan(
        workspace,
        request,
        source=ForkSource(wheel, incomplete),
        engine=engine,
        as_json=json,
        registry=registry,
    )


@verb
@helps(
    upgrade="move pins to the newest that images/versions.toml admits",
    only="with --upgrade: python or base",
    check="fail when versions.lock does not answer images/versions.toml",
    wheel="record the hash of this Triton-distributed wheel: FILE, or URL#sha256=HEX",
)
def lock(
    c: Context,
    upgrade: bool = False,
    only: str = "",
    check: bool = False,
    wheel: str = "",
    incomplete: bool = False,
    dry: bool = False,
) -> None:
    """Resolve images/versions.toml into versions.lock, or record a Triton-distributed wheel."""
    if wheel:
        from tdstack.fork_verbs import record_wheel

        record_wheel(Workspace.here(), ForkSource(wheel, incomplete), dry=dry)
        return
    verbs.lock(Workspace.here(), upgrade=upgrade, only=only, check=check, dry=dry)


@verb
def fetch(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    json: bool = False,
    dry: bool = False,
) -> None:
    """Download every file of the plan, by hash, into the store."""
    workspace = Workspace.here(wheelhouse)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    request = workspace.request(asked, cpython)
    verbs.fetch(
        workspace,
        request,
        source=ForkSource(wheel, incomplete),
        as_json=json,
        dry=dry,
    )


@verb
def build(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    engine: str = "auto",
    output: str = "",
    with_: list[str] | None = None,
    registry: str = "",
    key: str = "",
    json: bool = False,
    dry: bool = False,
) -> None:
    """Build the image; layers that are there already, or in a registry, are not built again."""
    workspace = Workspace.here(wheelhouse)
    sglang.refuse(workspace.root, with_ or (), as_json=json)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    request = workspace.request(asked, cpython)
    verbs.build(
        workspace,
        request,
        source=ForkSource(wheel, incomplete),
        engine=engine,
        output=output,
        as_json=json,
        dry=dry,
        registry=registry,
        key=key,
    )


@verb
@helps(
    sign="sign every image with this key: PRIVATE.pem (default: TDSTACK_SIGN)",
    compression="zstd (default), gzip or none; named, it also replaces layers in another form",
    force="replace what the registry has under a layer's key, if it is another image",
    prune="push nothing; show what no rolling tag reaches any more",
    yes="with --prune: delete it",
    keep="with --prune: keep what this tag reaches, too; repeatable",
)
def push(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    engine: str = "auto",
    registry: str = "",
    sign: str = "",
    compression: str = "",
    force: bool = False,
    prune: bool = False,
    yes: bool = False,
    keep: list[str] | None = None,
    json: bool = False,
) -> None:
    """Bring an image and its layers into a registry, or prune the registry."""
    from tdstack.ship import verbs as ship

    if prune:
        ship.prune(registry, keep or (), yes=yes, as_json=json)
        return
    if yes or keep:
        raise UsageError("only --prune deletes anything", where="--yes, --keep")
    workspace = Workspace.here(wheelhouse)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    ship.push(
        workspace,
        workspace.request(asked, cpython),
        ForkSource(wheel, incomplete),
        engine,
        ship.PushOptions(registry, sign, compression, force),
        as_json=json,
    )


@verb
@helps(force="take an image that is not the lock's, with warnings; wrong digests are never taken")
def pull(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    engine: str = "auto",
    registry: str = "",
    key: str = "",
    force: bool = False,
    json: bool = False,
) -> None:
    """Bring a prebuilt image from a registry, compare it with the lock, and verify it."""
    from tdstack.ship import verbs as ship

    workspace = Workspace.here(wheelhouse)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    ship.pull(
        workspace,
        workspace.request(asked, cpython),
        ForkSource(wheel, incomplete),
        engine,
        registry=registry,
        key=key,
        force=force,
        as_json=json,
    )


@verb
def quickstart(
    c: Context,
    cuda: str = "12.4",
    torch: str = "cuda",
    arch: list[str] | None = None,
    engine: str = "auto",
    wheelhouse: str = "",
    json: bool = False,
) -> None:
    """Plan, fetch, build the stock flavour for one GPU architecture, verify it."""
    from tdstack.quickstart import quickstart as run

    request = Request(cuda=cuda, triton="stock", torch=torch, archs=tuple(arch or ()))
    run(Workspace.here(wheelhouse), request, engine=engine, as_json=json)


@verb
@helps(layer="triton: Triton-distributed in place of the environment's Triton")
def install(
    c: Context,
    prefix: str = "",
    layer: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    json: bool = False,
    dry: bool = False,
) -> None:
    """Put Triton-distributed into an environment, or leave that as it was."""
    from tdstack.fork_verbs import install_verb

    if layer != "triton":
        raise UsageError(
            "only one layer can be installed outside an image so far",
            where=f"--layer {layer}" if layer else "--layer",
            expected="triton",
        )
    source = ForkSource(wheel, incomplete)
    install_verb(Workspace.here(wheelhouse), prefix, source, as_json=json, dry=dry)


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
    ref="an image, right after the verb: HOST/PATH:TAG in a registry, or one of the engine",
    triton="what must be there: distributed or stock (default: what there are traces of)",
    fix="mend what can be mended safely",
    deep="with a manifest: read every file's sha256; of an image in a registry: every layer's",
    rebuild="build this image again from the lock, and compare every byte",
    platform="of an image in a registry: linux/amd64 (default) or linux/arm64",
    engine="of an image in an engine: auto (default), buildah or docker",
)
def verify(
    c: Context,
    ref: str = "",
    key: str = "",
    platform: str = "linux/amd64",
    engine: str = "auto",
    prefix: str = "",
    wheel: str = "",
    incomplete: bool = False,
    triton: str = "",
    fix: bool = False,
    deep: bool = False,
    rebuild: str = "",
    json: bool = False,
) -> None:
    """Check an image (REF), an environment (--prefix) or a Triton-distributed wheel (--wheel)."""
    if rebuild:
        from tdstack.diff.rebuild import rebuild_verb

        if ref or prefix or triton or fix or deep or key:
            raise UsageError(
                "a rebuild is a check of its own",
                where="--rebuild",
                expected="--rebuild REF with --engine, --platform, --wheel and --incomplete alone",
            )
        rebuild_verb(
            Workspace.here(),
            rebuild,
            ForkSource(wheel, incomplete),
            engine=engine,
            platform=platform,
            as_json=json,
        )
        return
    if ref:
        from tdstack.attest.examine import Options
        from tdstack.attest.keys import public_keys_of
        from tdstack.attest.verbs import is_local, verify_reference

        if prefix or wheel or triton or fix or incomplete:
            raise UsageError(
                "an image is checked with --key, --platform, --engine and --deep alone",
                where="invoke verify REF",
                remedy="leave the image out to check an environment or a wheel",
            )
        keys = () if is_local(ref) and not key else public_keys_of(key)
        options = Options(keys, platform, deep)
        verify_reference(Workspace.here(), ref, options, engine=engine, as_json=json)
        return
    from tdstack.fork_verbs import inspect_wheel, verify_verb

    if key:
        raise UsageError("environments are not signed", where="--key", expected="an image: REF")
    source = ForkSource(wheel, incomplete)
    if wheel and not prefix:
        inspect_wheel(Workspace.here(), source, as_json=json)
        return
    if triton not in ("", "distributed", "stock"):
        raise UsageError(
            f"unknown value {triton!r}", where="--triton", expected="distributed, stock"
        )
    here = Workspace.here()
    verify_verb(here, prefix, triton, source, fix=fix, deep=deep, as_json=json)


@verb
@helps(
    image="of this image instead of a plan: HOST/PATH:TAG in a registry, or one of the engine",
    out="write it to this file (default: stdout)",
)
def sbom(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    image: str = "",
    engine: str = "auto",
    out: str = "",
) -> None:
    """Print the bill of materials of a plan or an image, as CycloneDX JSON."""
    from tdstack.attest.verbs import sbom_verb

    workspace = Workspace.here(wheelhouse)
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    request = workspace.request(asked, cpython)
    sbom_verb(
        workspace, request, ForkSource(wheel, incomplete), image=image, engine=engine, out=out
    )


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

        options = Options(tier, ranks, kernels, self_test, out, label, limit, image, engine)
        found = run(Workspace.here().root, options)
    if json:
        console.emit_json(found)


@verb
@helps(
    explain="print which kernel serves M,N,K,W,ARCH, for example 16,8192,1024,8,sm_90",
    launch="on a GPU: time first calls and launches, cubins against Triton",
)
def bench(
    c: Context,
    explain: str = "",
    launch: bool = False,
    fused: bool = False,
    quick: bool = False,
    out: str = "fused.jsonl",
    json: bool = False,
) -> None:
    """Print what the dispatch table chooses, or time launches, or fused against serial calls."""
    from tdstack import bench as benches

    root = Workspace.here().root
    if launch or fused:
        report = benches.launch(root) if launch else benches.fused(root, quick=quick, out=out)
        if json:
            console.emit_json(report)
        return
    benches.explain(root, explain)


@verb
@helps(
    contents="images (default): as a registry has them; wheelhouse: all that a build needs",
    out="the file to write",
    split="size of each part, such as 4G: writes FILE.000, FILE.001 and their hashes",
    registry="take the images from HOST/PATH instead of the engine; with --unpack: push them there",
    sign="private key that signs bundle and images (default: $TDSTACK_SIGN)",
    tools="with the wheels of the toolkit's own tools (default)",
    unpack="check this bundle, of one file or of parts",
    load="with --unpack: images into the engine, files into the store",
    into="with --unpack: lay everything out in this new folder",
)
def bundle(
    c: Context,
    cuda: str = "12.4",
    triton: str = "distributed",
    torch: str = "cuda",
    platform: str = "linux/amd64",
    arch: list[str] | None = None,
    python: str = "",
    base: str = "rootfs",
    cpython: str = "",
    wheel: str = "",
    incomplete: bool = False,
    wheelhouse: str = "",
    engine: str = "auto",
    contents: str = "images",
    out: str = "",
    split: str = "",
    registry: str = "",
    sign: str = "",
    key: str = "",
    tools: bool = True,
    unpack: str = "",
    load: bool = False,
    into: str = "",
    json: bool = False,
) -> None:
    """Carry an image, or all it is built from, to a host without a network: one file."""
    from tdstack.bundle.verb import bundle_verb, unpack_verb

    workspace = Workspace.here(wheelhouse)
    if unpack:
        if out or split or sign:
            raise UsageError("a bundle is made or unpacked", where="--unpack with --out")
        unpack_verb(
            workspace,
            unpack,
            into_engine=load,
            registry=registry,
            into=into,
            key=key,
            engine=engine,
            as_json=json,
        )
        return
    if load or into:
        raise UsageError("which bundle?", where="--unpack", expected="--unpack FILE")
    asked = Request(cuda, triton, torch, platform, python or None, base, archs=tuple(arch or ()))
    bundle_verb(
        workspace,
        workspace.request(asked, cpython),
        ForkSource(wheel, incomplete),
        contents=contents,
        out=out,
        split=split,
        registry=registry,
        sign=sign,
        key=key,
        tools=tools,
        engine=engine,
        as_json=json,
    )


@verb
@helps(
    a="image, OCI archive, lock (FILE or REV:versions.lock), or container:NAME",
    b="what it is compared with, of the same forms",
    files="list every file instead of a summary by folder",
)
def diff(
    c: Context,
    a: str,
    b: str,
    engine: str = "auto",
    platform: str = "linux/amd64",
    files: bool = False,
    json: bool = False,
) -> None:
    """Compare two images, archives, locks or containers: packages, files, layers, cubins."""
    from tdstack.diff.verb import diff_verb

    diff_verb(
        Workspace.here(), a, b, engine=engine, platform=platform, all_files=files, as_json=json
    )


@verb
@helps(fix="let ruff mend what it can")
def lint(c: Context, fix: bool = False) -> None:
    """Run ruff, mypy --strict, shellcheck, hadolint and zizmor."""
    from tdstack.lint import lint as run

    run(Workspace.here().root, fix=fix)


@task(help={"k": "only tests whose name matches"})
def test(c: Context, k: str = "") -> None:
    """Run pytest; its exit status is the verb's."""
    import pytest

    arguments = ["tests", "kernels/tests", "smoke_tests", "--self-test"]
    arguments += ["-k", k] if k else []
    raise Exit(code=1 if pytest.main(arguments) else 0)


# Without this a closed stdout would end in a traceback instead of a plain exit.
sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
