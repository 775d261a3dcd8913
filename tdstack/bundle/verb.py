"""`invoke bundle`: options in, reports out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdstack.attest.keys import PublicKey, public_keys_of, signer_of
from tdstack.bundle.make import BundleReport, MakeOptions, make_bundle
from tdstack.bundle.model import KINDS, Contents
from tdstack.bundle.opened import OpenedBundle, open_bundle
from tdstack.bundle.parts import Parts, parse_size
from tdstack.bundle.unpack import check_signed, lay_out, load, push_images, store_files
from tdstack.console import emit_json, megabytes, say, warn
from tdstack.engines.choose import choose_engine
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.registry.reference import parse_repository
from tdstack.stack import Request, is_rootfs
from tdstack.verbs import acquired, verify_image
from tdstack.workspace import Workspace


def bundle_verb(
    workspace: Workspace,
    request: Request,
    source: ForkSource,
    *,
    contents: str,
    out: str,
    split: str,
    registry: str,
    sign: str,
    key: str,
    tools: bool,
    engine: str,
    as_json: bool,
) -> BundleReport:
    """Write one file that carries a plan's image, or all it is built from, and the toolkit.

    Raises: UsageError, and what make_bundle raises.
    """
    options = MakeOptions(
        _kind(contents),
        _target(out),
        parse_size(split) if split else 0,
        parse_repository(registry) if registry else None,
        signer_of(sign),
        public_keys_of(key) if registry else (),
        tools,
    )
    if not is_rootfs(request.base):
        raise UsageError(
            "a bundle does not hold a base image that is not ours",
            where=f"--base {request.base}",
            expected="rootfs",
            remedy="carry that image by its own means, and build on it there",
        )
    chosen = None
    if options.contents == "images" and options.registry is None:
        choice = choose_engine(engine)
        say(f"engine: {choice.reason}")
        chosen = choice.engine
    plan = acquired(workspace, request, source, dry=False)
    report = make_bundle(workspace, plan, chosen, options, say)
    if as_json:
        emit_json(report.as_dict())
    say(f"{report.contents} of {report.tag}, {megabytes(report.size)}: {', '.join(report.files)}")
    return report


def unpack_verb(
    workspace: Workspace,
    path: str,
    *,
    into_engine: bool,
    registry: str,
    into: str,
    key: str,
    engine: str,
    as_json: bool,
) -> dict[str, object]:
    """Check a bundle, then load it, push it or lay it out; with none of these only check it.

    Raises: UsageError; IntegrityError for a bundle that is not whole or not signed as asked;
    what loading and pushing raise.
    """
    if sum(map(bool, (into_engine, registry, into))) > 1:
        raise UsageError("one of these at a time", where="--load, --registry, --into")
    repository = parse_repository(registry) if registry else None
    keys = public_keys_of(key)
    file = Path(path).expanduser()
    with Parts(file) as parts:
        say(f"checking {file}: {megabytes(parts.size)} in {len(parts.paths)} files")
        bundle = open_bundle(file, parts, keys)
        check_signed(bundle, keys, warn)
        told = _told(bundle)
        if into_engine:
            told |= _load(bundle, workspace, keys, engine)
        elif repository:
            told["sent"] = push_images(bundle, repository, workspace, keys, say)
            told["registry"] = str(repository)
            say(f"{repository}:{bundle.manifest.tag}, {megabytes(int(str(told['sent'])))} sent")
        elif into:
            lay_out(bundle, Path(into).expanduser())
            told["into"] = into
            say(f"laid out in {into}")
        else:
            say(f"the bundle is whole: {told['contents']} of {told['tag']}, {told['files']} files")
    if as_json:
        emit_json(told)
    return told


def _load(
    bundle: OpenedBundle, workspace: Workspace, keys: Sequence[PublicKey], engine: str
) -> dict[str, object]:
    if bundle.manifest.contents == "wheelhouse":
        count = store_files(bundle, workspace, warn)
        say(f"{count} files are new in {workspace.store.root}; every verb finds them there")
        return {"stored": count}
    choice = choose_engine(engine)
    say(f"engine: {choice.reason}")
    report = load(
        bundle,
        workspace,
        choice.engine,
        keys,
        lambda ref: verify_image(choice.engine, ref),
        say,
        warn,
    )
    there = "is there already" if report.source == "local" else f"{report.checks} checks passed"
    say(f"{report.ref}, image id {report.image_id[:12]}: {there}")
    return {"pull": report.as_dict()}


def _told(bundle: OpenedBundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "schema": 1,
        "contents": manifest.contents,
        "tag": manifest.tag,
        "key": manifest.key,
        "lock": manifest.lock,
        "asked": manifest.asked.model_dump(mode="json"),
        "files": len(manifest.members),
        "signed_by": bundle.signed_by,
    }


def _kind(contents: str) -> Contents:
    for kind in KINDS:
        if kind == contents:
            return kind
    raise UsageError(
        f"unknown contents {contents!r}", where="--contents", expected=", ".join(KINDS)
    )


def _target(out: str) -> Path:
    if not out:
        raise UsageError("which file?", where="--out", remedy="--out FILE, or --unpack FILE")
    path = Path(out).expanduser()
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError("no file can be written there", where=f"--out {out}")
    return path
