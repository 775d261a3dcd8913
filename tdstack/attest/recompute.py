"""The plan that this checkout makes of what an image says of itself. Pure but for the recipes."""

from __future__ import annotations

import re
from pathlib import Path

from tdstack.attest.imageconfig import ImageConfig
from tdstack.attest.inside import Inside
from tdstack.attest.lockslice import LockSlice, SlicePackage
from tdstack.attest.provenance import Statement
from tdstack.errors import CheckFailed, IntegrityError
from tdstack.fork.model import ForkWheel
from tdstack.lock.model import Lock, LockedFile, LockedForkWheel
from tdstack.plan import LABEL, Plan, make_plan
from tdstack.ship.names import full_tag, rolling_tags
from tdstack.stack import CPython, Request, make_stack
from tdstack.tags import MACHINE

SHOWN = 5
# What looks like one of our tags is one, and must be true.
_OURS = re.compile(r"cu\d+(-|$)")


def plan_of(slice_: LockSlice, lock: Lock, root: Path) -> Plan:
    """Return the plan for the options that a slice tells. `root` is the checkout.

    Triton-distributed is taken as the slice describes it: no wheel is needed.
    Raises: UsageError, IntegrityError when this lock has no such stack.
    """
    cpython = None
    if file := slice_.base.cpython:
        cpython = CPython(file, slice_.python, "", "", MACHINE[slice_.platform])
    request = Request(
        cuda=slice_.cuda,
        triton=slice_.triton,
        torch=slice_.torch,
        platform=slice_.platform,
        python=slice_.python,
        base=slice_.base.image,
        fork=_fork(slice_),
        cpython=cpython,
        archs=slice_.archs,
    )
    return make_plan(make_stack(lock, request), root)


def check_labels(config: ImageConfig, inside: Inside, where: str) -> None:
    """Compare an image's labels with what is in it. Pure.

    Raises: IntegrityError naming the labels that lie.
    """
    slice_ = inside.slice
    wanted = {
        "cuda": slice_.cuda,
        "driver": f">={slice_.driver_floor}",
        "triton": slice_.triton,
        "torch": slice_.torch,
        "archs": ",".join(slice_.archs),
        "lock-slice": slice_.digest,
    }
    wrong = config.label_faults()
    wrong += [
        f"{LABEL}.{name} is {config.labels.get(f'{LABEL}.{name}', 'absent')}, the image is {text}"
        for name, text in wanted.items()
        if config.labels.get(f"{LABEL}.{name}") != text
    ]
    if config.platform != slice_.platform:
        wrong.append(f"platform {config.platform}, the image is {slice_.platform}")
    if list(inside.kernels.cubins) and set(inside.kernels.cubins) != set(slice_.archs):
        wrong.append(f"cubins for {', '.join(inside.kernels.cubins)}")
    if wrong:
        raise IntegrityError(
            "the labels do not agree with the image", where=where, got="; ".join(wrong[:SHOWN])
        )


def check_plan(config: ImageConfig, inside: Inside, plan: Plan, where: str) -> None:
    """Compare an image with the plan that this checkout makes for it. Pure.

    Raises: CheckFailed naming the packages, or the layers, that are others here.
    """
    wanted, got = plan.lock_slice, inside.slice.digest
    if wanted != got:
        raise CheckFailed(
            "the image was built from another lock than this checkout's",
            where=where,
            expected=f"lock slice {wanted[:12]}",
            got=f"lock slice {got[:12]}: {_packages(inside.slice, plan) or 'other settings'}",
            remedy="check out the commit whose versions.lock the provenance names, or use an "
            "image of this lock",
        )
    if dict(plan.cubins) != dict(inside.kernels.cubins):
        raise CheckFailed(
            "the image has other kernels than this checkout's",
            where=where,
            expected=str(dict(plan.cubins)),
            got=str(dict(inside.kernels.cubins)),
        )
    parent = config.labels.get(f"{LABEL}.parent", "")
    if config.key != plan.final.key or parent != plan.final.parent:
        below = parent != plan.final.parent
        raise CheckFailed(
            "the image has another content key than this checkout gives it",
            where=where,
            expected=f"key {plan.final.key[:20]}",
            got=f"key {config.key[:20]}; "
            + ("a layer below the kernels differs" if below else "the kernels layer differs")
            + ": its recipe or sources",
            remedy="check out the commit that it was built from, or use an image of this one",
        )


def check_tag(tag: str, config: ImageConfig, plan: Plan, where: str) -> None:
    """Compare the tag that led to an image with those that the image may have. Pure.

    Raises: IntegrityError for a tag of another line, flavour or key.
    """
    full = f"{full_tag(plan)[:-12]}{config.key[:12]}"
    own = [full, *rolling_tags(plan)]
    if _OURS.match(tag) and tag not in own:
        raise IntegrityError(
            "the tag is not a name of the image that it points at",
            where=where,
            expected=" or ".join(own),
            got=tag,
            remedy="do not use it: somebody moved the tag; name the image by its digest",
        )


def check_sources(statement: Statement, plan: Plan, where: str) -> None:
    """Compare the recipes that a statement names with those of a plan of the same key. Pure.

    Raises: IntegrityError.
    """
    wanted = {f"images/{layer.name}": layer.recipe_digest for layer in plan.layers}
    wrong = [name for name, sha256 in wanted.items() if statement.sources.get(name) != sha256]
    if wrong:
        raise IntegrityError(
            "the provenance names other sources than the content key stands for",
            where=where,
            expected="those of this checkout, whose key is the image's",
            got=", ".join(wrong),
        )


def _fork(slice_: LockSlice) -> ForkWheel | None:
    if slice_.fork is None:
        return None
    by_name = {p.name: p for p in slice_.layers.get("triton", ())}
    triton, alias = by_name.get("triton"), by_name.get("triton-dist")
    if triton is None or alias is None:
        raise IntegrityError(
            "the slice of the lock contradicts itself",
            expected="triton and triton-dist, as it names a wheel of Triton-distributed",
            got=", ".join(by_name),
        )
    source = LockedForkWheel(**slice_.fork.model_dump(exclude={"complete"}))
    return ForkWheel(
        _file(triton), triton.version, _file(alias), source, complete=slice_.fork.complete
    )


def _file(package: SlicePackage) -> LockedFile:
    # The slice has no sizes; no key depends on one.
    return LockedFile(name=package.file, sha256=package.sha256, size=1)


def _packages(slice_: LockSlice, plan: Plan) -> str:
    theirs = {p.name: (p.version, p.sha256) for ps in slice_.layers.values() for p in ps}
    ours = {p.name: (p.version, p.file.sha256 if p.file else "") for p in plan.stack.all_packages()}
    wrong = []
    for name in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(name), ours.get(name)
        if one != other:
            here = f"here {other[0]}" if other else "not here"
            wrong.append(f"{name} {one[0]}, {here}" if one else f"no {name}, {here}")
    if slice_.base.tar != (plan.stack.rootfs.tar.sha256 if plan.stack.rootfs else ""):
        wrong.append("the root file system")
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return "; ".join(wrong[:SHOWN]) + more
