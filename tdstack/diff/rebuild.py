"""`invoke verify --rebuild REF`: the image made again from the lock, and compared byte for byte.

Nothing that an earlier build left is taken: no layer, no root file system, no cubin. Only the
files that the lock names by hash come from the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tdstack.assemble.stored import steps_of
from tdstack.attest.lockslice import LockSlice
from tdstack.build import Builder
from tdstack.console import Stopwatch, emit_json, say, table
from tdstack.cpython import take_cpython
from tdstack.diff.original import Configuration, Original, export_layers, find_original
from tdstack.diff.rebuilt import (
    LayerVerdict,
    RebuildReport,
    configuration_differences,
    judge,
    pair_layers,
)
from tdstack.engines.base import Engine
from tdstack.engines.choose import choose_engine
from tdstack.engines.throwaway import Renamed, private_buildah, remove_store
from tdstack.errors import CheckFailed, HostError, IntegrityError
from tdstack.fork.acquire import by_version
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.lock.model import LockedFile
from tdstack.plan import LABEL, Plan, make_plan
from tdstack.space import check_room
from tdstack.stack import Request, is_rootfs, make_stack
from tdstack.verbs import pinned_base
from tdstack.wheelhouse.store import Store
from tdstack.workspace import Workspace

SHOWN = 20


def rebuild_verb(
    workspace: Workspace,
    ref: str,
    source: ForkSource,
    *,
    engine: str,
    platform: str,
    as_json: bool,
) -> RebuildReport:
    """Build an image again and compare it with the original.

    Raises: CheckFailed when this checkout makes another image of the same choices; IntegrityError,
    with the report, when the same choices give other bytes; what a build raises.
    """
    chosen = choose_engine(engine).engine
    original = find_original(chosen, ref, platform)
    watch = Stopwatch()
    # One at a time: what a killed one left is removed by the next.
    with (
        workspace.store.locked("rebuild"),
        _scratch(workspace.store) as folder,
        _engine_for(chosen, folder / "engine") as fresh,
    ):
        plan = plan_for(workspace, original.slice, source, fresh)
        check_key(original, plan)
        files = _materials(plan)
        with watch.step("fetch"):
            workspace.fetch(files)
        store = _fresh_store(workspace.store, files, folder / "cache")
        with watch.step("build"):
            Builder(plan, fresh, store, workspace.root, say).build(lambda _: None)
        with watch.step("compare"):
            report = _compare(original, plan, fresh, folder)
    report = replace(report, seconds=watch.seconds)
    _show(report)
    if not report.equal:
        raise IntegrityError(
            "the rebuild is not the image",
            where=ref,
            expected=f"image id {report.id[:12]}, {report.layers} layers",
            got=f"image id {report.rebuilt[:12]}; differing: {_words(report)}",
            remedy="`invoke diff` shows what an image holds; do not trust this one until it is "
            "known why it differs",
            details=report.as_dict(),
        )
    say(f"{ref} was rebuilt: image id {report.id[:12]}, {report.layers} layers, byte for byte")
    if as_json:
        emit_json(report.as_dict())
    return report


def plan_for(workspace: Workspace, slice_: LockSlice, source: ForkSource, engine: Engine) -> Plan:
    """Return the plan that this checkout makes of the choices in an image.

    Raises: HostError when Triton-distributed, or a stand-alone CPython, is not at hand; the
    errors of planning.
    """
    request = Request(
        cuda=slice_.cuda,
        triton=slice_.triton,
        torch=slice_.torch,
        platform=slice_.platform,
        python=slice_.python,
        base=slice_.base.image,
        archs=slice_.archs,
    )
    if file := slice_.base.cpython:
        if not workspace.store.has(file):
            raise _lacking(file, "put it there with `invoke plan --cpython FILE`")
        taken = take_cpython(f"{workspace.store.path(file)}#sha256={file.sha256}", workspace.store)
        request = replace(request, cpython=replace(taken, file=file))
    if slice_.fork:
        version = slice_.version_of("triton")
        fork = by_version(version, workspace.store)
        if source.wheel:
            fork = workspace.fork(source, slice_.python)
        if fork is None:
            raise _lacking(slice_.fork, "name the wheel with --wheel FILE")
        request = replace(request, fork=fork)
    if not is_rootfs(request.base):
        request = pinned_base(engine, workspace, request, source)
    return make_plan(make_stack(load_lock(workspace.root)[0], request), workspace.root)


def check_key(original: Original, plan: Plan) -> None:
    """Compare the image's content key with the plan's. Pure.

    Raises: CheckFailed: such a rebuild would prove nothing.
    """
    key = original.configuration.labels.get(f"{LABEL}.key", "")
    if key == plan.final.key:
        return
    slices = original.slice.digest, plan.lock_slice
    other = "its lock differs" if slices[0] != slices[1] else "its recipes or sources differ"
    raise CheckFailed(
        "this checkout is not the one that the image was built from",
        where=original.ref,
        expected=f"content key {key[:20] or '(the image has none)'}",
        got=f"content key {plan.final.key[:20]}: {other}",
        remedy="check out the commit that it was built from; `invoke diff REF versions.lock` "
        "says which packages differ",
    )


def _compare(original: Original, plan: Plan, engine: Engine, folder: Path) -> RebuildReport:
    stored = engine.image(plan.final.ref)
    assert stored is not None
    titles = [step.made_by for step in steps_of(stored.labels)]
    pairs = pair_layers(original.diff_ids, stored.diff_ids, titles)
    differing = [pair for pair in pairs if not pair.equal]
    verdicts: list[LayerVerdict] = []
    if differing:
        say(f"  {len(differing)} of {len(pairs)} layers differ; comparing their files")
        theirs, ours = folder / "theirs", folder / "ours"
        theirs.mkdir()
        ours.mkdir()
        original.fetch({pair.theirs for pair in differing}, theirs)
        check_room(ours, 2 * stored.size, "for the layers of the rebuilt image")
        export_layers(engine, plan.final.ref, {pair.ours for pair in differing}, ours)
        verdicts = [judge(pair, theirs, ours) for pair in differing]
    made = Configuration(stored.env, stored.labels)
    return RebuildReport(
        original.ref,
        original.id,
        stored.id,
        engine.describe(),
        len(pairs),
        tuple(verdicts),
        configuration_differences(original.configuration, made),
    )


@contextmanager
def _scratch(store: Store) -> Iterator[Path]:
    folder = store.work() / "rebuild"
    remove_store(folder / "engine")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _engine_for(chosen: Engine, folder: Path) -> Iterator[Engine]:
    if chosen.name == "buildah":
        say("rebuilding in a buildah store of its own")
        with private_buildah(folder) as engine:
            yield engine
        return
    # A daemon has one store. It tells images apart by their bytes, so that layers of equal bytes
    # are shared there; none is taken for the plan's before it was made again.
    renamed = Renamed(chosen, "rebuild")
    say(f"rebuilding in the store of {chosen.describe()}, under names that are removed")
    try:
        yield renamed
    finally:
        renamed.clear()


def _fresh_store(store: Store, files: list[LockedFile], root: Path) -> Store:
    """Return a store that has `files`, by hash, and nothing that was made of them."""
    fresh = Store(root)
    for file in files:
        path = store.verify(file)
        if not fresh.path(file).exists():
            try:
                os.link(path, fresh.path(file))
            except OSError:  # another file system
                fresh.path(file).symlink_to(path)
    return fresh


def _materials(plan: Plan) -> list[LockedFile]:
    own = [plan.stack.cpython.file] if plan.stack.cpython else []
    return [*plan.files, *own]


def _lacking(file: LockedFile, remedy: str) -> HostError:
    return HostError(
        f"{file.name} is not in the store", where="rebuild", expected=file.sha256, remedy=remedy
    )


def _show(report: RebuildReport) -> None:
    rows = [
        [layer.title, file.path, "; ".join(file.what)]
        for layer in report.differing
        for file in layer.files[:SHOWN]
    ]
    if rows:
        table("differing files: image -> rebuild", ["layer", "file", "what"], rows)
    for layer in report.differing:
        if len(layer.files) > SHOWN:
            say(f"... and {len(layer.files) - SHOWN} more in {layer.title} (--json has all)")
    for line in report.configuration:
        say(f"  {line}")


def _words(report: RebuildReport) -> str:
    layers = [
        f"{layer.title} ({', '.join(f.path for f in layer.files[:3])}"
        + (f" and {len(layer.files) - 3} more)" if len(layer.files) > 3 else ")")
        for layer in report.differing
    ]
    return "; ".join(layers or [*report.configuration[:3]]) or "the configuration"
