"""Verbs that carry images about, and say what is in them."""

from __future__ import annotations

from invoke.context import Context

from tdstack.cli.verb import Asked, helps, verb
from tdstack.errors import UsageError
from tdstack.fork.model import ForkSource
from tdstack.workspace import Workspace


@verb
@helps(
    sign="sign every image with this key: PRIVATE.pem (default: TDSTACK_SIGN)",
    keyless="sign every image as who you are, through sigstore; needs the internet",
    compression="zstd (default), gzip or none; named, it also replaces layers in another form",
    force="replace what the registry has under a layer's key, if it is another image",
    prune="push nothing; show what no rolling tag reaches any more",
    yes="with --prune: delete it",
    keep="with --prune: keep what this tag reaches, too; repeatable",
    cluster="then write this file, which names the image for scripts/: cluster.env",
)
def push(
    c: Context,
    asked: Asked,
    engine: str = "auto",
    registry: str = "",
    sign: str = "",
    compression: str = "",
    force: bool = False,
    prune: bool = False,
    yes: bool = False,
    keep: list[str] | None = None,
    json: bool = False,
    keyless: bool = False,
    cluster: str = "",
) -> None:
    """Bring an image and its layers into a registry, or prune the registry."""
    from tdstack.ship import verbs as ship

    if prune:
        if cluster:
            raise UsageError("--prune pushes no image to name", where="--cluster")
        ship.prune(registry, keep or (), yes=yes, as_json=json)
        return
    if yes or keep:
        raise UsageError("only --prune deletes anything", where="--yes, --keep")
    ship.push(
        asked.workspace,
        asked.request,
        asked.source,
        engine,
        ship.PushOptions(registry, sign, compression, force, keyless, cluster),
        as_json=json,
    )


@verb
@helps(
    force="take an image that is not the lock's, with warnings; wrong digests are never taken",
    cluster="then write this file, which names the image for scripts/: cluster.env",
    dry="ask and check what the registry has; fetch and write nothing",
)
def pull(
    c: Context,
    asked: Asked,
    engine: str = "auto",
    registry: str = "",
    key: str = "",
    force: bool = False,
    json: bool = False,
    identity: str = "",
    issuer: str = "",
    cluster: str = "",
    dry: bool = False,
) -> None:
    """Bring a prebuilt image from a registry, compare it with the lock, and verify it."""
    from tdstack.attest.sigstore_client import keyless_of
    from tdstack.ship import verbs as ship

    ship.pull(
        asked.workspace,
        asked.request,
        asked.source,
        engine,
        registry=registry,
        key=key,
        keyless=keyless_of(identity, issuer),
        force=force,
        as_json=json,
        cluster=cluster,
        dry=dry,
    )


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
    asked: Asked,
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

    if unpack:
        if out or split or sign:
            raise UsageError("a bundle is made or unpacked", where="--unpack with --out")
        unpack_verb(
            asked.workspace,
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
    bundle_verb(
        asked.workspace,
        asked.request,
        asked.source,
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
    image="of this image instead of a plan: HOST/PATH:TAG in a registry, or one of the engine",
    out="write it to this file (default: stdout)",
)
def sbom(
    c: Context,
    asked: Asked,
    image: str = "",
    engine: str = "auto",
    out: str = "",
) -> None:
    """Print the bill of materials of a plan or an image, as CycloneDX JSON."""
    from tdstack.attest.verbs import sbom_verb

    sbom_verb(asked.workspace, asked.request, asked.source, image=image, engine=engine, out=out)


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
    identity: str = "",
    issuer: str = "",
) -> None:
    """Check an image (REF), an environment (--prefix) or a Triton-distributed wheel (--wheel)."""
    if rebuild:
        from tdstack.diff.rebuild import rebuild_verb

        if ref or prefix or triton or fix or deep or key or identity or issuer:
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
        from tdstack.attest.sigstore_client import keyless_of
        from tdstack.attest.verbs import is_local, verify_reference

        if prefix or wheel or triton or fix or incomplete:
            raise UsageError(
                "an image is checked with --key, --identity, --platform, --engine and --deep alone",
                where="invoke verify REF",
                remedy="leave the image out to check an environment or a wheel",
            )
        if is_local(ref) and (identity or issuer):
            raise UsageError(
                "an image in an engine has no signature",
                where="--identity",
                got=ref,
                remedy="leave it out",
            )
        keys = () if is_local(ref) and not key else public_keys_of(key)
        options = Options(keys, platform, deep, keyless_of(identity, issuer))
        verify_reference(Workspace.here(), ref, options, engine=engine, as_json=json)
        return
    from tdstack.fork_verbs import inspect_wheel, verify_verb

    if key or identity or issuer:
        raise UsageError(
            "environments are not signed", where="--key, --identity", expected="an image: REF"
        )
    source = ForkSource(wheel, incomplete)
    if wheel and not prefix:
        inspect_wheel(Workspace.here(), source, as_json=json)
        return
    if triton not in ("", "distributed", "stock"):
        raise UsageError(
            f"unknown value {triton!r}", where="--triton", expected="distributed, stock"
        )
    if not prefix:
        raise UsageError(
            "nothing to verify is named",
            where="invoke verify",
            expected="an image right after the verb, --rebuild REF, --prefix DIR or --wheel FILE",
        )
    here = Workspace.here()
    verify_verb(here, prefix, triton, source, fix=fix, deep=deep, as_json=json)
