"""The verbs `sbom` and `verify REF`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tdstack.attest.contents import Contents, contents_of, planned_contents
from tdstack.attest.examine import Options, examine
from tdstack.attest.imageconfig import ImageConfig
from tdstack.attest.inside import Inside, read_engine
from tdstack.attest.layerfiles import read_config, read_inside
from tdstack.attest.licences import licences_of
from tdstack.attest.recompute import plan_of
from tdstack.attest.report import ImageReport, judged
from tdstack.attest.sbom import Subject, render_sbom
from tdstack.console import emit_json, say, table
from tdstack.engines.choose import choose_engine
from tdstack.errors import HostError, IntegrityError, UsageError
from tdstack.fork.model import ForkSource
from tdstack.lock.io import load_lock
from tdstack.plan import LABEL, REPOSITORY, Plan
from tdstack.registry.client import registry_of
from tdstack.registry.reference import Reference, parse_reference
from tdstack.ship.names import full_tag
from tdstack.ship.resolve import resolve
from tdstack.stack import PLATFORMS, Request
from tdstack.workspace import Workspace

KERNELS = Path("kernels/src/gemm_allreduce/__init__.py")


@dataclass(frozen=True)
class _Billed:
    """What a bill is written of."""

    contents: Contents
    subject: Subject


def sbom_verb(
    workspace: Workspace,
    request: Request,
    source: ForkSource,
    *,
    image: str,
    engine: str,
    out: str,
) -> None:
    """Write the bill of materials of a plan, or of an image, to `out` or stdout.

    Raises: UsageError, IntegrityError as planning does; HostError when the engine has no such
    image; CheckFailed for one that is none of tdstack; UpstreamError.
    """
    target = Path(out).expanduser() if out else None
    if target and not target.absolute().parent.is_dir():
        raise UsageError("no such folder", where=f"--out {out}")
    if not image:
        billed = _planned(workspace.plan(request, source), workspace.root)
    elif is_local(image):
        billed = _of_engine(workspace, image, engine)
    else:
        billed = _of_registry(workspace, _reference(image, "--image"), request.platform)
    pinned = load_lock(workspace.root)[0].triton_distributed
    licences = licences_of(billed.contents.materials, workspace.store)
    bill = render_sbom(billed.contents, billed.subject, pinned, licences)
    if target is None:
        sys.stdout.write(bill.decode())
        sys.stdout.flush()
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(bill)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"wrote {target}: {billed.subject.tag}, {len(billed.contents.materials)} packages")


def verify_reference(
    workspace: Workspace, ref: str, options: Options, *, engine: str, as_json: bool
) -> ImageReport | None:
    """Check an image in a registry; of one in the engine, run tdstack-verify in it.

    Raises: CheckFailed or IntegrityError with the findings; UpstreamError; HostError.
    """
    if options.platform not in PLATFORMS:
        raise UsageError(
            f"unknown value {options.platform!r}",
            where="--platform",
            expected=", ".join(PLATFORMS),
        )
    if is_local(ref):
        _verify_local(ref, options, engine, as_json=as_json)
        return None
    reference = _reference(ref, "REF")
    report = examine(workspace, registry_of(reference.repository), reference, options)
    return judged(report, as_json=as_json)


def is_local(ref: str) -> bool:
    """Return whether a name is one of an engine's own images: no host with a dot or a port."""
    host, slash, _ = ref.partition("/")
    return not slash or not ("." in host or ":" in host)


def _verify_local(ref: str, options: Options, name: str, *, as_json: bool) -> None:
    # Imported here: it brings everything that builds.
    from tdstack.verbs import verify_image

    if options.keys:
        raise UsageError(
            "an image in an engine has no signature", where="--key", got=ref, remedy="leave it out"
        )
    engine = choose_engine(name).engine
    if engine.image(ref) is None:
        raise _not_there(ref, engine.describe())
    findings = verify_image(engine, ref)
    rows = [["ok", str(f["check"]), str(f["detail"])] for f in findings]
    table(f"{ref} ({engine.describe()}), by tdstack-verify in it", ["", "check", "finding"], rows)
    if as_json:
        told: list[Mapping[str, object]] = list(findings)
        emit_json({"schema": 1, "ref": ref, "findings": told, "exit_code": 0})


def _reference(text: str, where: str) -> Reference:
    try:
        return parse_reference(text)
    except UsageError as error:
        raise UsageError(
            error.what, where=where, expected=error.expected, remedy=error.remedy
        ) from error


def _planned(plan: Plan, root: Path) -> _Billed:
    contents = planned_contents(plan, _kernels_version(root))
    return _Billed(contents, Subject(full_tag(plan), plan.final.key))


def _of_engine(workspace: Workspace, ref: str, name: str) -> _Billed:
    engine = choose_engine(name).engine
    stored = engine.image(ref)
    if stored is None:
        raise _not_there(ref, engine.describe())
    inside = read_engine(engine, ref)
    key = stored.labels.get(f"{LABEL}.key", "")
    subject = Subject(_tag(workspace, inside, key), key, image_id=stored.id)
    return _Billed(_contents(workspace, inside), subject)


def _of_registry(workspace: Workspace, reference: Reference, platform: str) -> _Billed:
    registry = registry_of(reference.repository)
    image, manifest = resolve(registry, reference, platform)
    config: ImageConfig = read_config(registry, reference.repository, manifest)
    inside = read_inside(registry, reference.repository, manifest)
    subject = Subject(_tag(workspace, inside, config.key), config.key, image.digest)
    return _Billed(_contents(workspace, inside), subject)


def _contents(workspace: Workspace, inside: Inside) -> Contents:
    return contents_of(inside.slice, inside.kernels, load_lock(workspace.root)[0].rootfs)


def _tag(workspace: Workspace, inside: Inside, key: str) -> str:
    """Return an image's full tag; of one that this checkout has no plan for, its key."""
    try:
        plan = plan_of(inside.slice, load_lock(workspace.root)[0], workspace.root)
    except (UsageError, IntegrityError):
        return key[:12]
    return f"{full_tag(plan)[:-12]}{key[:12]}"


def _kernels_version(root: Path) -> str:
    found = re.search(r'^__version__ = "([^"]+)"', (root / KERNELS).read_text(), re.MULTILINE)
    if found is None:
        raise UsageError("the kernels do not say their version", where=str(root / KERNELS))
    return found[1]


def _not_there(ref: str, engine: str) -> HostError:
    remedy = "`invoke build` makes it" if ref.startswith(REPOSITORY) else "name one that is there"
    return HostError(
        "there is no such image in the engine", where=f"{engine}: {ref}", remedy=remedy
    )
