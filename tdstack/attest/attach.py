"""Attaches to a pushed image what vouches for it: bill of materials, provenance, signature."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from tdstack.attest import dsse, provenance, sbom
from tdstack.attest.artifacts import Attachment, put_attachment
from tdstack.attest.bundles import KeylessSigner, put_bundle
from tdstack.attest.check import check_sbom, check_statement, read_provenance, read_sbom
from tdstack.attest.contents import Contents, contents_of
from tdstack.attest.inside import Inside
from tdstack.attest.keys import Signer
from tdstack.attest.layerfiles import read_inside
from tdstack.attest.licences import licences_of
from tdstack.attest.provenance import BuildFacts, render_statement
from tdstack.attest.sbom import Subject, render_sbom
from tdstack.attest.signatures import put_signature
from tdstack.errors import IntegrityError
from tdstack.lock.io import load_lock
from tdstack.plan import Plan
from tdstack.registry.client import Registry
from tdstack.registry.oci import Descriptor, ImageManifest
from tdstack.registry.reference import Repository
from tdstack.wheelhouse.store import Store, default_cache
from tdstack.workspace import ROOT

PREDICATE_ANNOTATION = "in-toto.io/predicate-type"


def attach(
    registry: Registry,
    repository: Repository,
    image: Descriptor,
    *,
    plan: Plan | None,
    signer: Signer | None,
    keyless: KeylessSigner | None = None,
    engine: str = "",
    root: Path = ROOT,
    store: Store | None = None,
) -> tuple[str, ...]:
    """Attach to the manifest `image` what vouches for it; the same again changes nothing.

    With `plan` (a final image) a bill of materials and the provenance; with `signer` the
    provenance is signed, and the manifest last of all: whoever sees its signature finds the rest.
    With `keyless` the manifest is signed by an identity, too; that again adds a signature.
    `root` is the checkout of the plan, `engine` what built the image, `store` what may hold the
    wheels that tell licences.
    Returns: what is attached now and was not before, such as `signature sha256:...`.
    Raises: IntegrityError when the image is not the plan's, or the registry gives wrong bytes;
    CheckFailed for one that is no final image of tdstack; UpstreamError; HostError and
    TimeLimitError of `keyless`.
    """
    done: list[str] = []
    if plan is not None:
        inside = _inside(registry, repository, image)
        check_is_planned(inside, plan, f"{repository}@{image.digest}")
        rootfs = (plan.stack.rootfs,) if plan.stack.rootfs else ()
        contents = contents_of(inside.slice, inside.kernels, rootfs)
        if not _attested(registry, repository, image, contents, signer):
            store = store or Store(default_cache())
            done += _attest(
                registry, repository, image, plan, contents, signer, engine, root, store
            )
    if signer is not None and (added := put_signature(registry, repository, image, signer)):
        done.append(f"signature {added}")
    if keyless is not None:
        done.append(f"keyless {put_bundle(registry, repository, image, keyless)}")
    return tuple(done)


def check_is_planned(inside: Inside, plan: Plan, where: str) -> None:
    """Compare what an image says of itself with the plan that it is said to come from. Pure.

    Raises: IntegrityError.
    """
    pairs: list[tuple[str, object, object]] = [
        ("lock slice", plan.lock_slice, inside.slice.digest),
        ("cubins", dict(plan.cubins), dict(inside.kernels.cubins)),
    ]
    wrong = [(name, wanted, got) for name, wanted, got in pairs if wanted != got]
    if wrong:
        raise IntegrityError(
            "the image is not the one of this plan",
            where=where,
            expected="; ".join(f"{name} {wanted}" for name, wanted, _ in wrong),
            got="; ".join(f"{name} {got}" for name, _, got in wrong),
            remedy="build it again with `invoke build`, and push that",
        )


def _inside(registry: Registry, repository: Repository, image: Descriptor) -> Inside:
    document = registry.document(repository, image.digest)
    if document is None:
        raise IntegrityError(
            "the image to attach to is not in the registry", where=f"{repository}@{image.digest}"
        )
    return read_inside(registry, repository, ImageManifest.parse(document.data))


def _attested(
    registry: Registry,
    repository: Repository,
    image: Descriptor,
    contents: Contents,
    signer: Signer | None,
) -> bool:
    """Return whether a true bill and provenance are there, by this signer if there is one."""
    where = f"{repository}@{image.digest}"
    keys = [signer.public] if signer else []
    try:
        statement = read_provenance(registry, repository, image, keys)[0]
        check_statement(statement, image.digest, contents, where)
        bill = read_sbom(registry, repository, image, statement)
        check_sbom(bill, image.digest, contents, where)
    except IntegrityError:
        return False  # absent, somebody else's or damaged: ours are attached beside them
    return True


def _attest(
    registry: Registry,
    repository: Repository,
    image: Descriptor,
    plan: Plan,
    contents: Contents,
    signer: Signer | None,
    engine: str,
    root: Path,
    store: Store,
) -> list[str]:
    lock, lock_sha256 = load_lock(root)
    tag = plan.final.tags[0].rpartition(":")[2]
    bill = render_sbom(
        contents,
        Subject(tag, plan.final.key, image.digest),
        lock.triton_distributed,
        licences_of(contents.materials, store),
    )
    facts = BuildFacts(
        lock=lock_sha256,
        recipes={layer.name: layer.recipe_digest for layer in plan.layers},
        keys={layer.name: layer.key for layer in plan.layers},
        backend=metadata.version("hatchling"),
        engine=engine,
        sbom=hashlib.sha256(bill).hexdigest(),
    )
    statement = render_statement(str(repository), image.digest, contents, facts)
    kept = [
        ("sbom", Attachment(bill, sbom.MEDIA_TYPE, sbom.MEDIA_TYPE)),
        ("provenance", _provenance(statement, signer)),
    ]
    added = {what: put_attachment(registry, repository, image, one) for what, one in kept}
    return [f"{what} {digest}" for what, digest in added.items() if digest]


def _provenance(statement: bytes, signer: Signer | None) -> Attachment:
    told = {PREDICATE_ANNOTATION: provenance.PREDICATE}
    if signer is None:
        return Attachment(statement, provenance.MEDIA_TYPE, provenance.MEDIA_TYPE, told)
    envelope = dsse.seal(provenance.MEDIA_TYPE, statement, signer)
    return Attachment(envelope, dsse.MEDIA_TYPE, dsse.MEDIA_TYPE, told)
