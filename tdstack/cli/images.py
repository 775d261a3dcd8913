"""Verbs from the lock to an image."""

from __future__ import annotations

from invoke.context import Context

from tdstack import sglang, verbs
from tdstack.cli.verb import Asked, helps, verb
from tdstack.fork.model import ForkSource
from tdstack.stack import Request
from tdstack.workspace import Workspace


@verb
def plan(
    c: Context,
    asked: Asked,
    engine: str = "auto",
    with_: list[str] | None = None,
    registry: str = "",
    json: bool = False,
) -> None:
    """Show what a build would hold, and where each layer would come from."""
    sglang.refuse(asked.workspace.root, with_ or (), as_json=json)
    verbs.plan(
        asked.workspace,
        asked.request,
        source=asked.source,
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
    asked: Asked,
    json: bool = False,
    dry: bool = False,
) -> None:
    """Download every file of the plan, by hash, into the store."""
    verbs.fetch(
        asked.workspace,
        asked.request,
        source=asked.source,
        as_json=json,
        dry=dry,
    )


@verb
def build(
    c: Context,
    asked: Asked,
    engine: str = "auto",
    output: str = "",
    with_: list[str] | None = None,
    registry: str = "",
    key: str = "",
    json: bool = False,
    dry: bool = False,
    identity: str = "",
    issuer: str = "",
) -> None:
    """Build the image; layers that are there already, or in a registry, are not built again."""
    sglang.refuse(asked.workspace.root, with_ or (), as_json=json)
    keyless = None
    if identity or issuer:
        from tdstack.attest.sigstore_client import keyless_of

        keyless = keyless_of(identity, issuer)
    verbs.build(
        asked.workspace,
        asked.request,
        source=asked.source,
        engine=engine,
        output=output,
        as_json=json,
        dry=dry,
        registry=registry,
        key=key,
        keyless=keyless,
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
