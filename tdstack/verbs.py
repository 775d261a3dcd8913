"""The verbs, as functions: what each Invoke task calls and returns as data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tdstack.baseimage import probe_base
from tdstack.build import Builder, present_layers
from tdstack.console import emit_json, megabytes, say, table, warn
from tdstack.engines.base import Engine, RunRequest
from tdstack.engines.choose import choose_engine
from tdstack.errors import CheckFailed, HostError, IntegrityError, UsageError
from tdstack.fork.commit import build_from_commit
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock, write_lock
from tdstack.lock.update import PARTS, check_lock, update_lock
from tdstack.plan import PREFIX, Plan
from tdstack.report import BuildReport
from tdstack.stack import Request, is_rootfs
from tdstack.workspace import Workspace

if TYPE_CHECKING:
    from tdstack.attest.bundles import Keyless
    from tdstack.ship.cache import LayerCache


def lock(workspace: Workspace, *, upgrade: bool, only: str, check: bool, dry: bool) -> None:
    """Resolve images/versions.toml into versions.lock, or check that it was."""
    if check:
        check_lock(workspace.root)
        say("versions.lock answers images/versions.toml")
        return
    if only and only not in PARTS:
        raise UsageError(f"unknown part {only!r}", where="--only", expected=", ".join(PARTS))
    if only and not upgrade:
        raise UsageError("--only says which pins --upgrade moves", where="--only")
    moved = ([only] if only else list(PARTS)) if upgrade else []
    new = update_lock(workspace.root, upgrade=moved, fetch_debs=workspace.fetch_debs, say=say)
    if dry:
        say("dry run: versions.lock is left alone")
    elif write_lock(workspace.root, new):
        say(f"wrote versions.lock: {len(new.packages)} packages, {len(new.closures)} closures")
    else:
        say("versions.lock is up to date")


def plan(
    workspace: Workspace,
    request: Request,
    *,
    source: ForkSource,
    engine: str,
    as_json: bool,
    registry: str = "",
) -> Plan:
    """Show what a build would do and where each layer would come from."""
    made = workspace.plan(request, source)
    origin = _origins(made, engine, layer_cache(registry, "", made))
    if as_json:
        data = made.as_dict()
        layers = data["layers"]
        assert isinstance(layers, list)
        for layer, place in zip(layers, origin, strict=True):
            layer["from"] = place
        emit_json(data)
        return made
    _warn_of(made)
    rows = []
    for layer, place in zip(made.layers, origin, strict=True):
        rows.append([layer.name, "", f"from {place}", "", layer.key[:20]])
        if layer.name == "base" and made.stack.rootfs:
            rootfs = made.stack.rootfs
            debs = f"{len(rootfs.packages)} Debian packages"
            size = megabytes(rootfs.tar.size)
            rows.append(["", f"rootfs {rootfs.suite}", debs, size, rootfs.tar.sha256[:12]])
        for package in layer.packages:
            file = package.file
            where = package.origin if file else f"{package.origin}: not acquired yet"
            digest, size = (file.sha256[:12], megabytes(file.size)) if file else ("", "")
            rows.append(["", f"{package.name} {package.version}", where, size, digest])
        if layer.name == "kernels":
            each = ", ".join(f"{arch} {count}" for arch, count in made.cubins.items())
            rows.append(["", f"{sum(made.cubins.values())} cubins", f"compiled: {each}", "", ""])
    title = f"CUDA {made.stack.cuda}, Triton {made.stack.flavour}, torch {made.stack.torch}, "
    title += f"Python {made.stack.python}, {made.stack.platform}, base {made.stack.base}"
    table(title, ["layer", "package", "source", "size", "key / sha256"], rows)
    say(f"image: {made.final.tags[0]}")
    return made


def fetch(
    workspace: Workspace, request: Request, *, source: ForkSource, as_json: bool, dry: bool
) -> None:
    """Bring every file of the plan into the store."""
    made = acquired(workspace, request, source, dry=dry)
    files = made.files
    if dry:
        absent = [f for f in files if not workspace.store.has(f)]
        missing_bytes = sum(f.size for f in absent)
        if as_json:
            emit_json({"files": len(files), "missing": len(absent), "bytes": missing_bytes})
        say(f"dry run: {len(absent)} of {len(files)} files to fetch, {megabytes(missing_bytes)}")
        return
    begin = time.monotonic()
    absent = workspace.verify_present(files)
    done = workspace.fetch(absent)
    report = {
        "files": len(files),
        "already": len(files) - len(absent),
        "downloaded_bytes": done.downloaded_bytes,
        "seconds": round(time.monotonic() - begin, 2),
        "store": str(workspace.store.root),
    }
    if as_json:
        emit_json(report)
    say(f"{len(files)} files in the store, {len(absent)} fetched")


def build(
    workspace: Workspace,
    request: Request,
    *,
    source: ForkSource,
    engine: str,
    output: str,
    as_json: bool,
    dry: bool,
    registry: str = "",
    key: str = "",
    keyless: Keyless | None = None,
) -> BuildReport | None:
    """Build the image; return the report, or None for a dry run."""
    if dry:
        plan(workspace, request, source=source, engine=engine, as_json=as_json, registry=registry)
        return None
    if output and not Path(output).absolute().parent.is_dir():
        raise UsageError("no such folder", where=f"--output {output}")
    choice = choose_engine(engine)
    say(f"engine: {choice.reason}")
    request = pinned_base(choice.engine, workspace, request, source)
    made = acquired(workspace, request, source, dry=False)
    _warn_of(made)
    cache = layer_cache(registry, key, made, keyless)
    builder = Builder(made, choice.engine, workspace.store, workspace.root, say, cache)
    report = builder.build(
        lambda files: _ignore(workspace.fetch(files)), Path(output) if output else None
    )
    if as_json:
        emit_json(report.as_dict())
    show_report(report)
    return report


def verify_image(engine: Engine, ref: str) -> list[Mapping[str, object]]:
    """Run tdstack-verify in the image as an arbitrary user of group 0; return its findings.

    Raises: CheckFailed, or IntegrityError when bytes differ, with every finding.
    """
    command = [f"/{PREFIX}/bin/tdstack-verify", "--json"]
    done = engine.run(RunRequest(ref, command, user="12345:0"))
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise CheckFailed(
            "tdstack-verify gave no report",
            where=ref,
            got=f"exit status {done.status}: {(done.stderr or done.stdout)[-600:]}",
        ) from error
    findings: list[Mapping[str, object]] = report["findings"]
    bad = [f for f in findings if not f["ok"]]
    if bad or done.status:
        kind = IntegrityError if done.status == 4 else CheckFailed
        raise kind(
            "the image does not hold what its lock slice says",
            where=ref,
            got="; ".join(f"{f['check']}: {f['detail']}" for f in bad),
            remedy="build it again from a clean store",
        )
    return findings


def acquired(workspace: Workspace, request: Request, source: ForkSource, *, dry: bool) -> Plan:
    """Return a plan whose every file is known, building Triton-distributed if need be."""
    made = workspace.plan(request, source)
    if all(p.file for p in made.stack.all_packages()) or dry:
        return made
    pinned = load_lock(workspace.root)[0].triton_distributed
    say(f"Triton-distributed: no wheel given, building {pinned.repository} at {pinned.commit[:12]}")
    build_from_commit(pinned, workspace.store, made.stack.python)
    return workspace.plan(request, source)


def pinned_base(
    engine: Engine, workspace: Workspace, request: Request, source: ForkSource
) -> Request:
    """Bring a base image into the engine; return the request with its digest and its facts."""
    if is_rootfs(request.base):
        return request
    # A plan of what is known so far: a wheel or a Python that cannot fit ends the verb here.
    python = workspace.plan(request, source).stack.python
    if not ("@sha256:" in request.base and engine.image(request.base)):
        pinned = engine.pull(request.base)
        if pinned != request.base:
            say(f"base: {request.base} is {pinned}; name it so to build the same again")
        request = replace(request, base=pinned)
    wanted = "" if request.cpython else python
    return replace(request, base_facts=probe_base(engine, request.base, wanted))


def show_report(report: BuildReport) -> None:
    """Print layers, sizes and times for people."""
    rows = [
        [
            layer.name,
            layer.source,
            megabytes(layer.size),
            megabytes(layer.budget),
            str(len(layer.parts)),
            layer.key[:20],
        ]
        for layer in report.layers
    ]
    title = f"{report.ref} ({report.engine})"
    table(title, ["layer", "from", "size", "budget", "parts", "key"], rows)
    total = sum(layer.size for layer in report.layers)
    times = ", ".join(f"{name} {value:.1f} s" for name, value in report.seconds.items())
    say(
        f"image id {report.image_id[:12]}, {megabytes(total)} unpacked"
        + (f"; {times}" if times else "")
    )


def layer_cache(
    registry: str, key: str, made: Plan, keyless: Keyless | None = None
) -> LayerCache | None:
    """Return the registry that layers may come from, or None where none is named.

    Raises: UsageError.
    """
    if not (registry or os.environ.get("TDSTACK_REGISTRY")):
        return None
    from tdstack.ship.cache import LayerCache  # HTTP and signatures take 0.3 s to import

    return LayerCache.of(registry, key, made.stack.platform, keyless)


def _origins(made: Plan, engine: str, cache: LayerCache | None) -> list[str]:
    try:
        present = present_layers(made, choose_engine(engine).engine)
    except HostError:
        present = 0  # a plan needs no engine
    shipped = cache.count(made) if cache and present < len(made.layers) else 0
    return [
        "local" if n < present else "registry" if n < shipped else "build"
        for n in range(len(made.layers))
    ]


def _warn_of(made: Plan) -> None:
    for note in made.stack.notes:
        warn(note)


def _ignore(_: object) -> None:
    return None
