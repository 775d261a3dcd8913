"""`invoke push` and `invoke pull`: options in, reports out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdstack import cluster as cluster_file
from tdstack.attest.bundles import Keyless
from tdstack.attest.keys import public_keys_of, signer_of
from tdstack.attest.sigstore_client import SigstoreSigner
from tdstack.console import emit_json, megabytes, say, table, warn
from tdstack.engines.choose import choose_engine
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.plan import Plan
from tdstack.registry.client import registry_of
from tdstack.registry.reference import Repository, parse_repository
from tdstack.ship.adopt import plan_of_registry
from tdstack.ship.cache import named_registry
from tdstack.ship.compress import compression_of
from tdstack.ship.inventory import inventory
from tdstack.ship.prune import decide
from tdstack.ship.pull import Puller, PullReport
from tdstack.ship.push import Pusher
from tdstack.ship.remote import Source
from tdstack.ship.target import PushReport, Target
from tdstack.stack import Request
from tdstack.verbs import pinned_base, verify_image
from tdstack.workspace import Workspace


@dataclass(frozen=True)
class PushOptions:
    """How to push: `compression`, `sign` and `cluster`, the file to write then, may be empty."""

    registry: str
    sign: str = ""
    compression: str = ""
    force: bool = False
    keyless: bool = False
    cluster: str = ""


def push(
    workspace: Workspace,
    request: Request,
    source: ForkSource,
    engine: str,
    options: PushOptions,
    *,
    as_json: bool,
) -> PushReport:
    """Bring the images of a plan from the engine into a registry."""
    repository = parse_repository(named_registry(options.registry))
    compression = compression_of(options.compression or "zstd")
    signer = signer_of(options.sign)
    if options.cluster:
        cluster_file.check_place(Path(options.cluster))
    keyless = SigstoreSigner() if options.keyless else None
    choice = choose_engine(engine)
    say(f"engine: {choice.reason}")
    made = workspace.plan(pinned_base(choice.engine, workspace, request, source), source)
    if lacking := _without_files(made):
        raise UsageError(
            "the image's key depends on a wheel that is not there",
            where=", ".join(lacking),
            remedy="name the wheel that it was built with: --wheel FILE; or ask for --triton stock",
        )
    target = Target(
        registry_of(repository),
        repository,
        compression,
        recompress=bool(options.compression),
        signer=signer,
        force=options.force,
        keyless=keyless,
    )
    report = Pusher(made, choice.engine, workspace, target, say).push()
    if options.cluster:
        _name_for_cluster(Path(options.cluster), made, repository, report.digest)
    if as_json:
        emit_json(report.as_dict())
    say(f"{report.ref}@{report.digest}, image id {report.image_id[:12]}")
    say(
        f"sent {megabytes(report.sent)}, mounted {megabytes(report.mounted)}, "
        f"present {megabytes(report.present)}; tags {', '.join(report.tags)}"
    )
    return report


def pull(
    workspace: Workspace,
    request: Request,
    source: ForkSource,
    engine: str,
    *,
    registry: str,
    key: str,
    keyless: Keyless | None = None,
    force: bool,
    as_json: bool,
    cluster: str = "",
    dry: bool = False,
) -> PullReport:
    """Bring the final image of a plan from a registry into the engine, and check it.

    Then `cluster`, if it is named, is the file that names the image. `dry` only asks.
    """
    if cluster and force:
        raise UsageError(
            "a cluster file names an image of the lock",
            where="--cluster with --force",
            remedy="leave one of them out",
        )
    if cluster:
        cluster_file.check_place(Path(cluster))
    repository = parse_repository(named_registry(registry))
    keys = public_keys_of(key)
    choice = choose_engine(engine)
    say(f"engine: {choice.reason}")
    request = pinned_base(choice.engine, workspace, request, source)
    made = workspace.plan(request, source)
    place = Source(registry_of(repository), repository, made.stack.platform, keys, keyless)
    if _without_files(made):
        made = plan_of_registry(workspace, request, made, place)
    for note in made.stack.notes:
        warn(note)
    puller = Puller(
        made,
        place,
        choice.engine,
        workspace.store,
        lambda ref: verify_image(choice.engine, ref),
        say,
        warn,
        force,
        dry,
    )
    report = puller.pull()
    if cluster and not dry:
        _name_for_cluster(Path(cluster), made, repository, report.digest)
    if as_json:
        emit_json(report.as_dict())
    signed = f", signed by {report.signed_by}" if report.signed_by else ", no signature asked for"
    if dry and report.source == "registry":
        say(f"{report.ref}, image id {report.image_id[:12]}{signed}, is not here; dry run")
    elif report.source == "local":
        say(f"{report.ref} is there already, image id {report.image_id[:12]}{signed}")
    else:
        say(
            f"{report.ref}, image id {report.image_id[:12]}, {megabytes(report.size)} unpacked, "
            f"{megabytes(report.fetched)} fetched, {report.checks} checks passed{signed}"
        )
    return report


def prune(registry: str, keep: Sequence[str], *, yes: bool, as_json: bool) -> None:
    """Show what no rolling tag reaches, or with `yes` delete it."""
    repository = parse_repository(named_registry(registry))
    client = registry_of(repository)
    found = decide(inventory(client, repository), repository, keep)
    rows = [
        [one.name, "attached" if one.subject else "image", one.digest[7:19]] for one in found.goes
    ]
    if rows:
        table(f"nothing reaches these in {repository}", ["name", "kind", "digest"], rows)
    if yes:
        for one in found.goes:
            client.delete(one.repository, one.digest)
    if as_json:
        emit_json(
            {
                "deleted": yes,
                "goes": [
                    {"name": one.name, "digest": one.digest, "tags": list(one.tags)}
                    for one in found.goes
                ],
                "stays": len(found.stays),
                "freed_bytes": found.freed,
            }
        )
    done = "deleted" if yes else "would delete"
    say(f"{done} {len(found.goes)} manifests; {len(found.stays)} stay")
    say(
        f"the registry's garbage collection {'frees' if yes else 'would free'} "
        f"{megabytes(found.freed)}"
    )
    if not yes and found.goes:
        say("dry run: --yes deletes them")


def _name_for_cluster(path: Path, made: Plan, repository: Repository, digest: str) -> None:
    cluster_file.write(path, cluster_file.cluster_of(made, repository, digest))
    say(f"{path} names it for the scripts of a cluster")


def _without_files(made: Plan) -> list[str]:
    return [package.name for package in made.stack.all_packages() if package.file is None]
